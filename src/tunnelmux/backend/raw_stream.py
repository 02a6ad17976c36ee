"""A connection to a proxy's internal API that has become a stream to a device."""

from __future__ import annotations

import socket

import trio

from tunnelmux.transports.tcp import take_socket

__all__ = ["RawStream"]


class RawStream(trio.abc.HalfCloseableStream):
    """A connection after the answer's head, as a stream. Over TLS, `send_eof` closes both
    directions.
    """

    def __init__(self, stream: trio.abc.Stream, early: bytes) -> None:
        self._stream = stream
        self._early = early

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        else:
            await self._stream.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._early:
            cut = len(self._early) if max_bytes is None else max_bytes
            data, self._early = self._early[:cut], self._early[cut:]
            await trio.lowlevel.checkpoint()
            return data
        return await self._stream.receive_some(max_bytes)

    def take_socket(self) -> tuple[socket.socket, bytes] | None:
        """See `transports.tcp.take_socket`."""
        taken = take_socket(self._stream)
        if taken is None:
            return None
        sock, below = taken
        early, self._early = self._early, b""
        return sock, early + below

    async def aclose(self) -> None:
        await self._stream.aclose()
