"""The other end of an agent: takes its WebSocket, hands its sessions to the test."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tunnelmux import Limits, Session
from tunnelmux.errors import ConnectError
from tunnelmux.mux import open_session
from tunnelmux.transports import (
    UpgradeRequest,
    accept_websocket,
    bound_addresses,
    read_upgrade,
    send_answer,
    serve_connections,
    start_server_tls,
)

__all__ = ["FakeProxy", "No", "fake_proxy"]

PATH = "/tunnel/connect"


@dataclass(frozen=True)
class No:
    """An answer that refuses; without a reason it is not the proxy's own."""

    status: int
    reason: str | None
    text: str = "no"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass
class FakeProxy:
    """`answer(request)` decides: a `No`, or the header fields of the 101."""

    port: int
    answer: Callable[[UpgradeRequest], No | list[tuple[bytes, bytes]]]
    limits: Limits
    ssl_context: ssl.SSLContext | None = None
    requests: list[UpgradeRequest] = field(default_factory=list)
    _send: trio.MemorySendChannel[Session] = field(init=False)
    sessions: trio.MemoryReceiveChannel[Session] = field(init=False)
    """Each session the agent makes, in order."""

    def __post_init__(self) -> None:
        self._send, self.sessions = trio.open_memory_channel[Session](math.inf)

    @property
    def url(self) -> str:
        scheme = "ws" if self.ssl_context is None else "wss"
        return f"{scheme}://127.0.0.1:{self.port}{PATH}"

    async def next_session(self) -> Session:
        with trio.fail_after(50):
            return await self.sessions.receive()

    async def handle(self, connection: trio.SocketStream) -> None:
        stream: trio.abc.Stream = connection
        try:
            if self.ssl_context is not None:
                stream = await start_server_tls(connection, self.ssl_context, timeout=5)
            request = await read_upgrade(stream, path=PATH)
        except ConnectError:
            return
        self.requests.append(request)
        answer = self.answer(request)
        if isinstance(answer, No):
            await send_answer(
                stream, answer.status, answer.reason, answer.text, headers=answer.headers
            )
            return
        async with (
            accept_websocket(request, headers=answer) as websocket,
            open_session(websocket, is_client=False, limits=self.limits) as session,
        ):
            self._send.send_nowait(session)
            await session.wait_closed()


@asynccontextmanager
async def fake_proxy(
    answer: Callable[[UpgradeRequest], No | list[tuple[bytes, bytes]]] = lambda _request: [],
    limits: Limits | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[FakeProxy]:
    """A proxy on a real port of the loopback interface for the length of the block."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = bound_addresses(listeners)[0][1]
    proxy = FakeProxy(port, answer, limits or Limits(), ssl_context)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_connections, proxy.handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
