"""Deliver a new token to a device over its tunnel."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import msgspec
import trio

from tunnelmux.config import Secret
from tunnelmux.errors import SessionError
from tunnelmux.http import ClientConnection, UpstreamGone
from tunnelmux.http.body import BadBody
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.sessions import LocalHandle
from tunnelmux.wire import AGENT_AUTHORITY, CREDENTIAL_PATH

__all__ = ["Delivery", "deliver"]

_TIMEOUT = 40.0
# Seconds for the agent to store the token and to dial once: four handshakes' worth.

_MAX_ANSWER = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The result of delivering a token to an agent."""

    refused: bool
    """The agent has certainly not taken it, and has only its old token."""
    cause: str
    """Why the token was not taken or not proved; empty when it was."""


class _Answer(msgspec.Struct):
    proved: bool
    cause: str | None = None


async def deliver(handle: LocalHandle, token: Secret, limits: IngressLimits) -> Delivery:
    """Give the agent of this session a new token. Failures are in the result and never raised."""
    with trio.move_on_after(_TIMEOUT):
        try:
            stream = await handle.open_stream()
        except SessionError as error:
            return Delivery(refused=True, cause=str(error))
        try:
            return await _ask(ClientConnection(stream, limits), token)
        except (UpstreamGone, BadBody) as error:
            return Delivery(refused=False, cause=f"the tunnel broke: {error}")
        finally:
            with trio.CancelScope(shield=True):
                await abort(stream)
    return Delivery(refused=False, cause=f"the agent did not answer within {_TIMEOUT:g} s")


async def _ask(client: ClientConnection, token: Secret) -> Delivery:
    body = msgspec.json.encode({"token": token.reveal()})
    headers = [
        (b"Host", AGENT_AUTHORITY),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Connection", b"close"),
    ]
    target = b"http://" + AGENT_AUTHORITY + CREDENTIAL_PATH
    # The agent may have answered before it stopped reading: try to read the answer.
    with suppress(UpstreamGone):
        await client.send_request(b"POST", target, headers, first=body, end=True)
    while (head := await client.read_head()).is_interim:
        pass
    answer = await client.read_body_start(_MAX_ANSWER)
    if head.status == 404:
        return Delivery(refused=True, cause="this device's agent takes no new tokens: update it")
    if head.status != 200:
        text = answer[:500].decode("utf-8", "replace").strip()
        return Delivery(refused=True, cause=text or f"the agent answered {head.status}")
    try:
        said = read_json(answer, _Answer)
    except BadJson:
        return Delivery(refused=False, cause="the agent's answer cannot be understood")
    return Delivery(refused=False, cause="" if said.proved else said.cause or "it was not used yet")
