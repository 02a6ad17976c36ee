"""Two engines over a virtual link: its own clock, latency, cuts and capacity, and a referee each.

Nothing here waits for real time. `step` moves what can be moved now, `drive` goes on until nothing
moves any more, `advance` lets time pass and stops at every deadline on the way.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from support.referee import Referee
from support.wire import INITIAL_WINDOW, Frame, FrameReader

if TYPE_CHECKING:
    from tunnelmux.yamux.engine import Engine
    from tunnelmux.yamux.streams import EngineStream

Cutting = Literal["whole", "bytewise", "random"]
FLUSH = 65_536


@dataclass
class Direction:
    """The bytes under way one way, at most `capacity` of them."""

    cutting: Cutting
    rng: random.Random
    latency: float
    capacity: int
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    leftover: bytes = b""
    frames: list[Frame] = field(default_factory=list)
    sent_reader: FrameReader = field(default_factory=FrameReader)
    received_reader: FrameReader = field(default_factory=FrameReader)

    @property
    def room(self) -> int:
        """Bytes that may enter now."""
        return 0 if self.leftover else max(self.capacity - self.size, 0)

    def put(self, data: bytes, now: float) -> None:
        """Enter *data*; what does not fit waits and keeps the sender from being asked again."""
        data = self.leftover + data
        fits, self.leftover = data[: self.capacity - self.size], data[self.capacity - self.size :]
        if fits:
            self.under_way.append((now + self.latency, fits))
            self.size += len(fits)

    def get(self, now: float) -> list[bytes]:
        """What has arrived by *now*, cut up."""
        pieces: list[bytes] = []
        while self.under_way and self.under_way[0][0] <= now:
            pieces += self._cut(self.under_way.popleft()[1])
        self.size -= sum(map(len, pieces))
        return pieces

    def _cut(self, data: bytes) -> list[bytes]:
        if self.cutting == "whole":
            return [data]
        pieces = []
        while data:
            size = (
                1 if self.cutting == "bytewise" else self.rng.choice((1, 2, 5, 12, 13, 999, 9999))
            )
            pieces.append(data[:size])
            data = data[size:]
        return pieces


class EnginePair:
    """A client and a server, and what is between them."""

    def __init__(
        self,
        client: Engine,
        server: Engine,
        *,
        cutting: Cutting = "whole",
        latency: float = 0.0,
        capacity: int = 1 << 20,
        seed: int = 0,
    ) -> None:
        self.client = client
        self.server = server
        self.now = 0.0
        rng = random.Random(seed)
        self.to_server = Direction(cutting, rng, latency, capacity)
        self.to_client = Direction(cutting, rng, latency, capacity)
        self.referees = {client: Referee(is_client=True), server: Referee(is_client=False)}
        self.streams: dict[Engine, list[EngineStream]] = {client: [], server: []}
        self._ways = (
            (client, server, self.to_server),
            (server, client, self.to_client),
        )

    # -- moving ----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Move what can be moved at this moment, once each way; whether anything moved."""
        moved = False
        for sender, receiver, way in self._ways:
            if way.leftover and way.capacity > way.size:
                way.put(b"", self.now)
                moved = True
            if way.room and sender.wants_send:
                moved |= self._flush(sender, way)
            for piece in way.get(self.now):
                moved = True
                for frame in way.received_reader.feed(piece):
                    if not receiver.is_closed:
                        self.referees[receiver].received(frame)
                unfinished = way.received_reader.unfinished()
                if unfinished is not None and not receiver.is_closed:
                    self.referees[receiver].header_received(unfinished)
                receiver.receive_data(piece, self.now)
            self.check()
        return moved

    def _flush(self, sender: Engine, way: Direction) -> bool:
        chunk = sender.data_to_send(self.now, FLUSH)
        assert len(chunk) <= FLUSH
        for frame in way.sent_reader.feed(chunk):
            self.referees[sender].sent(frame)
            way.frames.append(frame)
        assert not way.sent_reader.pending, "half a frame left the engine"
        way.put(chunk, self.now)
        return bool(chunk)

    def drive(self) -> None:
        """Until nothing moves and nothing is under way; time passes by the latency only."""
        while self.step() or self._until_arrival():
            pass

    def _until_arrival(self) -> bool:
        arrivals = [way.under_way[0][0] for _, _, way in self._ways if way.under_way]
        if not arrivals:
            return False
        self.now = max(self.now, min(arrivals))
        return True

    def advance(self, seconds: float) -> None:
        """Let time pass, with everything that is due on the way."""
        until = self.now + seconds
        while True:
            while self.step():
                pass
            times = [way.under_way[0][0] for _, _, way in self._ways if way.under_way]
            times += [at for e in self.referees if (at := e.next_deadline()) is not None]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            for engine in self.referees:
                engine.handle_deadline(self.now)
        self.now = until

    # -- streams ---------------------------------------------------------------------------------

    def open(self, engine: Engine) -> EngineStream:
        """A new stream of *engine*'s, watched."""
        stream = engine.open_stream(self.now)
        self.streams[engine].append(stream)
        return stream

    def accept(self, engine: Engine) -> EngineStream | None:
        """The next stream offered to *engine*, watched."""
        stream = engine.accept_stream()
        if stream is not None:
            self.streams[engine].append(stream)
        return stream

    # -- what always holds -----------------------------------------------------------------------

    def check(self) -> None:
        """The invariants of both engines."""
        for engine in self.referees:
            limits = engine.limits
            watched = self.streams[engine]
            assert 0 <= engine.stream_count <= limits.max_streams
            assert 0 <= engine.unacked_opens <= limits.max_unacked_opens
            assert 0 <= engine.accept_pending <= limits.accept_backlog
            frames_apart = engine.stream_count * limits.max_frame_payload
            assert 0 <= engine.queued_bytes <= limits.session_send_buffer + frames_apart
            assert engine.queued_bytes == sum(s.queued_bytes for s in watched)
            assert engine.unread_bytes >= sum(s.unread_bytes for s in watched)
            windows = INITIAL_WINDOW * limits.max_streams + limits.session_window_budget
            assert engine.unread_bytes <= windows
            for stream in watched:
                assert 0 <= stream.queued_bytes <= limits.stream_send_buffer
                assert stream.send_credit >= 0
                assert stream.receive_credit >= 0
                if stream.error is None:
                    held = stream.unread_bytes + stream.receive_credit
                    assert held <= limits.max_stream_window
