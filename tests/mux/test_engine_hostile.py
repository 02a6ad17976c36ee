"""Any input is accepted, or refused with RemoteProtocolError; nothing else, and within bounds.

The inputs are random bytes, and good frames damaged in every way a peer or a network can think of.
Seeds make them the same on every run; TUNNELMUX_EXAMPLES=1000 tries as many more.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from support import wire
from support.wire import ACK, FIN, RST, SYN, Frame
from tunnelmux.errors import RemoteProtocolError, SessionError, StreamError
from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine

if TYPE_CHECKING:
    from tunnelmux.yamux.streams import EngineStream

SEEDS = range(int(os.environ.get("TUNNELMUX_EXAMPLES", "15")))
LIMITS = Limits(
    max_streams=8,
    accept_backlog=4,
    pending_resets=16,
    pending_pongs=4,
    max_stray_frames=200,
    max_pings_per_second=500,
    stream_send_buffer=5_000,
    session_send_buffer=20_000,
    max_frame_payload=1_000,
)
WINDOW = 262_144


class Victim:
    """An engine whose application does random things while a hostile peer writes to it."""

    def __init__(self, engine_type: type[Engine], rng: random.Random) -> None:
        self.engine = engine_type(is_client=rng.random() < 0.5, limits=LIMITS)
        self.rng = rng
        self.now = 0.0
        self.streams: list[EngineStream] = []
        self.sent = wire.FrameReader()

    def hears(self, data: bytes) -> bool:
        """Feed *data* in random cuts; whether the session survived it."""
        while data and not self.engine.is_closed:
            size = self.rng.choice((1, 7, 12, 100, 4_000, 1 << 20))
            try:
                self.engine.receive_data(data[:size], self.now)
            except RemoteProtocolError as error:
                assert self.engine.error is error
            data = data[size:]
            if self.rng.random() < 0.3:
                self.acts()
            self.is_within_bounds()
        return not self.engine.is_closed

    def acts(self) -> None:
        """The application and the clock do something."""
        self.now += self.rng.choice((0.0, 0.0, 0.1, 5.0))
        self.engine.handle_deadline(self.now)
        stream = self.engine.accept_stream()
        if stream is not None:
            self.streams.append(stream)
        try:
            if self.rng.random() < 0.2 and self.engine.can_open:
                self.streams.append(self.engine.open_stream(self.now))
            if self.streams:
                self.uses(self.rng.choice(self.streams))
        except (SessionError, StreamError):
            pass  # what the peer did may have broken anything; what matters is below
        if self.rng.random() < 0.7:
            self.sent.feed(self.engine.data_to_send(self.now))
            assert not self.sent.pending

    def uses(self, stream: EngineStream) -> None:
        act = self.rng.randrange(12)
        if act < 4:
            stream.receive(100_000)
        elif act < 8:
            stream.send(bytes(3_000))
        elif act == 8:
            stream.finish()
        elif act == 9:
            stream.stop_receiving()
        elif act == 10:
            stream.close(self.now)
        else:
            stream.reset()

    def is_within_bounds(self) -> None:
        engine = self.engine
        assert engine.stream_count <= LIMITS.max_streams
        assert engine.accept_pending <= LIMITS.accept_backlog
        assert engine.unacked_opens <= LIMITS.max_streams
        one_frame_each = LIMITS.max_streams * LIMITS.max_frame_payload
        assert engine.queued_bytes <= LIMITS.session_send_buffer + one_frame_each
        live = [stream for stream in self.streams if stream.error is None]
        for stream in live:
            assert stream.send_credit >= 0
            assert stream.receive_credit >= 0
        assert len(engine.take_changed()) <= len(self.streams) + LIMITS.max_streams * 50


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed-{seed}")
def victim(request: pytest.FixtureRequest, engine_type: type[Engine]) -> Victim:
    return Victim(engine_type, random.Random(request.param))


def test_random_bytes(victim: Victim) -> None:
    for _ in range(20):
        if not victim.hears(victim.rng.randbytes(victim.rng.randrange(1, 200))):
            break
    assert isinstance(victim.engine.error, RemoteProtocolError | None)


def test_random_headers(victim: Victim) -> None:
    """Version 0 and a known type, so that what follows is looked at; everything else at random."""
    for _ in range(100):
        frame = Frame(
            victim.rng.choice((0, 0, 1, 1, 1, 2)),
            victim.rng.choice((0, SYN, ACK, FIN, RST, victim.rng.randrange(65_536))),
            victim.rng.choice((0, 1, 2, 3, 4, victim.rng.randrange(2**32))),
            victim.rng.choice((0, 1, 100, WINDOW, victim.rng.randrange(2**32))),
        )
        if not victim.hears(frame.pack() + bytes(min(frame.length, 200))):
            break


def good_frames(rng: random.Random, count: int, *, from_client: bool) -> list[Frame]:
    """Frames of a peer that behaves, about streams of its own and a few that are not."""
    out, ids, next_id = [], [99], 1 if from_client else 2
    for _ in range(count):
        stream_id = rng.choice(ids)
        act = rng.randrange(10)
        if act < 3:
            out.append(wire.data(next_id, rng.randbytes(rng.randrange(50)), SYN))
            ids.append(next_id)
            next_id += 2
        elif act < 7:
            out.append(wire.data(stream_id, rng.randbytes(rng.choice((0, 5, 3_000)))))
        elif act == 7:
            out.append(wire.update(stream_id, rng.randrange(100_000)))
        elif act == 8:
            out.append(wire.update(stream_id, 0, rng.choice((FIN, ACK, RST))))
        else:
            out.append(wire.ping(rng.randrange(2**32), rng.choice((SYN, ACK))))
    return out


def damaged(rng: random.Random, data: bytes) -> bytes:
    """*data* with a few bytes changed, dropped, doubled, swapped or put in."""
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw))
        act = rng.randrange(4)
        if act == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif act == 1:
            del raw[at : at + rng.randrange(1, 30)]
        elif act == 2:
            raw[at:at] = raw[at : at + rng.randrange(1, 30)]
        else:
            raw[at:at] = rng.randbytes(rng.randrange(1, 13))
        if not raw:
            raw += b"\0"
    return bytes(raw)


def test_good_frames_never_end_a_session(victim: Victim) -> None:
    for frame in good_frames(victim.rng, 150, from_client=not victim.engine.is_client):
        assert victim.hears(frame.pack())
        victim.engine.data_to_send(victim.now)


def test_damaged_frames(victim: Victim) -> None:
    frames = good_frames(victim.rng, 150, from_client=not victim.engine.is_client)
    victim.hears(damaged(victim.rng, wire.pack(*frames)))
    assert isinstance(victim.engine.error, SessionError | None)


def test_after_its_death_a_session_does_nothing(victim: Victim) -> None:
    victim.hears(wire.data(1 if not victim.engine.is_client else 2, b"hello", SYN).pack())
    victim.hears(b"\xff" * 12)
    engine = victim.engine
    assert isinstance(engine.error, RemoteProtocolError)
    last = wire.unpack(engine.data_to_send(victim.now))
    assert last in ([wire.go_away(1)], [])
    for _ in range(50):
        victim.acts()
        victim.hears(b"\0" * 12)
    assert not engine.wants_send
    assert engine.stream_count == 0


def test_streams_that_are_reset_before_anybody_has_them_leave_nothing() -> None:
    engine = Engine(is_client=False, limits=Limits(), now=0.0)
    churn = [frame for i in range(1, 2_001, 2) for frame in (wire.update(i, 0, SYN), wire.reset(i))]
    engine.receive_data(wire.pack(*churn), 0.0)
    assert (engine.stream_count, engine.accept_pending) == (0, 0)
    assert engine.take_changed() == []
    assert not engine.wants_send


def test_hostile_peers_take_no_memory(engine_type: type[Engine]) -> None:
    """Opens, pings, resets and strays for a long time, by a peer that reads everything."""
    engine = engine_type(is_client=False, limits=Limits(max_streams=8, accept_backlog=4))

    def bother(first_id: int, rounds: int) -> None:
        for i in range(first_id, first_id + 2 * rounds, 2):
            engine.receive_data(
                wire.pack(
                    wire.data(i, b"x" * 100, SYN),
                    wire.ping(i),
                    wire.update(i, 0, RST if i % 3 else FIN),
                    wire.data(i + 1_000_000, b"stray"),
                ),
                0.0 + i,
            )
            stream = engine.accept_stream()
            if stream is not None:
                stream.close(0.0 + i)
            engine.data_to_send(0.0 + i)
            engine.handle_deadline(0.0 + i)
            engine.take_changed()

    bother(1, 500)
    tracemalloc.start()
    try:
        bother(10_001, 500)
        before, _ = tracemalloc.get_traced_memory()
        bother(20_001, 3_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not engine.is_closed
    assert after - before < 64 * 1024
