"""Watching requests to a device as they end: `/api/devices/{device_id}/requests`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import trio
from fastapi import APIRouter, Path, Query, Request

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.event_stream import HEARTBEAT, EventStream, Say, sse
from tunnelmux.api.problems import Refused
from tunnelmux.api.request_feed import watch_requests
from tunnelmux.api.routes.events import end_with_rights, take_place
from tunnelmux.registry import Device
from tunnelmux.sessions import RequestFilter

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["requests"])

Operator = Annotated[Principal, need(Role.OPERATOR, "requests")]

DeviceId = Annotated[str, Path(max_length=64)]


@router.get("/{device_id}/requests", response_class=EventStream, status_code=200)
async def watch(
    request: Request,
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    service: Annotated[str, Query(max_length=64)] = "",
    status: Annotated[str, Query(max_length=64)] = "",
    path: Annotated[str, Query(max_length=256)] = "",
) -> EventStream:
    """Requests to the device as events `request`, each when it is over. `dropped` says how many
    this reader has missed because it was too slow. `status` is `404` or `5xx`, or several with
    commas; `path` is a prefix, or a pattern with `*`. The stream goes on when the device
    reconnects, and ends when the reader's rights end."""
    device = await tenant_for(api, principal).devices.find(device_id)
    said = {"device": device.label, "service": service, "status": status, "path": path}
    try:
        wanted = RequestFilter.parse(said)
    except ValueError as error:
        raise Refused(422, "invalid_filter", f"{error}.") from None
    over = await take_place(api, principal)

    async def write(say: Say) -> None:
        await _tell(say, request, api, principal, device, wanted)

    return EventStream(write, over)


async def _tell(
    say: Say,
    request: Request,
    api: Api,
    principal: Principal,
    device: Device,
    wanted: RequestFilter,
) -> None:
    async with watch_requests(api.proxies, wanted) as requests, trio.open_nursery() as nursery:
        nursery.start_soon(end_with_rights, request, api, principal, nursery.cancel_scope)
        await say(": following\n\n")
        while True:
            with trio.move_on_after(HEARTBEAT) as wait:
                seen = await requests.receive()
            if wait.cancelled_caught:
                await say(": still here\n\n")
            elif isinstance(seen, int):
                await say(sse("dropped", {"count": seen}))
            else:
                # The proxy knows it by its label, people by its name.
                named = msgspec.structs.replace(seen, device=device.name)
                await say(sse("request", msgspec.json.encode(named).decode()))
