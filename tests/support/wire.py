"""Yamux frames by hand: a codec for the tests that shares no code with the one under test."""

from __future__ import annotations

import struct
from typing import NamedTuple

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
INITIAL_WINDOW = 262_144
HEADER_SIZE = 12

_TYPE_NAMES = ("DATA", "WU", "PING", "GOAWAY")
_FLAG_NAMES = ((SYN, "SYN"), (ACK, "ACK"), (FIN, "FIN"), (RST, "RST"))


class Frame(NamedTuple):
    """One frame. `length` is the wire field, whatever it means for this type."""

    type: int
    flags: int
    stream_id: int
    length: int
    body: bytes = b""

    def pack(self) -> bytes:
        return (
            struct.pack(">BBHII", 0, self.type, self.flags, self.stream_id, self.length) + self.body
        )

    def __repr__(self) -> str:
        names = [_TYPE_NAMES[self.type] if self.type < 4 else f"TYPE{self.type}"]
        names += [name for bit, name in _FLAG_NAMES if self.flags & bit]
        return f"<{'|'.join(names)} id={self.stream_id} length={self.length}>"


def data(stream_id: int, body: bytes = b"", flags: int = 0) -> Frame:
    """A Data frame with its whole body."""
    return Frame(DATA, flags, stream_id, len(body), body)


def update(stream_id: int, delta: int = 0, flags: int = 0) -> Frame:
    """A window update: *delta* more bytes for the peer."""
    return Frame(WINDOW_UPDATE, flags, stream_id, delta)


def reset(stream_id: int, code: int = 0) -> Frame:
    """A reset as everybody sends it: a window update whose length is the code."""
    return Frame(WINDOW_UPDATE, RST, stream_id, code)


def ping(value: int, flags: int = SYN, stream_id: int = 0) -> Frame:
    """A ping request (or, with ACK, an answer)."""
    return Frame(PING, flags, stream_id, value)


def pong(value: int) -> Frame:
    """The answer to a ping."""
    return Frame(PING, ACK, 0, value)


def go_away(code: int = 0, stream_id: int = 0) -> Frame:
    """The end of a session, or with code 0 the wish for no more streams."""
    return Frame(GO_AWAY, 0, stream_id, code)


def pack(*frames: Frame | bytes) -> bytes:
    """All frames after one another; bytes stand for themselves."""
    return b"".join(frame if isinstance(frame, bytes) else frame.pack() for frame in frames)


class FrameReader:
    """Takes a byte stream apart into frames, however it is cut."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._pending)

    def unfinished(self) -> Frame | None:
        """The header of the frame whose body is still coming, if one is."""
        if len(self._pending) < HEADER_SIZE:
            return None
        _, type_, flags, stream_id, length = struct.unpack_from(">BBHII", self._pending)
        return Frame(type_, flags, stream_id, length)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames completed by *chunk*."""
        self._pending += chunk
        frames = []
        while len(self._pending) >= HEADER_SIZE:
            version, type_, flags, stream_id, length = struct.unpack_from(">BBHII", self._pending)
            assert version == 0, f"version {version} on the wire"
            size = HEADER_SIZE + (length if type_ == DATA else 0)
            if len(self._pending) < size:
                break
            body = bytes(self._pending[HEADER_SIZE:size])
            frames.append(Frame(type_, flags, stream_id, length, body))
            del self._pending[:size]
        return frames


def unpack(data: bytes) -> list[Frame]:
    """The frames in *data*, which must end with the last of them."""
    reader = FrameReader()
    frames = reader.feed(data)
    assert not reader.pending, f"{reader.pending} bytes after the last whole frame"
    return frames
