"""Gathers what asyncssh writes in one turn of its loop, and writes it to the socket in one piece.

asyncssh writes each packet on its own, with an SSH_MSG_IGNORE before it. Without this, a command
takes ten system calls, and each wakes the server.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["GatheringTransport", "Way"]


class Way:
    """Gives asyncssh, as its `tunnel`, a socket that is connected already."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, _port: int
    ) -> tuple[asyncio.BaseTransport, asyncio.Protocol]:
        """Put the protocol on the socket; its transport owns the socket from then on."""
        protocol = factory()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: _Between(protocol), sock=self._sock)
        return transport, protocol


class _Between(asyncio.Protocol):
    """Passes all callbacks on, with a GatheringTransport in place of the transport."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._protocol.connection_made(GatheringTransport(transport))

    # BackPressure has replaced these meanwhile.

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class GatheringTransport(asyncio.Transport):
    """A transport that keeps what is written until the loop's next turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []

    @property
    def max_size(self) -> int | None:
        """Bytes that are read at once; None where the transport below does not say."""
        size = getattr(self._transport, "max_size", None)
        return size if isinstance(size, int) else None

    @max_size.setter
    def max_size(self, size: int) -> None:
        # asyncio's transports of sockets have it, though its types do not say so.
        setattr(self._transport, "max_size", size)  # noqa: B010

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it. The windows of channels bound how much there is of data, and BackPressure how
        much of all else."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(bytes(data))

    def _flush(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._transport.write(data)

    def close(self) -> None:
        """Close it once all is written."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close it now."""
        self._pieces.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        """Bytes that are written and not sent."""
        return sum(map(len, self._pieces)) + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The same as of the socket's transport."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()
