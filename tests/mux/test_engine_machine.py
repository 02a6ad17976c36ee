"""Two compiled engines in any order of operations: no byte lost, reordered or invented.

The examples are the same on every run; TUNNELMUX_EXAMPLES=1000 (say) tries other ones, and more.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from support.engine_pair import EnginePair
from tunnelmux.errors import (
    SessionClosed,
    SessionDraining,
    StreamClosed,
    StreamRefused,
    StreamReset,
    TooManyStreams,
)
from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream

EXAMPLES = int(os.environ.get("TUNNELMUX_EXAMPLES", "0"))
SETTINGS = hypothesis.settings(
    derandomize=not EXAMPLES,
    max_examples=EXAMPLES or 40,
    stateful_step_count=60,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[hypothesis.Phase.generate],  # shrinking would outlast the test's time limit
    suppress_health_check=list(hypothesis.HealthCheck),
)
LIMITS = Limits(
    max_streams=6,
    accept_backlog=3,
    max_unacked_opens=4,
    stream_send_buffer=40_000,
    session_send_buffer=100_000,
    max_frame_payload=4_000,
    ack_delay=2.0,
    linger=20.0,
)
BLOB = random.Random(1).randbytes(65_521)


def pattern(stream_id: int, from_client: bool, start: int, size: int) -> bytes:
    """What that side of that stream sends from its byte *start* on."""
    at = (stream_id * 7_919 + from_client * 31_337 + start) % len(BLOB)
    return (BLOB * 2)[at : at + size]


@dataclass(eq=False)
class Half:
    """What one side has sent on one stream, and what came of it."""

    sent: int = 0
    received: int = 0
    finished: bool = False
    ended: bool = False


@dataclass(eq=False)
class End:
    """One side of one stream, as its application holds it."""

    engine: Engine
    stream: EngineStream
    sending: Half
    receiving: Half


class EngineMachine(RuleBasedStateMachine):
    """The applications on both sides, doing whatever the rules allow."""

    ends = Bundle("ends")

    def __init__(self) -> None:
        super().__init__()
        self.halves: dict[tuple[int, bool], Half] = {}
        self.all_ends: list[End] = []
        self.accepted: set[int] = set()
        self.may_break: set[int] = set()
        self.drained = False
        self.steps = 0

    @initialize(
        seed=st.integers(0, 99),
        # A pipe so narrow that it holds up pings for seconds would be taken for a dead peer.
        link=st.sampled_from([(0.0, 100), (0.0, 1_024), (0.05, 16_384), (0.05, 1 << 20)]),
    )
    def begin(self, seed: int, link: tuple[float, int]) -> None:
        latency, capacity = link
        self.pair = EnginePair(
            Engine(is_client=True, limits=LIMITS),
            Engine(is_client=False, limits=LIMITS),
            cutting="random",
            latency=latency,
            capacity=capacity,
            seed=seed,
        )

    def hold(self, engine: Engine, stream: EngineStream) -> End:
        ours, theirs = (
            self.halves.setdefault((stream.id, from_client), Half())
            for from_client in (engine.is_client, not engine.is_client)
        )
        end = End(engine, stream, ours, theirs)
        self.all_ends.append(end)
        return end

    def side(self, client: bool) -> Engine:
        return self.pair.client if client else self.pair.server

    # -- what applications do --------------------------------------------------------------------

    @rule(target=ends, client=st.booleans())
    def open(self, client: bool) -> object:
        engine = self.side(client)
        if not engine.can_open:
            return multiple()
        try:
            return self.hold(engine, self.pair.open(engine))
        except TooManyStreams:
            assert engine.stream_count == LIMITS.max_streams
        except SessionDraining:
            assert self.drained
        except SessionClosed:
            assert self.drained and engine.is_closed
        return multiple()

    @rule(target=ends, client=st.booleans())
    def accept(self, client: bool) -> object:
        engine = self.side(client)
        pending = engine.accept_pending
        stream = self.pair.accept(engine)
        assert (stream is not None) == (pending > 0)
        if stream is None:
            return multiple()
        assert stream.id not in self.accepted
        self.accepted.add(stream.id)
        return self.hold(engine, stream)

    @rule(end=ends, size=st.sampled_from([0, 1, 300, 4_001, 50_000]))
    def send(self, end: End, size: int) -> None:
        half = end.sending
        data = pattern(end.stream.id, end.engine.is_client, half.sent, size)
        try:
            half.sent += end.stream.send(data)
        except StreamClosed:
            assert half.finished
        except (StreamReset, SessionClosed) as error:
            self.explain(end, error)

    @rule(end=ends, size=st.sampled_from([1, 299, 5_000, 100_000]))
    def receive(self, end: End, size: int) -> None:
        self.take(end, size)

    def take(self, end: End, size: int) -> bytes | None:
        """Receive once; what came must be what the other side sent next."""
        half, readable = end.receiving, end.stream.readable
        try:
            data = end.stream.receive(size)
        except StreamClosed:
            assert end.stream.id in self.may_break
            return None
        except (StreamReset, SessionClosed) as error:
            assert readable
            self.explain(end, error)
            return None
        assert (data is not None) == readable
        if data:
            assert len(data) <= size
            expected = pattern(end.stream.id, not end.engine.is_client, half.received, len(data))
            assert data == expected, "bytes lost, reordered or invented"
            half.received += len(data)
            assert half.received <= half.sent
        elif data == b"":
            assert half.finished and half.received == half.sent, "an end before the end"
            half.ended = True
        return data

    @rule(end=ends)
    def finish(self, end: End) -> None:
        try:
            end.stream.finish()
            end.sending.finished = True
        except (StreamReset, SessionClosed) as error:
            self.explain(end, error)

    @rule(end=ends, size=st.sampled_from([1, 3_999, 30_000]))
    def say_all(self, end: End, size: int) -> None:
        self.send(end, size)
        self.finish(end)

    @rule(end=ends, size=st.sampled_from([10_000, 700_000]))
    def transfer(self, end: End, size: int) -> None:
        """A good deal of data, read at the other side as it comes: windows empty and fill."""
        others = [e for e in self.all_ends if e.sending is end.receiving and e is not end]
        goal = end.sending.sent + size
        for _ in range(60):
            if end.sending.sent >= goal or end.sending.finished or end.stream.error is not None:
                break
            self.send(end, min(goal - end.sending.sent, 40_000))
            self.pair.drive()
            for other in others:
                self.take(other, 50_000)

    @precondition(lambda self: self.steps % 5 == 0)
    @rule(end=ends)
    def stop_receiving(self, end: End) -> None:
        self.may_break.add(end.stream.id)
        end.stream.stop_receiving()

    @precondition(lambda self: self.steps % 3 == 0)
    @rule(end=consumes(ends))
    def close(self, end: End) -> None:
        self.may_break.add(end.stream.id)
        end.stream.close(self.pair.now)
        end.sending.finished = True

    @precondition(lambda self: self.steps % 5 == 1)
    @rule(end=consumes(ends), code=st.integers(0, 3))
    def reset(self, end: End, code: int) -> None:
        self.may_break.add(end.stream.id)
        end.stream.reset(code)

    @rule(client=st.booleans())
    def ping(self, client: bool) -> None:
        engine = self.side(client)
        if not engine.is_closed:
            assert engine.ping(self.pair.now) == engine.pings_answered + 1

    @precondition(lambda self: self.steps > 30 and self.steps % 7 == 0)
    @rule(client=st.booleans())
    def go_away(self, client: bool) -> None:
        self.drained = True
        self.side(client).go_away()

    # -- what the world does ---------------------------------------------------------------------

    @rule()
    def step(self) -> None:
        self.pair.step()

    @rule()
    def drive(self) -> None:
        self.pair.drive()

    @rule(seconds=st.sampled_from([0.01, 1.0, 15.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.pair.advance(seconds)
        if seconds > LIMITS.linger:  # closed ends may have been given up
            self.may_break |= {end.stream.id for end in self.all_ends if end.sending.finished}

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def nothing_is_out_of_bounds(self) -> None:
        if not hasattr(self, "pair"):
            return
        self.steps += 1
        self.pair.check()
        for engine in (self.pair.client, self.pair.server):
            assert engine.error is None or (self.drained and type(engine.error) is SessionClosed)

    def explain(self, end: End, error: Exception) -> None:
        """An error must have a reason in what the applications did."""
        if isinstance(error, SessionClosed):
            assert self.drained
        elif isinstance(error, StreamRefused):
            refused = end.stream.id not in self.accepted
            assert refused or end.stream.id in self.may_break, "refused, yet it was accepted"
            self.may_break.add(end.stream.id)
        else:
            assert end.stream.id in self.may_break, f"{end.stream} broke without a reason"

    def teardown(self) -> None:
        """Let everybody read to the end and finish: then nothing may be left anywhere."""
        if not hasattr(self, "pair"):
            return
        for _ in range(30):
            for client in (True, False):
                while (stream := self.pair.accept(self.side(client))) is not None:
                    self.accepted.add(stream.id)
                    self.hold(self.side(client), stream)
            for end in self.all_ends:
                while self.take(end, 65_536):
                    pass
                self.finish(end)
            self.pair.drive()
        for end in self.all_ends:
            if end.stream.id not in self.may_break and end.stream.id in self.accepted:
                assert end.receiving.ended, f"{end.stream} never came to its end"
        for engine in (self.pair.client, self.pair.server):
            assert engine.stream_count == engine.unacked_opens == engine.accept_pending == 0
            assert engine.queued_bytes == engine.unread_bytes == 0
            assert not engine.wants_send
            assert engine.is_closed == self.drained


EngineMachine.TestCase.settings = SETTINGS
test_engines_in_any_order = EngineMachine.TestCase
