"""A visitor and a target in memory, with the HTTP code under test between them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from support.resettable import ResettableStream, resettable_pair
from tunnelmux.http import Exchange, RequestHead, ServerConnection, Upstream, serve_requests
from tunnelmux.http.fields import end_to_end
from tunnelmux.limits import IngressLimits

__all__ = ["Peer", "Rig", "running_rig"]


class Peer:
    """One outer end: raw bytes out, and what comes in taken apart by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def end(self) -> None:
        assert isinstance(self.stream, trio.abc.HalfCloseableStream)
        await self.stream.send_eof()

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`; fails at the end of the stream."""
        while mark not in self._buffer:
            data = await self.stream.receive_some()
            assert data, f"ended after {self._buffer!r}"
            self._buffer += data
        head, found, self._buffer = self._buffer.partition(mark)
        return head + found

    async def read_head(self) -> bytes:
        return await self.read_until(b"\r\n\r\n")

    async def read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self.stream.receive_some()
            assert data, f"ended after {self._buffer!r}"
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def read_all(self) -> bytes:
        """What is left until a clean end; raises BrokenResourceError at a cut."""
        while data := await self.stream.receive_some():
            self._buffer += data
        data, self._buffer = self._buffer, b""
        return data

    async def read_chunk(self) -> bytes:
        """One chunk's content; b"" for the last one, whose trailers are left to read."""
        size = int(await self.read_until(b"\r\n"), 16)
        data = await self.read_exactly(size)
        if size:
            assert await self.read_exactly(2) == b"\r\n"
        return data


class Rig:
    """`visitor` is the outer end in front; each routed request gets a target of its own."""

    def __init__(self, limits: IngressLimits, capacity: int | None, response_timeout: float):
        self.limits = limits
        self.response_timeout = response_timeout
        self._capacity = capacity
        front, inner = resettable_pair(capacity)
        self.front = front
        self.visitor = Peer(front)
        self.server = ServerConnection(inner, limits)
        self.exchanges: list[Exchange] = []
        self.requests: list[RequestHead] = []
        self.target_ends: list[ResettableStream] = []
        self._send_target, self._targets = trio.open_memory_channel[Peer](math.inf)
        self.route: Callable[[RequestHead], object] | None = None

    async def _route(self, request: RequestHead) -> Upstream:
        self.requests.append(request)
        if self.route is not None:
            self.route(request)  # may raise Refused
        outer, inner = resettable_pair(self._capacity)
        self.target_ends.append(outer)
        await self._send_target.send(Peer(outer))
        return Upstream(
            stream=inner,
            headers=end_to_end(request.headers),
            describe="the target",
            response_timeout=self.response_timeout,
        )

    async def target(self) -> Peer:
        """The target's end of the next routed request."""
        peer = await self._targets.receive()
        assert isinstance(peer, Peer)
        return peer

    async def run(self) -> None:
        await serve_requests(self.server, self._route, self.limits, self.exchanges.append)


@asynccontextmanager
async def running_rig(
    *,
    limits: IngressLimits | None = None,
    capacity: int | None = None,
    response_timeout: float = 60.0,
) -> AsyncIterator[Rig]:
    """A rig whose server runs until the block is left, then has to end by itself."""
    rig = Rig(limits or IngressLimits(), capacity, response_timeout)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            yield rig
            await rig.front.aclose()
