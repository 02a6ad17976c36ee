"""Following what happens: `/api/events`, as server-sent events."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import trio
from fastapi import APIRouter, Header, Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency
from tunnelmux.api.events import TenantEvent
from tunnelmux.api.problems import Refused

router = APIRouter(prefix="/api/events", route_class=AccessRoute, tags=["events"])

Viewer = Annotated[Principal, need(Role.VIEWER, "events")]

_HEARTBEAT = 15.0
# Seconds between two comments that show that the connection lives, for the proxies in between.

_RECHECK = 1.0
# Seconds between two looks whether the reader still may: rights end within two.


@router.get("", response_class=StreamingResponse)
async def follow_events(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> StreamingResponse:
    """What happens in the tenant from now on, or from behind `Last-Event-ID`; the event `gap` says
    that some are missing: read the lists anew. It ends when the reader's rights do."""
    if not api.followers.take():
        message = "As many callers follow events as this server lets (limits.max_events)."
        raise Refused(503, "too_many_followers", message, headers={"retry-after": "10"})
    return _EventStream(
        _stream(request, api, principal, last_event_id),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


class _EventStream(StreamingResponse):
    """Ends its generator together with itself: the framework leaves that to the collection of
    garbage, which comes at any time and from any thread."""

    def __init__(self, content: AsyncGenerator[str, None], **more: Any) -> None:
        super().__init__(content, **more)
        self._content = content

    async def stream_response(self, send: Send) -> None:
        """Serve it; called by the framework."""
        async with contextlib.aclosing(self._content):
            await super().stream_response(send)


async def _stream(
    request: Request, api: Api, principal: Principal, last_event_id: str | None
) -> AsyncGenerator[str, None]:
    assert principal.tenant_id is not None
    try:
        number, has_gap = _place(api, last_event_id)
        yield ": following\n\n"
        if has_gap:
            yield _format(api, "gap", number, {})
        quiet_since = trio.current_time()
        while not api.hub.is_over and await api.identification(request) == principal:
            events, has_gap = api.hub.after(number, principal.tenant_id)
            if has_gap:
                yield _format(api, "gap", api.hub.last_number, {})
            number = api.hub.last_number
            for event in events:
                yield _event(api, event)
            if events or has_gap:
                quiet_since = trio.current_time()
            elif trio.current_time() - quiet_since >= _HEARTBEAT:
                quiet_since = trio.current_time()
                yield ": still here\n\n"
            with trio.move_on_after(_RECHECK):
                await api.hub.wait_after(number)
    finally:
        api.followers.give_back()


def _place(api: Api, last_event_id: str | None) -> tuple[int, bool]:
    """From which number on, and whether some before are missing for certain."""
    if last_event_id is None:
        return api.hub.last_number, False
    epoch, _, number = last_event_id.partition("-")
    if epoch != api.hub.epoch or not number.isascii() or not number.isdigit():
        return api.hub.last_number, True
    return min(int(number), api.hub.last_number), False


def _event(api: Api, event: TenantEvent) -> str:
    return _format(api, event.kind, event.number, event.to_json())


def _format(api: Api, kind: str, number: int, content: dict[str, str]) -> str:
    return f"id: {api.hub.epoch}-{number}\nevent: {kind}\ndata: {json.dumps(content)}\n\n"
