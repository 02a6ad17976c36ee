"""An SSH channel joined to a Trio stream, for `-W`, `-L` and `-J`.

Each direction ends by itself (EOF for FIN). A side that takes nothing holds the other back: the
channel by its window, the stream because it is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from tunnelmux.gateway.buffered_channel import BufferedChannel
from tunnelmux.gateway.guest import Bridge

__all__ = ["Forward"]


class Forward(BufferedChannel):
    """One channel and one stream. `when_over` is called in Trio once both are closed."""

    def __init__(
        self,
        bridge: Bridge,
        stream: trio.abc.HalfCloseableStream,
        when_over: Callable[[Forward], object],
    ) -> None:
        super().__init__(bridge)
        self.sent = 0
        """Bytes to the service."""
        self.received = 0
        """Bytes from it."""
        self._stream = stream
        self._when_over = when_over

    def cut(self, _reason: str) -> None:
        """End both at once. SSH has no field for the reason."""
        if self._channel is not None and not self._is_lost:
            self._channel.abort()

    def connection_made(self, chan: Any) -> None:
        super().connection_made(chan)
        self._bridge.spawn(self._run)

    async def _run(self) -> None:
        is_broken = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._from_stream)
                await self._from_channel()
                if self._is_lost:
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            is_broken = True
        finally:
            if is_broken:
                self._channel.abort()
            else:
                self._channel.close()
            self._when_over(self)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _from_channel(self) -> None:
        """Copy until the channel's EOF, or its end."""
        while True:
            # No deadline: a forward lasts until its user closes it or loses access.
            await self._something.wait()
            self._something = trio.Event()
            while self._waiting and not self._is_lost:
                data = b"".join(self._waiting)
                self._waiting.clear()
                self._took(len(data))
                await self._stream.send_all(data)
                self.sent += len(data)
            if self._is_lost:
                return
            if self._is_eof and not self._waiting:
                await self._stream.send_eof()
                return

    async def _from_stream(self) -> None:
        """Copy until the stream's FIN."""
        async for data in self._stream:
            if self._is_lost:
                return
            self._channel.write(bytes(data))
            self.received += len(data)
            await self._may_write.wait()
        if not self._is_lost:
            self._channel.write_eof()
