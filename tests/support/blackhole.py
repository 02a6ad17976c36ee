"""A network that swallows bytes: connections stay up, and nothing arrives any more.

`BlackholeRelay` is a real TCP relay; `Blackhole` does the same to streams in memory. Both carry
everything until `swallow()` is called, and from then on drop bytes, ends and resets in both
directions, as a NAT that forgot a mapping or a pulled cable does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tunnelmux.transports import memory_stream_pair

__all__ = ["Blackhole", "BlackholeRelay", "blackhole_relay"]


class Blackhole:
    """The switch for any number of streams in memory; wrap both ends of each."""

    def __init__(self) -> None:
        self.swallows = False

    def swallow(self) -> None:
        """From now on nothing arrives."""
        self.swallows = True

    def pair(self) -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
        """Two connected streams through this network."""
        left, right = memory_stream_pair()
        return _ThroughBlackhole(left, self), _ThroughBlackhole(right, self)


class _ThroughBlackhole(trio.abc.HalfCloseableStream):
    """Loses what it is given to send once the network swallows. A close is felt here only."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, network: Blackhole) -> None:
        self._stream = stream
        self._network = network
        self._closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed.is_set():
            raise trio.ClosedResourceError
        if self._network.swallows:
            await trio.lowlevel.checkpoint()
        else:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if not self._network.swallows:
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._closed.is_set():
            raise trio.ClosedResourceError
        result: bytes | bytearray | None = None

        async def receive(scope: trio.CancelScope) -> None:
            nonlocal result
            result = await self._stream.receive_some(max_bytes)
            scope.cancel()

        async def watch_close(scope: trio.CancelScope) -> None:
            await self._closed.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, nursery.cancel_scope)
            nursery.start_soon(watch_close, nursery.cancel_scope)
        if result is None:
            raise trio.ClosedResourceError
        return result

    async def aclose(self) -> None:
        self._closed.set()
        if not self._network.swallows:
            await self._stream.aclose()
        await trio.lowlevel.checkpoint()


class BlackholeRelay:
    """A TCP relay on the loopback interface; made by `blackhole_relay`."""

    def __init__(self, listener: trio.SocketListener, host: str, port: int) -> None:
        self._listener = listener
        self._target = (host, port)
        self.swallows = False
        self.connections = 0
        """How many were carried so far."""

    @property
    def port(self) -> int:
        """Where to connect instead of to the target."""
        return int(self._listener.socket.getsockname()[1])

    def swallow(self) -> None:
        """From now on read everything and pass nothing on; connections stay open."""
        self.swallows = True

    def restore(self) -> None:
        """Carry new connections again; old ones have lost bytes and stay silent."""
        self.swallows = False

    async def _carry(self, near: trio.SocketStream) -> None:
        self.connections += 1
        lost = [self.swallows]
        async with (
            near,
            await trio.open_tcp_stream(*self._target) as far,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._copy, near, far, lost)
            nursery.start_soon(self._copy, far, near, lost)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, lost: list[bool]
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65_536):
                lost[0] = lost[0] or self.swallows
                if not lost[0]:
                    await sink.send_all(data)
            if not (lost[0] or self.swallows):
                await sink.send_eof()
                return
        if lost[0] or self.swallows:
            await trio.sleep_forever()  # an end is swallowed too; until the relay is gone


@asynccontextmanager
async def blackhole_relay(port: int, host: str = "127.0.0.1") -> AsyncIterator[BlackholeRelay]:
    """A relay in front of `host`:`port` for the length of the block."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    relay = BlackholeRelay(listener, host, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, relay._carry, [listener])
        yield relay
        nursery.cancel_scope.cancel()
