"""The limits that a session keeps itself, and not its engine."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tunnelmux.limits import INITIAL_WINDOW, Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.transports import memory_stream_pair

KIB = 1024
MIB = 1 << 20


class LongWay(trio.abc.HalfCloseableStream):
    """One end of a connection on which everything sent takes *delay* seconds; notes the sizes."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, delay: float) -> None:
        self.sizes: list[int] = []
        self._stream = stream
        self._delay = delay
        self._send, self._under_way = trio.open_memory_channel[tuple[float, bytes]](math.inf)

    async def carry(self) -> None:
        """Deliver until the end, and pass that on; a task of its own."""
        with suppress(trio.BrokenResourceError):
            async for due, data in self._under_way:
                await trio.sleep_until(due)
                await self._stream.send_all(data)
        await self._stream.aclose()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sizes.append(len(data))
        await self._send.send((trio.current_time() + self._delay, bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        self._send.close()
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._send.close()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def distant_pair(
    delay: float, limits: Limits
) -> AsyncIterator[tuple[Session, Session, LongWay]]:
    """A client and a server session, and the client's transport."""
    here, there = (LongWay(stream, delay) for stream in memory_stream_pair())
    async with trio.open_nursery() as nursery:
        for end in (here, there):
            nursery.start_soon(end.carry)
        async with (
            open_session(here, is_client=True, limits=limits) as client,
            open_session(there, is_client=False, limits=limits) as server,
        ):
            yield client, server, here
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("flush_size", "most"), [(20_000, 20_000), (64 * KIB, 64 * KIB)])
async def test_no_more_than_one_flush_goes_to_the_transport_at_once(
    autojump_clock: trio.testing.MockClock, flush_size: int, most: int
) -> None:
    async with distant_pair(0.01, Limits(flush_size=flush_size)) as (client, server, transport):
        ours = await client.open_stream()
        await ours.send_all(bytes(200 * KIB))
        theirs = await server.accept_stream()
        assert len(await theirs.receive_some()) > 0
    assert most - 16 * KIB < max(transport.sizes) <= most


@pytest.mark.parametrize(("budget", "grows"), [(0, False), (8 * MIB, True)])
async def test_the_budget_of_the_process_is_the_one_of_the_limits(
    autojump_clock: trio.testing.MockClock, budget: int, grows: bool
) -> None:
    limits = Limits(process_window_budget=budget)
    async with distant_pair(0.05, limits) as (client, server, _):
        ours = await client.open_stream()
        theirs = await server.accept_stream()

        async def send() -> None:
            for _ in range(16):
                await ours.send_all(bytes(MIB))
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            received = 0
            while data := await theirs.receive_some():
                received += len(data)
        assert received == 16 * MIB
        assert (theirs._engine_stream.window > INITIAL_WINDOW) is grows
