"""Requests to an agent about leases, over its tunnel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
import trio

from tunnelmux.commands import LineSplitter
from tunnelmux.errors import SessionError, TunnelmuxError
from tunnelmux.http import ClientConnection, UpstreamGone
from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.registry.leases import Lease
from tunnelmux.relay import abort
from tunnelmux.sessions import LocalHandle
from tunnelmux.wire import AGENT_AUTHORITY, ASSIST_PATH, LEASE_END_PATH, LEASES_PATH

__all__ = [
    "AgentEvent",
    "AssistFailed",
    "LeaseReply",
    "follow_agent",
    "offer_lease",
    "said_serial",
    "tell_end",
]

_TIMEOUT = 15.0
_MAX_ANSWER = 65_536
_MAX_LINE = 65_536

T = TypeVar("T")


class AssistFailed(TunnelmuxError):
    """The agent could not be asked, or its answer was invalid."""


class LeaseReply(msgspec.Struct):
    """A device's answer to a lease."""

    state: str
    reason: str = ""


class AgentEvent(msgspec.Struct):
    """One event from an agent's stream."""

    type: str
    lease: str = ""
    given: bool = False
    reason: str = ""
    by: str = ""
    mode: str = "off"
    services: list[str] = []
    longest: float = 0.0
    hours: str = ""
    on_for: float = 0.0
    serial: str = ""
    began: float = 0.0
    seconds: float = 0.0
    key: str = ""


class _Cut(msgspec.Struct):
    cut: int = 0


async def offer_lease(
    handle: LocalHandle, lease: Lease, now: datetime, limits: IngressLimits
) -> LeaseReply:
    """Offer a lease to the agent. Returns the device's answer. Raises AssistFailed."""
    body: dict[str, Any] = {
        "id": lease.id,
        "who": lease.holder_name or lease.holder,
        "reason": lease.reason,
        "services": list(lease.services),
        "rights": list(lease.rights),
        # Seconds left, not a time: the device's clock may be wrong.
        "seconds": max(0.001, (lease.ends - now) / timedelta(seconds=1)),
        "recorded": lease.recorded,
        "sealed": lease.sealed,
        "kind": lease.kind,
    }
    return await _post(handle, LEASES_PATH, body, LeaseReply, limits)


async def tell_end(handle: LocalHandle, lease_id: str, reason: str, limits: IngressLimits) -> int:
    """Tell the agent that a lease has ended. Returns how many connections it cut. Raises
    AssistFailed.
    """
    body = {"id": lease_id, "reason": reason}
    return (await _post(handle, LEASE_END_PATH, body, _Cut, limits)).cut


async def follow_agent(
    handle: LocalHandle, limits: IngressLimits, take: Callable[[AgentEvent], object]
) -> None:
    """Call `take` with each event of the agent's switch, until the session or the stream of events
    ends. Raises AssistFailed when the agent sends no events.
    """
    async with _asked(handle, b"GET", ASSIST_PATH, None, limits) as client:
        splitter, end = LineSplitter(), False
        with suppress(UpstreamGone, BadBody):
            while not end:
                data, end = await client.read_body()
                for line in splitter.feed(data):
                    with suppress(BadJson):
                        take(read_json(line, AgentEvent))
                if splitter.waiting > _MAX_LINE:
                    raise AssistFailed("a line from the agent is too long")


def said_serial(field: str | None) -> str:
    """Decode the serial number in an agent's field."""
    return unquote(field or "", errors="replace")[:128].strip()


async def _post(
    handle: LocalHandle, path: bytes, body: dict[str, Any], kind: type[T], limits: IngressLimits
) -> T:
    with trio.move_on_after(_TIMEOUT):
        async with _asked(handle, b"POST", path, body, limits) as client:
            try:
                return read_json(await client.read_whole_body(_MAX_ANSWER), kind)
            except (BadJson, BodyTooLong):
                raise AssistFailed("the agent's answer cannot be understood") from None
            except (UpstreamGone, BadBody) as error:
                raise AssistFailed(f"the tunnel broke: {error}") from None
    raise AssistFailed(f"the agent did not answer within {_TIMEOUT:g} s")


@asynccontextmanager
async def _asked(
    handle: LocalHandle,
    method: bytes,
    path: bytes,
    content: dict[str, Any] | None,
    limits: IngressLimits,
) -> AsyncIterator[ClientConnection]:
    """Send a request to the agent's own API; the body of its 200 answer can be read within the
    block. Raises AssistFailed.
    """
    try:
        stream = await handle.open_stream()
    except SessionError as error:
        raise AssistFailed(str(error)) from None
    try:
        client = ClientConnection(stream, limits)
        headers = [(b"Host", AGENT_AUTHORITY), (b"Connection", b"close")]
        body = b""
        if content is not None:
            body = msgspec.json.encode(content)
            headers += [
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
            ]
        target = b"http://" + AGENT_AUTHORITY + path
        try:
            with trio.fail_after(_TIMEOUT):
                await client.send_request(method, target, headers, first=body, end=True)
                while (head := await client.read_head()).is_interim:
                    pass
        except (UpstreamGone, trio.TooSlowError) as error:
            raise AssistFailed(f"the agent did not answer: {error}") from None
        if head.status != 200:
            raise AssistFailed(f"the agent answered {head.status}")
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await abort(stream)
