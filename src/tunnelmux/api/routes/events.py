"""The events of a tenant: `/api/events`, as server-sent events."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Annotated

import trio
from fastapi import APIRouter, Header, Request

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency
from tunnelmux.api.event_stream import HEARTBEAT, RECHECK, EventStream, Say, sse
from tunnelmux.api.events import TenantEvent
from tunnelmux.api.problems import Refused

router = APIRouter(prefix="/api/events", route_class=AccessRoute, tags=["events"])

_AT_ONCE = 100
# Events that are sent in one piece, about 20 KB.

_PACE = 0.25
# Seconds between two pieces of events to one follower. Each costs a turn and a write: with one for
# each event, a burst to hundreds of followers kept other callers waiting for ten seconds.

Viewer = Annotated[Principal, need(Role.VIEWER, "events")]


@router.get("", response_class=EventStream, status_code=200)
async def follow_events(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> EventStream:
    """Events of the tenant from now on, or after `Last-Event-ID`. The event `gap` says that some
    are missing: then read the lists again. The stream ends when the reader's rights end."""
    over = await take_place(api, principal)

    async def write(say: Say) -> None:
        await _tell(say, request, api, principal, last_event_id)

    return EventStream(write, over)


async def take_place(api: Api, principal: Principal) -> Callable[[], None]:
    """Take one of the places of followers; the returned function gives it back. Raises Refused when
    there is none, and RegistryError."""
    places, person = api.followers, principal.user_id
    tenant = await api.shares.whose(principal)
    match places.take(person, tenant):
        case "":
            return partial(places.give_back, person, tenant)
        case "person":
            message = (
                f"You follow events {places.per_person} times already: close some pages of "
                "the console, or end a program (limits.max_events_per_person)."
            )
        case "tenant":
            message = (
                f"Your tenant follows events {places.per_tenant} times already, three quarters of "
                "limits.max_events: close some pages of the console, or end a program."
            )
        case _:
            message = "As many callers follow events as this server allows (limits.max_events)."
    raise Refused(503, "too_many_followers", message, headers={"retry-after": "10"})


async def end_with_rights(
    request: Request, api: Api, principal: Principal, scope: trio.CancelScope
) -> None:
    """Cancel the scope when the reader loses the right to read, or the server ends."""
    while not api.hub.is_over and await api.identification(request) == principal:  # noqa: ASYNC110
        await trio.sleep(RECHECK)
    scope.cancel()


async def _tell(
    say: Say, request: Request, api: Api, principal: Principal, last_event_id: str | None
) -> None:
    assert principal.tenant_id is not None
    number, has_gap = _place(api, last_event_id)
    await say(": following\n\n")
    if has_gap:
        await say(_gap(api, number))
    quiet_since = trio.current_time()
    checked = trio.current_time()
    told = -math.inf
    while not api.hub.is_over:
        # Not with each event, of which there may be thousands: it asks the registry.
        if trio.current_time() - checked >= RECHECK:
            if await api.identification(request) != principal:
                return
            checked = trio.current_time()
        events, has_gap = api.hub.after(number, principal.tenant_id)
        if has_gap:
            await say(_gap(api, api.hub.last_number))
        number = api.hub.last_number
        for begin in range(0, len(events), _AT_ONCE):
            some = events[begin : begin + _AT_ONCE]
            await say("".join(_event(api.hub.epoch, event) for event in some))
            told = trio.current_time()
        if events or has_gap:
            quiet_since = trio.current_time()
        elif trio.current_time() - quiet_since >= HEARTBEAT:
            quiet_since = trio.current_time()
            await say(": still here\n\n")
        with trio.move_on_after(RECHECK):
            await api.hub.wait_after(number, principal.tenant_id)
            await trio.sleep_until(told + _PACE)


def _place(api: Api, last_event_id: str | None) -> tuple[int, bool]:
    """The number after which to begin, and whether some events are certainly missing."""
    if last_event_id is None:
        return api.hub.last_number, False
    epoch, _, number = last_event_id.partition("-")
    if epoch != api.hub.epoch or not number.isascii() or not number.isdigit():
        return api.hub.last_number, True
    return min(int(number[:18]), api.hub.last_number), False


@lru_cache(maxsize=1024)  # all followers of a tenant get the same text
def _event(epoch: str, event: TenantEvent) -> str:
    return sse(event.kind, event.to_json(), f"{epoch}-{event.number}")


def _gap(api: Api, number: int) -> str:
    return sse("gap", {}, f"{api.hub.epoch}-{number}")
