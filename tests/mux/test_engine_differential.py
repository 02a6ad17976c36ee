"""The compiled engine and the plain model, side by side: the same input, the same behaviour.

Both are given the same frames and the same commands. After each flush they must have said the same
to the peer, and everything an application can see must be equal. What may differ is the order
between streams and where data is cut into frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from support import wire, yamux_model
from support.wire import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, Frame
from tunnelmux.errors import RemoteProtocolError, TunnelmuxError
from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine

EXAMPLES = int(os.environ.get("TUNNELMUX_EXAMPLES", "0"))
SETTINGS = hypothesis.settings(
    derandomize=not EXAMPLES,
    max_examples=EXAMPLES or 80,
    stateful_step_count=40,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[hypothesis.Phase.generate],  # shrinking would outlast the test's time limit
    suppress_health_check=list(hypothesis.HealthCheck),
)
WINDOW = 262_144
LIMITS = Limits(
    accept_backlog=3,
    max_unacked_opens=3,
    stream_send_buffer=50_000,
    session_send_buffer=120_000,
    max_frame_payload=4_000,
    pending_pongs=3,
    max_stray_frames=30,
    ack_delay=3.0,
    linger=7.0,
    max_stream_window=WINDOW,  # the model does not grow windows
)
BODY = bytes(range(256)) * 1100
Pair = tuple[Engine, Engine]
sizes = st.sampled_from([0, 1, 500, 20_000, WINDOW // 2, WINDOW - 500, WINDOW])


def spoken(frames: list[Frame]) -> tuple[list[Frame], dict[int, list[Frame]]]:
    """What frames say: those of the session, and those of each stream with data joined up."""
    session: list[Frame] = []
    streams: dict[int, list[Frame]] = {}
    for frame in frames:
        if frame.type in (PING, GO_AWAY):
            session.append(frame)
            continue
        said = streams.setdefault(frame.stream_id, [])
        if said and said[-1].type == frame.type == DATA:
            last = said.pop()
            body = last.body + frame.body
            frame = Frame(DATA, last.flags | frame.flags, frame.stream_id, len(body), body)
        said.append(frame)
    return session, streams


class DifferentialMachine(RuleBasedStateMachine):
    """One engine of each kind, and the hand of one peer for both."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.streams: list[tuple[Any, Any]] = []
        self.ids: list[int] = []
        self.pings: list[int] = []

    @initialize(is_client=st.booleans())
    def begin(self, is_client: bool) -> None:
        self.compiled = Engine(is_client=is_client, limits=LIMITS)
        model = yamux_model.Engine(is_client=is_client, limits=LIMITS)
        self.model = cast(Engine, model)
        self.next_id = 2 if is_client else 1

    # -- doing the same to both ------------------------------------------------------------------

    def both(self, act: Callable[[Any], Any], first: Any, second: Any) -> tuple[Any, Any]:
        """Do it to both: both give something, or both raise the same kind of error."""
        results: list[Any] = []
        errors: list[TunnelmuxError | None] = []
        for one in (first, second):
            try:
                results.append(act(one))
                errors.append(None)
            except TunnelmuxError as error:
                results.append(None)
                errors.append(error)
        assert type(errors[0]) is type(errors[1]), f"{errors[0]!r} and {errors[1]!r}"
        assert getattr(errors[0], "code", None) == getattr(errors[1], "code", None)
        return results[0], results[1]

    def both_engines(self, act: Callable[[Any], Any]) -> tuple[Any, Any]:
        return self.both(act, self.compiled, self.model)

    def pick(self, data: st.DataObject) -> tuple[Any, Any]:
        return data.draw(st.sampled_from(self.streams))

    # -- what the peer does ----------------------------------------------------------------------

    @rule(
        data=st.data(),
        count=st.integers(1, 4),
        bytewise=st.booleans(),
    )
    def frames_arrive(self, data: st.DataObject, count: int, bytewise: bool) -> None:
        frames = [self.frame(data) for _ in range(count)]
        hypothesis.note(f"{frames}")
        self.arrive(wire.pack(*frames), bytewise=bytewise)

    def arrive(self, raw: bytes, *, bytewise: bool) -> None:
        pieces = [raw[i : i + 7] for i in range(0, 700, 7)] if bytewise else []
        pieces.append(raw[700:] if bytewise else raw)
        for piece in pieces:
            errors = []
            for engine in (self.compiled, self.model):
                try:
                    engine.receive_data(piece, self.now)
                except RemoteProtocolError as error:
                    assert engine.error is error
                    errors.append(error)
            assert len(errors) != 1, f"only one of the two refused it: {errors[0]}"
        self.flush()

    def frame(self, data: st.DataObject) -> Frame:
        """A frame a peer might send, mostly a good one."""
        kind = data.draw(st.sampled_from("oooooddddddduufrpga?"))
        if kind == "o":
            stream_id, self.next_id = self.next_id, self.next_id + 2
            self.ids.append(stream_id)
            flags = SYN | data.draw(st.sampled_from([0, 0, 0, FIN, ACK]))
            if data.draw(st.booleans()):
                return wire.update(stream_id, data.draw(st.sampled_from([0, 1, 500_000])), flags)
            return wire.data(stream_id, BODY[: data.draw(sizes)], flags)
        if kind == "p":
            return wire.ping(
                data.draw(st.integers(0, 9)), data.draw(st.sampled_from([SYN, ACK, 3]))
            )
        if kind == "g":
            # Rarely, because it ends what a machine can still do.
            return wire.go_away(
                data.draw(st.sampled_from([0, 0, 0, 2])) if len(self.ids) > 4 else 0
            )
        if kind == "?" and data.draw(st.integers(0, 4)) == 0:
            return Frame(data.draw(st.sampled_from([1, 4])), SYN, data.draw(st.integers(0, 4)), 0)
        stream_id = data.draw(st.sampled_from([*self.ids[-6:], 999]))
        if kind == "r":
            return wire.reset(stream_id, data.draw(st.integers(0, 2)))
        if kind == "f":
            return wire.update(stream_id, flags=FIN)
        if kind == "u":
            return wire.update(stream_id, data.draw(st.sampled_from([0, 1, 5_000, 300_000])))
        if kind == "a":
            return wire.update(stream_id, flags=ACK)
        return wire.data(stream_id, BODY[: self.fitting(data, stream_id)], self.data_flags(data))

    def data_flags(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from([0, 0, 0, 0, 0, 0, FIN, ACK, RST]))

    def fitting(self, data: st.DataObject, stream_id: int) -> int:
        """A size for a body: mostly within the credit, once in a while over it."""
        size = data.draw(sizes)
        for _, stream in self.streams:
            if stream.id == stream_id and data.draw(st.integers(0, 30)):
                return min(size, stream.receive_credit)
        return size if stream_id == 999 else min(size, 500)

    @rule()
    def end_of_transport(self) -> None:
        if len(self.ids) > 8:
            self.both_engines(lambda engine: engine.receive_eof(self.now))
            self.flush()

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.compiled.next_deadline()) is not None and at <= until:
            assert self.model.next_deadline() == at
            self.now = at
            self.both_engines(lambda engine: engine.handle_deadline(self.now))
            self.flush()
        self.now = until

    # -- what the application does ---------------------------------------------------------------

    @rule()
    def open(self) -> None:
        ours, theirs = self.both_engines(lambda engine: engine.open_stream(self.now))
        if ours is not None:
            self.streams.append((ours, theirs))
            self.ids.append(ours.id)

    @rule()
    def accept(self) -> None:
        ours, theirs = self.both_engines(lambda engine: engine.accept_stream())
        assert (ours is None) == (theirs is None)
        if ours is not None:
            self.streams.append((ours, theirs))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), size=st.sampled_from([1, 500, 30_000]))
    def send(self, data: st.DataObject, size: int) -> None:
        pair = self.pick(data)
        ours, theirs = self.both(lambda stream: stream.send(BODY[:size]), *pair)
        assert ours == theirs

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), size=st.sampled_from([1, 500, 100_000, WINDOW]))
    def receive(self, data: st.DataObject, size: int) -> None:
        pair = self.pick(data)
        ours, theirs = self.both(lambda stream: stream.receive(size), *pair)
        assert ours == theirs

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), how=st.sampled_from(["finish", "finish", "close", "stop", "reset"]))
    def end(self, data: st.DataObject, how: str) -> None:
        acts: dict[str, Callable[[Any], None]] = {
            "finish": lambda stream: stream.finish(),
            "stop": lambda stream: stream.stop_receiving(),
            "close": lambda stream: stream.close(self.now),
            "reset": lambda stream: stream.reset(3),
        }
        self.both(acts[how], *self.pick(data))
        if how in ("stop", "reset"):
            self.flush()

    @rule()
    def ping(self) -> None:
        ours, theirs = self.both_engines(lambda engine: engine.ping(self.now))
        assert ours == theirs

    @precondition(lambda self: len(self.ids) > 6)
    @rule()
    def go_away(self) -> None:
        self.both_engines(lambda engine: engine.go_away())

    # -- comparing -------------------------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        said = []
        for engine in (self.compiled, self.model):
            frames: list[Frame] = []
            while engine.wants_send:
                frames += wire.unpack(engine.data_to_send(self.now))
            said.append(spoken(frames))
        assert said[0] == said[1]
        self.compare()

    def compare(self) -> None:
        """Everything an application can see."""
        engine_face = (
            "is_closed remote_go_away stream_count unacked_opens can_open "
            "accept_pending queued_bytes pings_answered rtt"
        )
        for name in engine_face.split():
            ours, theirs = getattr(self.compiled, name), getattr(self.model, name)
            assert ours == theirs, f"{name}: {ours} and {theirs}"
        assert type(self.compiled.error) is type(self.model.error)
        if self.compiled.error is None:
            assert self.compiled.is_draining == self.model.is_draining
        assert self.compiled.next_deadline() == self.model.next_deadline()
        stream_face = "id is_outbound queued_bytes unread_bytes readable writable"
        for one, other in self.streams:
            for name in stream_face.split():
                ours, theirs = getattr(one, name), getattr(other, name)
                assert ours == theirs, f"{name} of {one}: {ours} and {theirs}"
            assert type(one.error) is type(other.error)
            if one.error is None:
                assert one.is_acknowledged == other.is_acknowledged
                assert one.send_credit == other.send_credit
                assert one.receive_credit == other.receive_credit


DifferentialMachine.TestCase.settings = SETTINGS
test_compiled_and_model_alike = DifferentialMachine.TestCase
