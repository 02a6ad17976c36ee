"""ProxyClient within `async with`: one connection for many calls, and none left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from support.internal import SECRET, running_bench
from support.site import SECRET as SITE_SECRET
from support.site import running_site
from tunnelmux.backend import ProxyClient
from tunnelmux.errors import ConnectError, SessionNotFound


class Dialled:
    """A client whose connections are counted, and can be cut from the other side."""

    def __init__(self, dial) -> None:
        self._dial = dial
        self.streams: list[trio.abc.HalfCloseableStream] = []
        self.client = ProxyClient("http://127.0.0.1:3801", secret=SECRET, dial=self._connect)

    async def _connect(self) -> trio.abc.HalfCloseableStream:
        stream = await self._dial()
        self.streams.append(stream)
        return stream


@asynccontextmanager
async def counted() -> AsyncIterator[tuple[Dialled, ProxyClient]]:
    async with running_bench() as bench, bench.agent("dev1"):
        dialled = Dialled(bench._dial)
        yield dialled, dialled.client


async def test_calls_one_after_the_other_share_a_connection() -> None:
    async with counted() as (dialled, client):
        async with client:
            for _ in range(5):
                [session] = await client.list_sessions()
            with pytest.raises(SessionNotFound):
                await client.get_session("of nobody")
            await client.close_session(session.token)
            assert len(dialled.streams) == 1
        with pytest.raises(trio.ClosedResourceError):
            await dialled.streams[0].send_all(b"x")


async def test_without_a_block_each_call_has_its_own_and_closes_it() -> None:
    async with counted() as (dialled, client):
        for _ in range(3):
            await client.list_sessions()
        assert len(dialled.streams) == 3
        for stream in dialled.streams:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")


async def test_calls_at_once_have_connections_of_their_own_and_eight_are_kept() -> None:
    async with counted() as (dialled, client), client:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(client.list_sessions)
        assert len(dialled.streams) == 12
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(client.list_sessions)
        assert len(dialled.streams) == 16


async def test_one_that_waited_for_long_is_not_used(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counted() as (dialled, client), client:
        await client.list_sessions()
        await trio.sleep(29)
        await client.list_sessions()
        assert len(dialled.streams) == 1
        await trio.sleep(31)
        await client.list_sessions()
        assert len(dialled.streams) == 2


async def test_what_only_asks_is_asked_again_when_its_connection_has_ended() -> None:
    async with counted() as (dialled, client), client:
        [session] = await client.list_sessions()
        dialled.streams[0].reset()  # type: ignore[attr-defined]  as a proxy that was restarted
        assert await client.list_sessions()
        assert len(dialled.streams) == 2
        dialled.streams[1].reset()  # type: ignore[attr-defined]
        with pytest.raises(ConnectError):
            await client.close_session(session.token)


async def test_an_end_that_came_meanwhile_is_seen_before_the_call() -> None:
    """Over real sockets: what changes something does not meet a connection that is over."""
    async with running_site() as site, ProxyClient(site.url, secret=SITE_SECRET) as client:
        token = (await client.list_sessions())[0].token
        for server in list(site.proxy._internal._callers):
            await server.abort()
        await client.close_session(token)
