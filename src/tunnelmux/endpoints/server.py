"""Serve sessions on a URL."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NoReturn

import trio

from tunnelmux.errors import ConfigError, ConnectError, SessionError
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.observability import get_logger
from tunnelmux.pump.data_pump import DataPump, open_pump
from tunnelmux.transports import (
    TunnelURL,
    UpgradeRequest,
    accept_websocket,
    open_listeners,
    parse_url,
    read_upgrade,
    serve_connections,
    start_server_tls,
)
from tunnelmux.transports.admission import Admission
from tunnelmux.transports.handshake import HANDSHAKE_TIMEOUT

__all__ = ["serve"]

_log = get_logger("endpoints")

MAX_HANDSHAKES = 256
"""Connections at once that have no session yet; one more is closed at once. Peers that proved
nothing must not hold memory without bound."""

Authorize = Callable[[UpgradeRequest], Awaitable[bool]]


async def serve(
    handler: Callable[[Session], Awaitable[None]],
    url: str,
    *,
    authorize: Authorize | None = None,
    ssl_context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    max_handshakes: int = MAX_HANDSHAKES,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Run `handler(session)` for every peer that dials `url`, until cancelled.

    `url` says what is spoken and where: ws://0.0.0.0:3800/tunnel/connect, wss://, tcp:// or
    tls://; the secure ones need an `ssl_context` (see `transports.server_context`). `authorize`
    sees each WebSocket request and its token; False answers 401. A session closes when its handler
    returns; what a handler raises is logged and ends that session only. Started value: the bound
    addresses. Raises ConfigError when `url` cannot be served. On Linux one pump moves the bytes of
    all sessions.
    """
    where = parse_url(url)
    if where.is_secure and ssl_context is None:
        raise ConfigError(f"{where} needs an ssl_context with the server's certificate")
    if not where.is_websocket and authorize is not None:
        raise ConfigError(f"{where} has no handshake to authorize; serve ws:// or wss://")
    server = _Server(handler, where, authorize, ssl_context, limits, max_handshakes)
    listeners = await open_listeners(where.host, where.port)
    async with open_pump() as server.pump:
        await serve_connections(server.handle, listeners, task_status=task_status)
    raise AssertionError("connections are served until this is cancelled")


class _Server:
    def __init__(
        self,
        handler: Callable[[Session], Awaitable[None]],
        where: TunnelURL,
        authorize: Authorize | None,
        ssl_context: ssl.SSLContext | None,
        limits: Limits | None,
        max_handshakes: int,
    ) -> None:
        self.pump: DataPump | None = None
        """The pump that carries the sessions, where there is one."""
        self._handler = handler
        self._where = where
        self._authorize = authorize
        self._ssl_context = ssl_context if where.is_secure else None
        # A yamux client on bare TCP may say nothing for as long as it opens no stream.
        self._client_begins = where.is_websocket or where.is_secure
        self._limits = limits
        self._admission = Admission("serve", limit=max_handshakes, per_address=max_handshakes)

    async def handle(self, connection: trio.SocketStream) -> None:
        """One connection, from its first byte to the end of its session."""
        host, port = connection.socket.getpeername()[:2]
        place = self._admission.enter(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if place is None:
            return
        opening = None
        with place, trio.CancelScope() as handshake:
            place.on_give_way = handshake.cancel
            try:
                if not self._client_begins or await place.hear(connection, HANDSHAKE_TIMEOUT):
                    opening = await self._shake_hands(connection)
            except ConnectError as exc:
                _log.info("handshake failed", cause=str(exc))
        if opening is None:
            return
        try:
            async with opening as transport:
                await self._run_session(transport)
        except ConnectError as exc:
            _log.info("handshake failed", cause=str(exc))

    async def _shake_hands(
        self, connection: trio.SocketStream
    ) -> AbstractAsyncContextManager[trio.abc.Stream] | None:
        """Do the TLS and WebSocket handshakes. The peer's byte stream; None when the peer was
        refused.
        """
        stream: trio.abc.Stream = connection
        if self._ssl_context is not None:
            stream = await start_server_tls(
                connection, self._ssl_context, timeout=HANDSHAKE_TIMEOUT
            )
        if not self._where.is_websocket:
            return nullcontext(stream)
        request = await read_upgrade(stream, path=self._where.path)
        if self._authorize is not None and not await self._authorize(request):
            await request.refuse(
                401,
                "unauthorized",
                "the token is missing or wrong; set the one this server expects",
                headers=[(b"WWW-Authenticate", b"Bearer")],
            )
            return None
        return accept_websocket(request)

    async def _run_session(self, transport: trio.abc.Stream) -> None:
        try:
            async with open_session(
                transport, is_client=False, limits=self._limits, pump=self.pump
            ) as session:
                await self._handler(session)
        except SessionError as exc:
            _log.info("session ended", cause=str(exc))
        except Exception:  # noqa: BLE001  a bug in one handler must not end the other sessions
            _log.exception("session handler failed", effect="this session ends, others go on")
