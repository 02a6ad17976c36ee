"""The paths of the agent's own API about leases."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

import msgspec

from tunnelmux.agent.assist.desk import AssistDesk
from tunnelmux.agent.assist.offers import LeaseOffer
from tunnelmux.agent.short_body import read_short_body
from tunnelmux.http import Refusal, Refused, RequestHead, ServerConnection, while_visitor_stays
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.wire import ASSIST_PATH, LEASE_END_PATH, LEASES_PATH

__all__ = ["ASSIST_PATHS", "serve_assist"]

ASSIST_PATHS = frozenset(
    path.decode("ascii") for path in (ASSIST_PATH, LEASES_PATH, LEASE_END_PATH)
)

_MAX_BODY = 16_384

T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(max_length=1000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
LeaseId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}$")]


class _Offer(msgspec.Struct, kw_only=True):
    id: LeaseId
    who: Text
    reason: Text
    services: Annotated[list[Name], msgspec.Meta(max_length=64)]
    rights: Annotated[list[Name], msgspec.Meta(max_length=16)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=13 * 3600)]
    recorded: bool = True
    sealed: bool = False
    kind: Literal["person", "code"] = "person"


class _End(msgspec.Struct, kw_only=True):
    id: LeaseId
    reason: Text = ""


async def serve_assist(
    desk: AssistDesk, server: ServerConnection, request: RequestHead, timeout: float
) -> None:
    """Answer one request; its body must arrive within `timeout` seconds. Raises Refused. The stream
    of events goes on while it is read.
    """
    path = request.path.encode("ascii", "replace")
    method = b"GET" if path == ASSIST_PATH else b"POST"
    if request.method != method:
        allow = [(b"Allow", method)]
        message = f"{request.path} takes {method.decode()} only."
        raise Refused(Refusal(405, "bad-request", message, headers=allow))
    if path == ASSIST_PATH:
        await _tell_events(desk, server)
        return
    if path == LEASES_PATH:
        said = await _read(server, timeout, _Offer)
        answer = desk.offer(_as_offer(said))
        await _send(server, {"state": answer.state, "reason": answer.reason})
        return
    end = await _read(server, timeout, _End)
    await _send(server, {"cut": desk.withdraw(end.id, _printable(end.reason) or "it was ended")})


def _as_offer(said: _Offer) -> LeaseOffer:
    return LeaseOffer(
        id=said.id,
        # People read it in a terminal, so control characters must go.
        who=_printable(said.who),
        reason=_printable(said.reason),
        services=tuple(said.services),
        rights=tuple(said.rights),
        seconds=said.seconds,
        recorded=said.recorded,
        sealed=said.sealed,
        kind=said.kind,
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


async def _tell_events(desk: AssistDesk, server: ServerConnection) -> None:
    """Send one line per event, the state first, until the proxy leaves."""
    number = desk.last_event
    fields = [(b"Content-Type", b"application/x-ndjson"), (b"Cache-Control", b"no-store")]
    first: list[dict[str, object]] = [desk.state_line() | {"serial": desk.serial}]
    first += [desk.open_line(lease) for lease in desk.leases if lease.offer.kind == "code"]
    async with while_visitor_stays(server):
        await server.send_response(200, b"OK", fields)
        for event in first:
            await server.send_body(_line(event))
        while not desk.is_silent:  # as long as the session: a proxy reads on
            for at, event in desk.events_after(number):
                await server.send_body(_line(event))
                number = at
            await desk.wait_after(number)
        await server.send_body(b"", end=True)


def _line(event: dict[str, object]) -> bytes:
    return json.dumps(event).encode("ascii") + b"\n"


async def _read(server: ServerConnection, timeout: float, kind: type[T]) -> T:
    body = await read_short_body(server, _MAX_BODY, timeout)
    try:
        return read_json(body, kind)
    except BadJson as error:
        raise Refused(Refusal(400, "bad-request", f"The body is bad: {error}.")) from None


async def _send(server: ServerConnection, content: dict[str, object]) -> None:
    body = json.dumps(content).encode("ascii") + b"\n"
    fields = [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")]
    await server.send_response(200, b"OK", fields, length=len(body), first=body, end=True)
