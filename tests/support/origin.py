"""The web server behind an agent: each path is a function that speaks raw HTTP to its visitor."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from support.http_rig import Peer
from tunnelmux.config import Address

__all__ = ["Origin", "numbered_blocks", "reply", "serving", "slow_page"]

Page = Callable[[Peer, bytes], Awaitable[None]]
Handler = Callable[[trio.SocketStream], Awaitable[None]]

BLOCK = 1 << 20


class Origin:
    """Serves `pages` by path, one request per connection; "/" says hello."""

    def __init__(self) -> None:
        self.pages: dict[bytes, Page] = {b"/": hello}

    async def handle(self, stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        async with stream:
            try:
                head = await peer.read_head()
                page = self.pages.get(head.split(b" ", 2)[1], not_found)
                await page(peer, head)
            except (AssertionError, trio.BrokenResourceError):
                return  # the visitor left; what its test looks at is the visitor's side


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Address]:
    """A TCP server on a loopback port for the length of the block."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.serve_tcp, handler, 0, host="127.0.0.1", handler_nursery=nursery)
        (listener,) = await nursery.start(start)
        yield Address("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def reply(body: bytes, status: str = "200 OK") -> bytes:
    """A whole response that ends its connection."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + body


def numbered_blocks(size: int) -> Iterator[bytes]:
    """*size* bytes, a multiple of 1 MiB, in which no block is like another: cheap to make, and a
    lost, doubled or misplaced block shows in the hash.
    """
    assert size % BLOCK == 0
    noise = hashlib.shake_128(b"noise").digest(BLOCK - 8)
    for number in range(size // BLOCK):
        yield struct.pack(">Q", number) + noise


async def hello(peer: Peer, _head: bytes) -> None:
    await peer.send(reply(b"hello\n"))


async def not_found(peer: Peer, _head: bytes) -> None:
    await peer.send(reply(b"no such page\n", "404 Not Found"))


def slow_page(origin: Origin) -> tuple[trio.Event, trio.Event]:
    """Give it a page `/slow`: the event of its being asked for, and the one that lets it answer."""
    asked, go_on = trio.Event(), trio.Event()

    async def slow(peer: Peer, _head: bytes) -> None:
        asked.set()
        await go_on.wait()
        await peer.send(reply(b"slow"))

    origin.pages[b"/slow"] = slow
    return asked, go_on
