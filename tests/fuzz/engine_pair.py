"""Two engines whose applications do anything, over any link: no byte lost, reordered or invented.

Neither ever breaks the protocol in the other's eyes, nothing grows past its limit, every error has
a reason in what the applications did, and when both have read and said all, nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzz.engine_bytes import HeaderReader
from support.fuzz_input import FuzzInput
from support.referee import Referee
from support.wire import INITIAL_WINDOW, FrameReader
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

LIMITS = Limits(
    max_streams=5,
    accept_backlog=3,
    max_unacked_opens=4,
    stream_send_buffer=40_000,
    session_send_buffer=70_000,
    max_frame_payload=4_000,
    session_window_budget=400_000,
    ack_delay=2.0,
    linger=20.0,
)
MOST_STEPS = 400
MOST_UNDER_WAY = 600_000
PRIME = 65_521
BLOB = bytes((n * n + n // 7) & 255 for n in range(PRIME)) * 2


def pattern(stream_id: int, from_client: bool, start: int, size: int) -> bytes:
    """What that side of that stream sends from its byte *start* on."""
    at = (stream_id * 7_919 + from_client * 31_337 + start) % PRIME
    return BLOB[at : at + size]


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

    side: Side
    stream: EngineStream
    sending: Half
    receiving: Half


@dataclass(eq=False)
class Side:
    """One engine, what it sent that has not arrived, and the referee of what it says."""

    engine: Engine
    referee: Referee
    under_way: bytearray = field(default_factory=bytearray)
    said: FrameReader = field(default_factory=FrameReader)
    heard: HeaderReader = field(default_factory=HeaderReader)
    ends: list[End] = field(default_factory=list)


class World:
    """Both sides and the link, moved by the input."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sides = [
            Side(Engine(is_client=is_client, limits=LIMITS), Referee(is_client=is_client))
            for is_client in (True, False)
        ]
        self.halves: dict[tuple[int, bool], Half] = {}
        self.accepted: set[int] = set()
        self.may_break: set[int] = set()
        self.drained = False
        self.rounds = 0

    # -- the link -----------------------------------------------------------------------------

    def flush(self, index: int, size: int = 65_536) -> bool:
        """One side says up to *size* bytes more."""
        side = self.sides[index]
        if not side.engine.wants_send or len(side.under_way) > MOST_UNDER_WAY:
            return False
        chunk = side.engine.data_to_send(self.now, size)
        assert len(chunk) <= size
        for frame in side.said.feed(chunk):
            side.referee.sent(frame)
        assert not side.said.pending, "half a frame left the engine"
        side.under_way += chunk
        return bool(chunk)

    def deliver(self, index: int, size: int) -> bool:
        """*size* bytes of what one side said arrive at the other."""
        sender, receiver = self.sides[index], self.sides[1 - index]
        piece = bytes(sender.under_way[:size])
        del sender.under_way[:size]
        if not receiver.engine.is_closed:
            for frame in receiver.heard.feed(piece):
                receiver.referee.received(frame)
        receiver.engine.receive_data(piece, self.now)
        if sender.engine.is_closed and not (sender.under_way or sender.engine.wants_send):
            receiver.engine.receive_eof(self.now)  # a session that is over closes its transport
        return bool(piece)

    def settle(self) -> None:
        """Until nothing moves."""
        for _ in range(10_000):
            moved = [self.flush(i) | self.deliver(i, 1 << 20) for i in (0, 1)]
            if not any(moved):
                return
        raise AssertionError("the two never stop talking")

    def wait(self, seconds: float) -> None:
        """Time passes, with everything due on the way, on a link that works."""
        until = self.now + seconds
        for _ in range(1_000):
            self.settle()
            times = [at for side in self.sides if (at := side.engine.next_deadline()) is not None]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            for side in self.sides:
                side.engine.handle_deadline(self.now)
        else:
            raise AssertionError("something is due again and again")
        self.now = until
        if seconds >= LIMITS.linger:  # closed ends may have been given up
            for side in self.sides:
                self.may_break |= {e.stream.id for e in side.ends if e.sending.finished}

    # -- the applications ----------------------------------------------------------------------

    def hold(self, side: Side, stream: EngineStream) -> None:
        client = side.engine.is_client
        ours, theirs = (
            self.halves.setdefault((stream.id, from_client), Half())
            for from_client in (client, not client)
        )
        side.ends.append(End(side, stream, ours, theirs))

    def open(self, side: Side) -> None:
        engine = side.engine
        if not engine.can_open:
            return
        try:
            self.hold(side, engine.open_stream(self.now))
        except TooManyStreams:
            assert engine.stream_count == LIMITS.max_streams
        except SessionDraining:
            assert self.drained
        except SessionClosed:
            assert self.drained and engine.is_closed

    def accept(self, side: Side) -> bool:
        pending = side.engine.accept_pending
        stream = side.engine.accept_stream()
        assert (stream is not None) == (pending > 0)
        if stream is None:
            return False
        assert stream.id not in self.accepted
        self.accepted.add(stream.id)
        self.hold(side, stream)
        return True

    def send(self, end: End, size: int) -> None:
        half = end.sending
        data = pattern(end.stream.id, end.side.engine.is_client, half.sent, size)
        try:
            half.sent += end.stream.send(data)
        except StreamClosed:
            assert half.finished
        except (StreamReset, SessionClosed) as error:
            self.explain(end, error)

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
            from_client = not end.side.engine.is_client
            for at in range(0, len(data), PRIME):
                piece = data[at : at + PRIME]
                expected = pattern(end.stream.id, from_client, half.received, len(piece))
                assert piece == expected, "bytes lost, reordered or invented"
                half.received += len(piece)
            assert half.received <= half.sent
        elif data == b"":
            assert half.finished and half.received == half.sent, "an end before the end"
            half.ended = True
        return data

    def finish(self, end: End) -> None:
        try:
            end.stream.finish()
            end.sending.finished = True
        except (StreamReset, SessionClosed) as error:
            self.explain(end, error)

    def give_up(self, end: End, how: int, code: int) -> None:
        """Close, stop or reset: from here on this stream may break at the other side."""
        self.may_break.add(end.stream.id)
        if how == 0:
            end.stream.stop_receiving()
        elif how == 1:
            end.stream.close(self.now)
            end.sending.finished = True
        else:
            end.stream.reset(code)

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

    # -- what always holds ----------------------------------------------------------------------

    def check(self) -> None:
        for side in self.sides:
            engine = side.engine
            assert engine.error is None or (self.drained and type(engine.error) is SessionClosed)
            assert 0 <= engine.stream_count <= LIMITS.max_streams
            assert 0 <= engine.unacked_opens <= LIMITS.max_unacked_opens
            assert 0 <= engine.accept_pending <= LIMITS.accept_backlog
            frames_apart = engine.stream_count * LIMITS.max_frame_payload
            assert 0 <= engine.queued_bytes <= LIMITS.session_send_buffer + frames_apart
            assert engine.queued_bytes == sum(end.stream.queued_bytes for end in side.ends)
            windows = INITIAL_WINDOW * LIMITS.max_streams + LIMITS.session_window_budget
            assert 0 <= engine.unread_bytes <= windows
            for end in side.ends:
                assert 0 <= end.stream.queued_bytes <= LIMITS.stream_send_buffer

    def check_end(self) -> None:
        """Everybody reads to the end and finishes: then nothing may be left anywhere."""
        quiet = 0
        while quiet < 3:
            quiet += not any(side.engine.stream_count for side in self.sides)
            self.rounds += 1
            assert self.rounds < 200, "some stream never ends"
            for side in self.sides:
                while self.accept(side):
                    pass
                for end in side.ends:
                    while self.take(end, 65_536):
                        pass
                    self.finish(end)
            self.settle()
        for side in self.sides:
            for end in side.ends:
                if end.stream.id not in self.may_break and end.stream.id in self.accepted:
                    assert end.receiving.ended, f"{end.stream} never came to its end"
            engine = side.engine
            assert engine.stream_count == engine.unacked_opens == engine.accept_pending == 0
            assert engine.queued_bytes == engine.unread_bytes == 0
            assert not engine.wants_send
            assert engine.is_closed == self.drained


def act(world: World, given: FuzzInput) -> None:
    """One step of somebody's: the low bit says which side, the next four what."""
    code = given.number()
    index, what, third = code & 1, code >> 1 & 15, code >> 5
    side = world.sides[index]
    if what == 0:
        world.flush(index, (65_536, 20, 100, 1_500)[third & 3])
    elif what == 1:
        world.deliver(index, (1 << 20, 1, 11, 12, 13, 500, 4_500, 70_000)[third])
    elif what == 2:
        world.settle()
    elif what == 3:
        world.wait((0.01, 0.3, 1.0, 3.0, 11.0, 19.0, 21.0, 50.0)[third])
    elif what == 4:
        world.open(side)
    elif what == 5:
        world.accept(side)
    elif what == 6 and third == 7:
        world.drained = True
        side.engine.go_away()
    elif what == 6:
        if not side.engine.is_closed:
            side.engine.ping(world.now)
    elif side.ends:
        use(world, side.ends[third % len(side.ends) - 1], what, given)


def use(world: World, end: End, what: int, given: FuzzInput) -> None:
    if what in (7, 8, 9):
        world.send(end, (1, 300, 50_000)[what - 7])
    elif what in (10, 11):
        world.take(end, (299, 1 << 20)[what - 10])
    elif what == 12:
        world.finish(end)
    elif what == 13:
        world.give_up(end, given.number() % 3, given.number())
    elif what == 14:  # windows empty and fill
        others = [e for s in world.sides for e in s.ends if e.sending is end.receiving]
        for _ in range(given.number() & 31):
            world.send(end, 40_000)
            world.settle()
            for other in others:
                if other is not end:
                    world.take(other, 50_000)
    else:
        world.send(end, given.number(2))


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    world = World()
    for _ in range(MOST_STEPS):
        if not given.left:
            break
        act(world, given)
        world.check()
    world.settle()
    world.check_end()
