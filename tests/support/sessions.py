"""Two Trio sessions joined in memory, for tests that need both ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunnelmux.limits import Limits
from tunnelmux.mux import Session, Stream, open_session
from tunnelmux.transports.memory import MemoryStream, memory_stream_pair


@asynccontextmanager
async def session_pair(
    *,
    limits: Limits | None = None,
    server_limits: Limits | None = None,
    capacity: int | None = None,
) -> AsyncIterator[tuple[Session, Session]]:
    """A client and a server session on one in-memory link of *capacity* bytes each way."""
    here, there = memory_stream_pair(capacity)
    async with (
        open_session(here, is_client=True, limits=limits) as client,
        open_session(there, is_client=False, limits=server_limits or limits) as server,
    ):
        yield client, server


async def stream_pair(client: Session, server: Session) -> tuple[Stream, Stream]:
    """A stream the client opened, and the server's end of it."""
    ours = await client.open_stream()
    return ours, await server.accept_stream()


async def fill(stream: Stream) -> int:
    """Send until the stream would block; how many bytes that took."""
    sent = 0
    while stream._engine_stream.writable:
        await stream.send_all(b"\0" * 1024)
        sent += 1024
    return sent


class StuckStream(MemoryStream):
    """A transport that takes nothing more once `stick` was called, like a dead network path."""

    stuck = False

    def stick(self) -> None:
        self.stuck = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.stuck:
            import trio

            await trio.sleep_forever()
        await super().send_all(data)
