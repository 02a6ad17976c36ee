"""`POST /v1/credential` of the agent's own API: a new token for this device. The token is stored
first. Then the agent proves it by a handshake with the proxy that asks for no session. Only this
proof voids the old token, so the device has a valid token at any moment, even when a step fails.
The old one stays beside it all the same: who gave the new one may be a proxy that is not ours, and
proves what it likes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tunnelmux.agent.link import ProxyLink
from tunnelmux.agent.short_body import read_short_body
from tunnelmux.config import Secret
from tunnelmux.config.rules import InvalidSetting, check_token
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused
from tunnelmux.http import Refusal, Refused, RequestHead, ServerConnection
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.observability import BoundedLines, get_logger

__all__ = ["Rotation"]

_log = get_logger("agent")

_MAX_BODY = 4096
# Bytes: a token has some 50, and a longer one would not fit into the head of a handshake.


class Rotation:
    """Takes new tokens for this device, one at a time. `link` returns the present link to the
    proxy. `prove` has the proxy check a token; it raises ConnectError when that fails, and
    ConnectRefused when the proxy does not know the token.
    """

    def __init__(
        self,
        link: Callable[[], ProxyLink | None],
        prove: Callable[[ProxyLink, Secret], Awaitable[None]],
    ) -> None:
        self._link = link
        self._prove = prove
        self._turn = trio.Lock()
        self._lines = BoundedLines("agent")

    async def serve(self, server: ServerConnection, request: RequestHead, timeout: float) -> None:
        """Answer one request; its body must arrive within `timeout` seconds. Raises Refused."""
        if request.method != b"POST":
            allow = [(b"Allow", b"POST")]
            raise Refused(
                Refusal(405, "bad-request", "/v1/credential takes POST only.", headers=allow)
            )
        token = await _read_token(server, timeout)
        async with self._turn:
            cause = await self._take(token)
        body = json.dumps({"proved": cause is None, "cause": cause}).encode() + b"\n"
        fields = [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")]
        await server.send_response(200, b"OK", fields, length=len(body), first=body, end=True)

    async def _take(self, token: Secret) -> str | None:
        """Store the token and prove it. Returns why it is not proved yet, or None."""
        link = self._link()
        if link is None:
            raise Refused(Refusal(403, "forbidden", "This agent has no proxy."))
        try:
            before = await trio.to_thread.run_sync(link.token)
            await trio.to_thread.run_sync(link.replace, before, token)
        except ConfigError as error:
            raise Refused(Refusal(403, "forbidden", f"{error}.")) from None
        try:
            await self._prove(link, token)
        except ConnectRefused as error:
            if error.retryable:
                return str(error)
            # The proxy does not know the token, which would lock this device out at its next
            # session.
            with trio.CancelScope(shield=True):  # one small local file
                await trio.to_thread.run_sync(link.put_back, before)
            self._lines.write("credential not taken", "the proxy", level="error", cause=str(error))
            raise Refused(
                Refusal(502, "token-expired", f"The proxy refused it: {error}.")
            ) from None
        except ConnectError as error:
            # Both tokens are valid. The next session will use the new one, and so prove it.
            self._lines.write(
                "credential not proved yet", "the proxy", level="warning", cause=str(error)
            )
            return str(error)
        _log.info("credential rotated", token_file=str(link.credentials.kept_in))
        return None


async def _read_token(server: ServerConnection, timeout: float) -> Secret:
    body = await read_short_body(server, _MAX_BODY, timeout)
    try:
        token = read_json(body, dict[str, Any])["token"]
        check_token("token", token)
    except (BadJson, KeyError, InvalidSetting):
        # The parser's message is left out: it may show a part of the token.
        message = 'The body must be {"token": "…"} with a token that a header can carry.'
        raise Refused(Refusal(400, "bad-request", message)) from None
    return Secret(token)
