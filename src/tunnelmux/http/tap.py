"""Observe one exchange, and the messages of a WebSocket in it."""

from __future__ import annotations

from typing import Protocol

import trio

from tunnelmux.http.head import ResponseHead
from tunnelmux.relay import abort

__all__ = ["MessageCounter", "Tap", "TappedStream"]

_CONTROL = 0x8


class Tap(Protocol):
    """Gets the parts of an exchange as they pass. Its methods must not raise or wait."""

    def asked(self, data: bytes) -> None:
        """Content of the request, or bytes from the visitor after a change of protocol."""

    def began(self, head: ResponseHead) -> None:
        """The final head of the answer, or that of the change of protocol."""

    def answered(self, data: bytes) -> None:
        """Content of the answer, or bytes to the visitor after a change of protocol."""


class TappedStream(trio.abc.HalfCloseableStream):
    """Wraps a stream after a change of protocol, and reports its bytes to a Tap."""

    def __init__(self, stream: trio.abc.Stream, tap: Tap) -> None:
        self._stream = stream
        self._tap = tap

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._tap.asked(bytes(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        else:
            await self._stream.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._tap.answered(bytes(data))
        return data

    async def aclose(self) -> None:
        """Close it; by force, with a reset."""
        try:
            # A stream that closes at once would have told its peer of a good end by then.
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._stream.aclose()
        except trio.Cancelled:
            await abort(self._stream)
            raise


class MessageCounter:
    """Counts the messages in one direction of a WebSocket (RFC 6455 section 5.2) without decoding
    their payload.
    """

    def __init__(self) -> None:
        self.count = 0
        self._head = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> None:
        """The next bytes of it."""
        at = 0
        while at < len(data):
            if self._skip:
                part = min(self._skip, len(data) - at)
                self._skip -= part
                at += part
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) < 2 or len(self._head) < self._head_size():
                continue
            head, self._head = bytes(self._head), bytearray()
            self._skip = self._length(head)
            self.count += bool(head[0] & 0x80) and head[0] & 0x0F < _CONTROL

    def _head_size(self) -> int:
        length = self._head[1] & 0x7F
        more = 2 if length == 126 else 8 if length == 127 else 0
        return 2 + more + (4 if self._head[1] & 0x80 else 0)

    @staticmethod
    def _length(head: bytes) -> int:
        length = head[1] & 0x7F
        if length == 126:
            return int.from_bytes(head[2:4], "big")
        if length == 127:
            return int.from_bytes(head[2:10], "big")
        return length
