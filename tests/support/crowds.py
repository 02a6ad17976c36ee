"""Many strangers at once, from loopback addresses of the test's choosing."""

from __future__ import annotations

import resource
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
import trio
import trio.testing

from tunnelmux.config import Address

__all__ = ["SILENT", "crowd", "dial_from", "let_pass", "many_files"]

SILENT = 2000

_AGAIN, _AT_ONCE = 0.1, 50
# Seconds between two turns, and how many dial again in each: 500 a second, in this very process.


@contextmanager
def many_files() -> Iterator[None]:
    """As many open files as the crowd needs, at both its ends; else the test is skipped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * SILENT
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} open files are needed, and {hard} allowed: ulimit -Hn {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def dial_from(source: str, address: Address) -> trio.SocketStream:
    """A connection to *address* that comes from the loopback address *source*."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.bind((source, 0))
        await sock.connect(tuple(address))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


@asynccontextmanager
async def crowd(
    source: str, address: Address, *, count: int = SILENT, says: bytes = b""
) -> AsyncIterator[None]:
    """Connections from *source* that say nothing, or *says* when they are there and nothing more;
    the oldest of them are dialled again and again."""
    silent: deque[socket.socket] = deque()

    def dial() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        sock.connect_ex(tuple(address))
        if says:
            with suppress(OSError):  # the listener's queue is full
                sock.send(says)
        silent.append(sock)

    async def dial_again() -> None:
        while True:
            await trio.sleep(_AGAIN)
            for _ in range(_AT_ONCE):
                silent.popleft().close()
                dial()

    try:
        for number in range(count):
            dial()
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial_again)
            yield
            nursery.cancel_scope.cancel()
    finally:
        for sock in silent:
            sock.close()


async def let_pass(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let so many seconds pass while the crowd dials again, and then none any more: who waits for a
    deadline after that waits for ever, however slow the machine is."""
    for _ in range(round(seconds / _AGAIN)):
        clock.jump(_AGAIN)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
