"""A load balancer in front of a Socket.IO server, which later requests find by a cookie only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

__all__ = ["Balancer", "balancer"]

COOKIE = b"AWSALB=server-a"

UNKNOWN = b'{"code":1,"message":"Session ID unknown"}'


class Balancer:
    """A request that brings no cookie, but a session's id, goes to a server that knows it not."""

    def __init__(self, target: int, *, sets_cookie: bool) -> None:
        self.port = 0
        self.strayed: list[bytes] = []
        """The request lines that came without the cookie, with an id."""
        self._target = target
        self._sets_cookie = sets_cookie

    async def handle(self, stream: trio.SocketStream) -> None:
        head = await _read_head(stream)
        line = head.partition(b"\r\n")[0]
        if b"sid=" in line and COOKIE not in head:
            self.strayed.append(line)
            size = b"Content-Length: %d\r\n" % len(UNKNOWN)
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n" + size + b"\r\n" + UNKNOWN)
            return
        way = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with way, trio.open_nursery() as nursery:
            await way.send_all(head)
            nursery.start_soon(_copy, stream, way)
            answer = await _read_head(way)
            if self._sets_cookie:
                first, rest = answer.split(b"\r\n", 1)
                answer = b"\r\n".join([first, b"Set-Cookie: " + COOKIE + b"; Path=/", rest])
            await stream.send_all(answer)
            await _copy(way, stream)
            nursery.cancel_scope.cancel()


async def _read_head(stream: trio.SocketStream) -> bytes:
    """What comes up to the end of the head, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data and (more := await stream.receive_some(65536)):
        data += more
    return data


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _handle(one: Balancer, stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await one.handle(stream)


@asynccontextmanager
async def balancer(target: int, *, sets_cookie: bool = True) -> AsyncIterator[Balancer]:
    """A balancer in front of the server on that port, for the length of the block."""
    one = Balancer(target, sets_cookie=sets_cookie)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        one.port = listeners[0].socket.getsockname()[1]
        await nursery.start(partial(trio.serve_listeners, partial(_handle, one), listeners))
        yield one
        nursery.cancel_scope.cancel()
