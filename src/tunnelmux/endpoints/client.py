"""Dial a tunnel by its URL."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import tunnelmux
from tunnelmux.errors import ConfigError
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.pump.data_pump import open_pump
from tunnelmux.transports import (
    WayOut,
    WebSocketStream,
    connect_websocket,
    open_tcp,
    parse_url,
)
from tunnelmux.transports.handshake import HANDSHAKE_TIMEOUT, Headers

__all__ = ["connect", "dial", "response_headers"]


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: str | None = None,
    headers: Headers = (),
    ssl_context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Session]:
    """A session with the server at `url` for the length of an ``async with`` block.

    `url` is ws://, wss://, tcp:// or tls://. `token` goes out as `Authorization: Bearer` and, like
    `headers`, needs one of the first two. Without an `ssl_context` (see
    `transports.client_context`) the system's authorities are trusted. Raises ConnectError when no
    session can be made, ConnectRefused when the server says no, ConfigError for a bad `url`; what
    the block raises comes out unchanged. On Linux a pump of its own moves the session's bytes.
    """
    async with (
        open_pump() as pump,
        dial(url, token=token, headers=headers, ssl_context=ssl_context) as transport,
        open_session(transport, is_client=True, limits=limits, pump=pump) as session,
    ):
        yield session


@asynccontextmanager
async def dial(
    url: str,
    *,
    token: str | None = None,
    headers: Headers = (),
    ssl_context: ssl.SSLContext | None = None,
    timeout: float = HANDSHAKE_TIMEOUT,
    way: WayOut | None = None,
) -> AsyncIterator[trio.abc.Stream]:
    """The byte stream under `connect`: a WebSocketStream for ws:// and wss://, else TCP or TLS.

    Connecting may take `timeout` seconds, somewhat more where the name has several addresses. `way`
    has the HTTP proxy to go through, and the address that worked last.
    """
    where = parse_url(url)
    if not where.is_secure and ssl_context is not None:
        raise ConfigError(f"{where} uses no TLS, so it cannot be verified; write wss:// or tls://")
    if where.is_secure and ssl_context is None:
        ssl_context = ssl.create_default_context()
    if where.is_websocket:
        async with connect_websocket(
            where,
            headers=_request_headers(token, headers),
            ssl_context=ssl_context,
            handshake_timeout=timeout,
            way=way,
        ) as websocket:
            yield websocket
        return
    if token is not None or headers:
        raise ConfigError(
            f"{where} has no handshake that could carry a token or headers; write ws:// or wss://"
        )
    stream = await open_tcp(
        where.host, where.port, ssl_context=ssl_context, timeout=timeout, way=way
    )
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def response_headers(transport: trio.abc.Stream) -> dict[str, str]:
    """The fields of the server's 101 answer, by lower-case name; empty where there was no
    handshake.
    """
    if not isinstance(transport, WebSocketStream):
        return {}
    return {
        name.decode("ascii").lower(): value.decode("latin-1")
        for name, value in transport.response_headers
    }


def _request_headers(token: str | None, headers: Headers) -> Headers:
    sent = [(b"User-Agent", f"tunnelmux/{tunnelmux.__version__}".encode("ascii"))]
    if token is not None:
        if not token.isascii() or any(c <= " " or c == "\x7f" for c in token):
            raise ConfigError("the token has a character that no token may have; paste it again")
        sent.append((b"Authorization", b"Bearer " + token.encode("ascii")))
    return [*sent, *headers]
