"""Memory streams that can be reset, as yamux streams and sockets can."""

from __future__ import annotations

import trio

from tunnelmux.transports.memory import MemoryStream, memory_stream_pair

__all__ = ["ResettableStream", "resettable_pair"]


class _Link:
    def __init__(self) -> None:
        self.was_reset = False


class ResettableStream(trio.abc.HalfCloseableStream):
    """A memory stream with `reset()`; after it both ends raise BrokenResourceError."""

    def __init__(self, inner: MemoryStream, link: _Link) -> None:
        self._inner = inner
        self._link = link
        self.sent_eof = False
        self.is_closed = False
        self.received = 0

    @property
    def was_reset(self) -> bool:
        return self._link.was_reset

    def reset(self) -> None:
        if not self.is_closed:
            self._link.was_reset = True
        self.is_closed = True
        self._inner.close()

    def _check(self) -> None:
        if self._link.was_reset and not self.is_closed:
            raise trio.BrokenResourceError("the stream was reset by the peer")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        self._check()
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        self._check()
        self.sent_eof = True
        await self._inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check()
        data = await self._inner.receive_some(max_bytes)
        if not data:
            self._check()
        self.received += len(data)
        return data

    async def aclose(self) -> None:
        self.is_closed = True
        await self._inner.aclose()


def resettable_pair(capacity: int | None = None) -> tuple[ResettableStream, ResettableStream]:
    """Two connected streams, each direction holding at most `capacity` unread bytes."""
    a, b = memory_stream_pair(capacity)
    link = _Link()
    return ResettableStream(a, link), ResettableStream(b, link)
