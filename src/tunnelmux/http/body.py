"""Where a message body ends (RFC 9112 6.3 and 7.1), without I/O.

A decoder takes the bytes that follow a head and returns the content among them. It holds at most
one unfinished line, or the trailer section.
"""

from __future__ import annotations

import re
from typing import Protocol

import h11

from tunnelmux.http.head import Field, HeadReader
from tunnelmux.limits import IngressLimits
from tunnelmux.pump.chunks import whole_chunks

__all__ = [
    "BadBody",
    "BodyDecoder",
    "BodyTooLong",
    "ChunkedBody",
    "LengthBody",
    "UntilEndBody",
    "encode_chunk",
    "parse_trailers",
]

MAX_CHUNK_LINE = 256
"""Bytes of a chunk's size line. Chunk extensions are not in use, so accepting long ones would only
waste bandwidth.
"""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class BadBody(Exception):
    """A body that breaks its own framing, or ends too early. The message says how."""


class BodyTooLong(BadBody):
    """A body that has more bytes than its reader takes."""


class BodyDecoder(Protocol):
    """The interface of all decoders."""

    done: bool
    """Whether the body is complete."""

    rest: bytes
    """Once done: the bytes after the body."""

    trailers: list[Field]
    """Once done: the trailer fields."""

    def feed(self, data: bytes) -> bytes:
        """Add bytes; returns the content among them, which may be empty. Raises BadBody."""

    def feed_eof(self) -> None:
        """The connection has ended. Raises BadBody when the body is incomplete."""


class LengthBody:
    """A body of exactly `length` bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""
        self.trailers: list[Field] = []

    def feed(self, data: bytes) -> bytes:
        if len(data) < self._left:
            self._left -= len(data)
            return data
        self.rest = data[self._left :]
        self.done = True
        return data[: self._left] if self.rest else data

    def feed_eof(self) -> None:
        if not self.done:
            raise BadBody(f"the body ended {self._left} bytes before its Content-Length")


class UntilEndBody:
    """A response body that ends when its connection does."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[Field] = []

    def feed(self, data: bytes) -> bytes:
        return data

    def feed_eof(self) -> None:
        self.done = True


class ChunkedBody:
    """A body in chunks. Reads CRLF only, hexadecimal digits only, and no overlong lines."""

    def __init__(
        self, max_trailer_bytes: int, max_trailers: int = IngressLimits().max_head_fields
    ) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[Field] = []
        self._max_trailer_bytes = max_trailer_bytes
        self._max_trailers = max_trailers
        self._section = HeadReader()  # the trailer section, as far as it came
        self._left = 0  # content bytes of this chunk still to come
        self._line = bytearray()  # an unfinished size line
        self._held = b""  # half of the line end behind a chunk
        self._step = self._read_size

    def feed(self, data: bytes) -> bytes:
        if self._left > len(data):  # the common case of a large chunk: nothing to look at
            self._left -= len(data)
            return data
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        at = 0
        while not self.done and at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            if self._step == self._read_size and not self._line:
                # A peer may send a thousand chunks in a read: none of these costs a step here.
                content, at = whole_chunks(data, at)
                if content:
                    pieces.append(content)
                if at == len(data):
                    break
            moved = self._step(data, at)
            if moved < 0:
                self._held = data[at:]
                break
            at = moved
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def feed_eof(self) -> None:
        if not self.done:
            raise BadBody("the body ended before its last chunk")

    # Each step reads one element at `at` and answers where the next one begins, or -1 for "not
    # all here yet".

    def _read_size(self, data: bytes, at: int) -> int:
        longest = MAX_CHUNK_LINE + 2 - len(self._line)
        end = data.find(b"\n", at, at + longest)
        if end < 0:
            if len(data) - at >= longest:
                raise BadBody("a chunk's size line is too long")
            self._line += data[at:]
            return len(data)
        line = bytes(self._line) + data[at : end + 1]
        self._line.clear()
        if not line.endswith(b"\r\n"):
            raise BadBody("a chunk's size line ends in LF without CR")
        match = _CHUNK_LINE.fullmatch(line, 0, len(line) - 2)
        if match is None:
            raise BadBody(f"a chunk's size line is {line[:-2][:40]!r}")
        self._left = int(match[1], 16)
        self._step = self._read_chunk_end if self._left else self._read_trailers
        return end + 1

    def _read_chunk_end(self, data: bytes, at: int) -> int:
        found = data[at : at + 2]
        if not b"\r\n".startswith(found):
            raise BadBody("a chunk is longer than its size says")
        if len(found) < 2:
            return -1
        self._step = self._read_size
        return at + 2

    def _read_trailers(self, data: bytes, at: int) -> int:
        section = self._section
        before = len(section)
        section.add(data[at:])
        start = section.begins(2)
        if start == b"\r\n":
            end = 2
        else:
            end = section.end()
            if not b"\r\n".startswith(start) and end < 0 and len(section) > self._max_trailer_bytes:
                raise BadBody("the trailer section is too long")
            if end < 0:
                return len(data)
            raw, _ = section.split(end)
            self.trailers = parse_trailers(raw, self._max_trailers)
        self.done = True
        at += end - before
        self.rest = data[at:]
        return at


def parse_trailers(raw: bytes, max_fields: int) -> list[Field]:
    """The fields of a trailer section, which ends with its blank line. Raises BadBody."""
    if not raw.endswith(b"\r\n\r\n"):
        raise BadBody("a trailer line ends in LF without CR")
    lines = raw[:-4].split(b"\r\n")
    if len(lines) > max_fields:
        raise BadBody(f"there are more than {max_fields} trailer fields (limits.max_head_fields)")
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadBody("a trailer line has no colon")
        # Framing fields mean nothing here (RFC 9110 6.5.1), not even when they are malformed.
        if name.lower() not in (b"content-length", b"transfer-encoding"):
            fields.append((name, value.strip(b" \t")))
    try:
        return h11.EndOfMessage(headers=fields).headers.raw_items()
    except h11.LocalProtocolError as exc:
        raise BadBody(f"a trailer field is malformed: {exc}") from None


def encode_chunk(data: bytes) -> bytes:
    """`data` as one chunk. Must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
