"""What both ends of a live session do with each other: echo, send a known payload, read it back."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from support.peer_process import pattern
from tunnelmux.mux import Session, Stream

__all__ = ["echo_through", "read_to_end", "send_pattern", "serving_echo"]

CHUNK = 65_536


async def send_pattern(stream: Stream, count: int, seed: int = 0, chunk: int = CHUNK) -> None:
    """Send *count* bytes of `pattern` in pieces of *chunk*, and no end."""
    payload = memoryview(pattern(count, seed))
    for start in range(0, count, chunk):
        await stream.send_all(payload[start : start + chunk])


async def read_to_end(
    stream: trio.abc.ReceiveStream, *, pause: float = 0.0, most: int | None = None
) -> tuple[int, str]:
    """How many bytes came before the end, and their SHA-256; *pause* seconds after each read."""
    digest = hashlib.sha256()
    count = 0
    while data := await stream.receive_some(most):
        count += len(data)
        digest.update(data)
        if pause:
            await trio.sleep(pause)
    return count, digest.hexdigest()


async def echo_through(
    session: Session, count: int, seed: int = 0, *, chunk: int = CHUNK, pause: float = 0.0
) -> None:
    """Open a stream to a peer that echoes, and see that all comes back, and then the end."""
    stream = await session.open_stream()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await send_pattern(stream, count, seed, chunk)
            await stream.send_eof()

        nursery.start_soon(send)
        back, digest = await read_to_end(stream, pause=pause)
        assert (back, digest) == (count, hashlib.sha256(pattern(count, seed)).hexdigest())


@asynccontextmanager
async def serving_echo(session: Session) -> AsyncIterator[None]:
    """Echo on every stream the peer opens, for the length of the block."""

    async def echo(stream: Stream) -> None:
        try:
            async with stream:
                while data := await stream.receive_some():
                    await stream.send_all(data)
                await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the peer reset it; what the test looks at is the peer's side

    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            async for stream in session:
                nursery.start_soon(echo, stream)

        nursery.start_soon(accept)
        yield
        nursery.cancel_scope.cancel()
