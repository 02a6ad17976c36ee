"""The client's side of Engine.IO's long polling: one HTTP exchange at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

import tunnelmux
from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.http import ClientConnection, PeerGone
from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.socketio.cookies import CookieJar

__all__ = ["Dial", "Polling", "SessionUnknown"]

Dial = Callable[[], Awaitable[trio.abc.Stream]]
"""Makes a new connection to the server, under TLS if the URL says so. Raises ConnectError."""

_MAX_REFUSAL = 4096

_UNKNOWN_SID = 1
# engine.io's code for an unknown sid: another server got the request, or the session has ended.


class SessionUnknown(ConnectRefused):
    """The server that got the request does not know the connection's `sid`."""


class Polling:
    """Makes the HTTP exchanges of one Engine.IO connection.

    Each has a connection of its own. Servers close idle connections after about as long as a poll
    waits, and then we could not know whether a request was handled. A connection that upgrades
    makes five exchanges.
    """

    def __init__(
        self, dial: Dial, authority: str, where: str, max_body: int, jar: CookieJar
    ) -> None:
        self._dial = dial
        self._jar = jar
        self._authority = authority.encode("ascii")
        self._where = where
        self._max_body = max_body

    async def get(self, target: str) -> bytes:
        """The body of the answer. The caller bounds the wait. Raises ConnectError."""
        return await self._exchange(b"GET", target, None)

    async def post(self, target: str, body: bytes) -> None:
        """Send a payload and wait for the answer. The caller bounds the wait. Raises
        ConnectError."""
        await self._exchange(b"POST", target, body)

    async def _exchange(self, method: bytes, target: str, body: bytes | None) -> bytes:
        stream = await self._dial()
        try:
            return await self._talk(stream, method, target, body)
        except (PeerGone, BadBody) as error:
            raise ConnectError(f"{self._where} broke the polling: {error}") from error
        finally:
            # The answer was read completely, or is useless.
            await trio.aclose_forcefully(stream)

    async def _talk(
        self, stream: trio.abc.Stream, method: bytes, target: str, body: bytes | None
    ) -> bytes:
        client = ClientConnection(stream, IngressLimits())
        headers = [
            (b"Host", self._authority),
            (b"User-Agent", b"tunnelmux/" + tunnelmux.__version__.encode("ascii")),
            (b"Accept", b"*/*"),
            (b"Connection", b"close"),
            *self._jar.fields(),
        ]
        if body is not None:
            headers.append((b"Content-Type", b"text/plain; charset=UTF-8"))
            headers.append((b"Content-Length", b"%d" % len(body)))
        await client.send_request(
            method, target.encode("ascii"), headers, first=body or b"", end=True
        )
        head = await client.read_head()
        while head.is_interim:
            head = await client.read_head()
        self._jar.take(head.headers)
        if head.status != 200:
            raise self._refusal(head.status, await client.read_body_start(_MAX_REFUSAL))
        most = self._max_body
        try:
            return await client.read_whole_body(most)
        except BodyTooLong:
            text = f"{self._where} sent a polling body of more than {most} bytes"
            raise ConnectError(text) from None

    def _refusal(self, status: int, body: bytes) -> ConnectRefused:
        code, words = _reading_of(body)
        if status == 400 and code == _UNKNOWN_SID:
            return SessionUnknown(
                f"{self._where} does not know the connection any more: {status}{words}; a load "
                "balancer in front of several servers needs sticky sessions, or transports = "
                '"websocket" here',
                status=status,
            )
        return ConnectRefused(
            f"{self._where} refused the Socket.IO connection: {status}{words}", status=status
        )


def _reading_of(body: bytes) -> tuple[object, str]:
    """Code and message of a refusal as engine.io writes it: {"code": 0, "message": "…"}."""
    try:
        content = read_json(body, dict[str, Any])
    except BadJson:
        return None, ""
    code, message = content.get("code"), content.get("message")
    if not isinstance(message, str):
        return code, ""
    return code, f" ({''.join(c for c in message if c.isprintable())[:200]})"
