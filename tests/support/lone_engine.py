"""One engine and, in place of its peer, a hand that writes frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from support import wire
from support.referee import Referee
from support.wire import Frame, FrameReader, pack
from tunnelmux.errors import RemoteProtocolError

if TYPE_CHECKING:
    from tunnelmux.yamux.engine import Engine
    from tunnelmux.yamux.streams import EngineStream

Feeding = Literal["whole", "bytewise", "trailing"]
FEEDINGS: tuple[Feeding, ...] = ("whole", "bytewise", "trailing")
TRAILING_PING = 0x7A11_B17E
KIB = 1024


@dataclass
class LoneEngine:
    """Feeds *engine* and reads what it answers; every answer passes the referee.

    `feeding` says how frames arrive: in one piece, one byte at a time, or in one piece together
    with a ping that follows them (whose answer is then taken out again, so that a case reads the
    same for all three).
    """

    engine: Engine
    feeding: Feeding = "whole"
    now: float = 0.0
    judged: bool = True

    def __post_init__(self) -> None:
        self.referee = Referee(is_client=self.engine.is_client)
        self._observer = FrameReader()

    # -- the peer's side -------------------------------------------------------------------------

    def feed(self, *frames: Frame | bytes) -> None:
        """Give the engine frames from the peer, cut as `feeding` says."""
        if self.feeding == "bytewise":
            for frame in frames:
                for piece in _single_bytes(pack(frame)):
                    self.feed_raw(piece)
        else:
            trailing = [wire.ping(TRAILING_PING)] if self.feeding == "trailing" else []
            self.feed_raw(pack(*frames, *trailing))

    def feed_raw(self, data: bytes) -> None:
        """Give the engine these bytes in one piece, and nothing else."""
        if self.judged and not self.engine.is_closed:
            for frame in self._observer.feed(data):
                self.referee.received(frame)
        self.engine.receive_data(data, self.now)

    def feed_fatal(self, *frames: Frame | bytes) -> RemoteProtocolError:
        """Feed what must end the session; the engine must then be closed with that very error."""
        try:
            self.feed(*frames)
        except RemoteProtocolError as error:
            assert self.engine.error is error
            assert self.engine.is_closed
            return error
        raise AssertionError("the engine accepted what breaks the protocol")

    # -- the wire --------------------------------------------------------------------------------

    def sent(self, max_bytes: int = 65_536) -> list[Frame]:
        """Everything the engine wants to send now."""
        frames: list[Frame] = []
        while self.engine.wants_send:
            chunk = self.engine.data_to_send(self.now, max_bytes)
            assert len(chunk) <= max_bytes
            if not chunk:
                break  # what was due no longer is
            frames += wire.unpack(chunk)
        assert not self.engine.wants_send
        assert self.engine.data_to_send(self.now) == b""
        if self.judged:
            for frame in frames:
                self.referee.sent(frame)
        return [frame for frame in frames if frame != wire.pong(TRAILING_PING)]

    def sent_for(self, stream_id: int) -> list[Frame]:
        """Everything the engine wants to send now, that one stream's frames only."""
        return [frame for frame in self.sent() if frame.stream_id == stream_id]

    # -- the application's side ------------------------------------------------------------------

    def open(self) -> EngineStream:
        """A stream of ours whose SYN has left and which the peer has acknowledged."""
        stream = self.opening()
        self.feed(wire.update(stream.id, flags=wire.ACK))
        self.sent()
        return stream

    def opening(self) -> EngineStream:
        """A stream of ours whose SYN has left, unanswered."""
        stream = self.engine.open_stream(self.now)
        self.sent()
        return stream

    def accept(self) -> EngineStream:
        """The next stream of the peer's; there must be one."""
        stream = self.engine.accept_stream()
        assert stream is not None, "no stream to accept"
        return stream

    def accepted(self, stream_id: int = 1) -> EngineStream:
        """A stream the peer opens now, accepted and acknowledged."""
        self.feed(wire.update(stream_id, flags=wire.SYN))
        stream = self.accept()
        assert stream.id == stream_id
        assert self.sent() == [wire.update(stream_id, flags=wire.ACK)]
        return stream

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping wherever the engine asked to be called."""
        until = self.now + seconds
        while True:
            deadline = self.engine.next_deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.engine.handle_deadline(self.now)
            again = self.engine.next_deadline()
            assert again is None or again > deadline, "the same deadline again: a busy loop"
        self.now = until


def _single_bytes(data: bytes) -> list[bytes]:
    """*data* byte by byte, but for the middle of a long body, which would only take time."""
    if len(data) <= 8 * KIB:
        return [data[i : i + 1] for i in range(len(data))]
    ends = [_single_bytes(data[:100]), _single_bytes(data[-100:])]
    return [*ends[0], data[100:-100], *ends[1]]


def read_all(stream: EngineStream) -> bytes:
    """What can be read now, without waiting and up to the end."""
    parts: list[bytes] = []
    while True:
        part = stream.receive(65_536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def send_all(stream: EngineStream, data: bytes) -> None:
    """Queue all of *data*, which must fit."""
    assert stream.send(data) == len(data)


class MakeLone(Protocol):
    """Makes a `LoneEngine` of the implementation and the feeding under test."""

    def __call__(
        self,
        *,
        is_client: bool = False,
        judged: bool = True,
        first_stream_id: int | None = None,
        **limits: object,
    ) -> LoneEngine: ...
