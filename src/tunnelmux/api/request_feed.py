"""Requests to one device as they end, from all proxies, because a device may move between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.backend.proxies import Proxies
from tunnelmux.errors import ConnectError, RegistryError, SessionNotFound
from tunnelmux.observability import get_logger
from tunnelmux.sessions import RequestFilter, RequestSeen

__all__ = ["watch_requests"]

_log = get_logger("api.requests")

_LOOK = 2.0
# Seconds between two checks for new proxies, and before a lost one is asked again.


@asynccontextmanager
async def watch_requests(
    proxies: Proxies, wanted: RequestFilter
) -> AsyncIterator[trio.MemoryReceiveChannel[RequestSeen | int]]:
    """The requests of all proxies, like `ProxyClient.requests`, for the length of the block. When
    the block is entered, it has begun at the proxies that answer. Nothing is kept here: a slow
    reader makes the proxies wait, which drop requests and count them."""
    send, receive = trio.open_memory_channel[RequestSeen | int](0)
    async with trio.open_nursery() as nursery:
        await nursery.start(_follow_all, proxies, wanted, send)
        try:
            yield receive
        finally:
            nursery.cancel_scope.cancel()


async def _follow_all(
    proxies: Proxies,
    wanted: RequestFilter,
    send: trio.MemorySendChannel[RequestSeen | int],
    *,
    task_status: trio.TaskStatus[None],
) -> NoReturn:
    followed: set[ProxyClient] = set()

    async def follow(client: ProxyClient, *, task_status: trio.TaskStatus[None]) -> None:
        has_begun = False
        try:
            async with client.requests(wanted) as requests:
                task_status.started()
                has_begun = True
                async for seen in requests:
                    await send.send(seen)
        except (ConnectError, ApiCallFailed, SessionNotFound) as exc:
            _log.info("requests of a proxy ended", problem=str(exc))
            if not has_begun:
                task_status.started()
        finally:
            followed.discard(client)

    is_first = True
    async with trio.open_nursery() as nursery:
        while True:
            try:
                for client in await proxies.clients():
                    if client not in followed:
                        followed.add(client)
                        await nursery.start(follow, client)
            except RegistryError:
                pass  # the known proxies go on; the next check finds new ones
            if is_first:
                task_status.started()
                is_first = False
            await trio.sleep(_LOOK)
