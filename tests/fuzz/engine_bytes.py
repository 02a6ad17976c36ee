"""Any bytes from the peer, cut anywhere, are accepted or end the session with RemoteProtocolError.

Whatever the application does beside it meets documented errors only, nothing grows past its limit,
and all that the engine says is what every known peer accepts (`support.referee`).
"""

from __future__ import annotations

import struct

from support.fuzz_input import FuzzInput
from support.referee import Referee
from support.wire import (
    DATA,
    FIN,
    GO_AWAY,
    HEADER_SIZE,
    INITIAL_WINDOW,
    RST,
    SYN,
    Frame,
    FrameReader,
)
from tunnelmux.errors import RemoteProtocolError, SessionError, StreamError
from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream

SMALL = Limits(
    max_streams=5,
    accept_backlog=3,
    max_unacked_opens=2,
    pending_resets=4,
    pending_pongs=2,
    max_stray_frames=6,
    max_pings_per_second=5,
    stream_send_buffer=3_000,
    session_send_buffer=7_000,
    max_frame_payload=900,
    session_window_budget=300_000,
    ack_delay=2.0,
    linger=5.0,
)
DEFAULT = Limits()
FILLER = bytes(range(256)) * 1_200
MOST_STEPS = 300


class HeaderReader:
    """Headers out of a byte stream as soon as they are whole, bodies passed over.

    A FIN counts when the body before it has come, so it is given out then, on a frame of its own.
    """

    def __init__(self) -> None:
        self._header = b""
        self._last = Frame(0, 0, 0, 0)
        self.body_left = 0
        """Bytes that are still to come of the last frame's body."""

    def feed(self, data: bytes) -> list[Frame]:
        found = []
        while data:
            if self.body_left:
                skipped = min(self.body_left, len(data))
                self.body_left -= skipped
                data = data[skipped:]
                if not self.body_left and self._last.flags & FIN:
                    found.append(self._last._replace(flags=FIN, length=0))
                continue
            want = HEADER_SIZE - len(self._header)
            self._header += data[:want]
            data = data[want:]
            if len(self._header) == HEADER_SIZE:
                _, type_, flags, stream_id, length = struct.unpack(">BBHII", self._header)
                self._header = b""
                self._last = frame = Frame(type_, flags, stream_id, length)
                if type_ == DATA and length:
                    self.body_left = length
                    frame = frame._replace(flags=flags & ~FIN)
                found.append(frame)
        return found


class HostileReferee(Referee):
    """A peer that opens an id again before it heard of its refusal gets a refusal for each."""

    def __init__(self, *, is_client: bool) -> None:
        super().__init__(is_client=is_client)
        self._repeated: list[int] = []

    def received(self, frame: Frame) -> None:
        seen = self.streams.get(frame.stream_id)
        if frame.flags & SYN and seen is not None and not seen.sent_rst:
            self._repeated.append(frame.stream_id)
        super().received(frame)

    def sent(self, frame: Frame) -> None:
        seen = self.streams.get(frame.stream_id)
        refused = frame.flags == RST and seen is not None and seen.sent_rst
        if refused and frame.stream_id in self._repeated:
            self._repeated.remove(frame.stream_id)
            return
        super().sent(frame)


class Application:
    """Uses the session in the ways the input says, and looks at everything."""

    def __init__(self, given: FuzzInput) -> None:
        setting = given.number()
        self.given = given
        self.limits = SMALL if setting & 2 else DEFAULT
        self.engine = Engine(is_client=bool(setting & 1), limits=self.limits)
        self.cut = (1 << 20, 1, 7, 12)[setting >> 2 & 3]
        self.now = 0.0
        self.drained = False
        self.streams: list[EngineStream] = []
        self.referee = HostileReferee(is_client=self.engine.is_client)
        self.heard = HeaderReader()
        self.said = FrameReader()
        self.frames: list[Frame] = []

    def hears(self, data: bytes, cut: int) -> None:
        """The peer sends *data*, in pieces of *cut* bytes."""
        for at in range(0, len(data), cut):
            if self.engine.is_closed:
                return
            piece = data[at : at + cut]
            for frame in self.heard.feed(piece):
                self.referee.received(frame)
            try:
                self.engine.receive_data(piece, self.now)
            except RemoteProtocolError as error:
                assert self.engine.error is error

    def acts(self, act: int) -> None:
        """One thing that an application or the clock does."""
        engine = self.engine
        stream = self.streams[act >> 4] if act >> 4 < len(self.streams) else None
        kind = act & 15
        if kind == 0:
            self.flush()
        elif kind == 1:
            self.now += (0.01, 1.0, 6.0, 11.0)[act >> 4 & 3]
            engine.handle_deadline(self.now)
        elif kind == 2 and (accepted := engine.accept_stream()) is not None:
            self.streams.append(accepted)
        elif kind == 3 and engine.can_open:
            self.streams.append(engine.open_stream(self.now))
        elif kind == 4:
            engine.ping(self.now)
        elif kind == 5 and act >> 4 == 15:
            self.drained = True
            engine.go_away()
        elif kind == 6 and act >> 4 == 15:
            engine.receive_eof(self.now)
        elif stream is not None:
            self.uses(stream, kind)

    def uses(self, stream: EngineStream, kind: int) -> None:
        if kind in (7, 8):
            readable = stream.readable
            size = 1 if kind == 7 else 1 << 20
            data = stream.receive(size)
            assert (data is not None) == readable
            assert data is None or len(data) <= size
        elif kind in (9, 10):
            writable = stream.writable
            taken = stream.send(FILLER[: 1 if kind == 9 else 4_000])
            assert (taken > 0) == writable
        elif kind == 11:
            stream.finish()
        elif kind == 12:
            stream.stop_receiving()
        elif kind == 13:
            stream.close(self.now)
        elif kind == 14:
            stream.reset(5)

    def flush(self) -> None:
        """The transport takes all there is."""
        for _ in range(10_000):
            if not self.engine.wants_send:
                return
            for frame in self.said.feed(self.engine.data_to_send(self.now)):
                self.referee.sent(frame)
                self.frames.append(frame)
            assert not self.said.pending, "half a frame left the engine"
        raise AssertionError("the engine never stops wanting to send")

    def check(self) -> None:
        """What holds whatever the peer says."""
        engine, limits = self.engine, self.limits
        assert 0 <= engine.stream_count <= limits.max_streams
        assert 0 <= engine.accept_pending <= limits.accept_backlog
        assert 0 <= engine.unacked_opens <= limits.max_unacked_opens
        frames_apart = limits.max_streams * limits.max_frame_payload
        assert 0 <= engine.queued_bytes <= limits.session_send_buffer + frames_apart
        windows = INITIAL_WINDOW * limits.max_streams + limits.session_window_budget
        assert 0 <= engine.unread_bytes <= windows
        for stream in self.streams:
            assert 0 <= stream.queued_bytes <= limits.stream_send_buffer
            if stream.error is None:
                held = stream.unread_bytes + stream.receive_credit
                assert held <= limits.max_stream_window
        at = engine.next_deadline()
        assert at is None or not engine.is_closed


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    application = Application(given)
    for _ in range(MOST_STEPS):
        if not given.left:
            break
        act = given.number()
        if act & 15 == 15:  # bytes of the peer's: so many as they are, then so many of a body
            application.hears(given.take(12 * (act >> 4) + 12), application.cut)
        elif act == 0x05:
            application.hears(given.take(given.number()), application.cut)
        elif act == 0x06:
            size = min(given.number(2) * 5, application.heard.body_left)
            application.hears(FILLER[:size], 1 << 20)
        else:
            try:
                application.acts(act)
            except (SessionError, StreamError) as error:
                assert type(error) is not RemoteProtocolError or error is application.engine.error
        application.check()
    finish(application)


def finish(application: Application) -> None:
    """The end of the session is said, and leaves nothing behind."""
    engine = application.engine
    application.flush()
    if isinstance(engine.error, RemoteProtocolError):
        (said,) = [frame for frame in application.frames if frame.type == GO_AWAY]
        assert said.length == 1 or application.drained
    engine.close()
    application.flush()
    for stream in application.streams:
        while True:
            try:
                if not stream.receive(1 << 20):
                    break
            except (SessionError, StreamError):
                break
    assert engine.is_closed
    assert engine.next_deadline() is None
    counts = engine.stream_count, engine.unacked_opens, engine.accept_pending, engine.queued_bytes
    assert counts == (0, 0, 0, 0)
    assert engine.unread_bytes == 0
    engine.receive_data(b"\xff" * 30, application.now)
    assert not engine.wants_send
