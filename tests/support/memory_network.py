"""Dialling without sockets, so that a mock clock can run: WebSockets over memory streams."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from support.blackhole import Blackhole
from tunnelmux import Limits, Session
from tunnelmux.errors import ConnectError
from tunnelmux.mux import open_session
from tunnelmux.transports import WebSocketStream, accept_websocket, parse_url, read_upgrade
from tunnelmux.transports.websocket import start_websocket_client

__all__ = ["MemoryNetwork"]


class MemoryNetwork:
    """`dial` is called like `endpoints.dial`; the acceptor's sessions come out of `sessions`.

    While `down`, dialling fails at once. `hole` swallows everything when told to.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.hole = Blackhole()
        self.down: ConnectError | None = None
        self.dialled: list[float] = []
        """When each attempt was made, on Trio's clock."""
        self._nursery = nursery
        self._send, self.sessions = trio.open_memory_channel[Session](math.inf)

    @asynccontextmanager
    async def dial(self, url: str, **_options: object) -> AsyncIterator[WebSocketStream]:
        self.dialled.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.down is not None:
            raise self.down
        near, far = self.hole.pair()
        where = parse_url(url)
        self._nursery.start_soon(self._accept, far, where.path)
        stream = await start_websocket_client(self._nursery, near, where)
        try:
            yield stream
        finally:
            await stream.aclose()

    async def _accept(self, far: trio.abc.Stream, path: str) -> None:
        request = await read_upgrade(far, path=path)
        async with (
            accept_websocket(request) as websocket,
            open_session(websocket, is_client=False, limits=Limits()) as session,
        ):
            self._send.send_nowait(session)
            await session.wait_closed()
