"""The console's pages about requests: those to a device as they come, and the inspector."""

from __future__ import annotations

import base64
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from tunnelmux.api.access import Principal, Role, need
from tunnelmux.api.context import ApiDependency
from tunnelmux.api.records import TEXT
from tunnelmux.api.routes import devices, inspections
from tunnelmux.api.routes.console import PageRoute, frame_of, show
from tunnelmux.api.routes.inspections import InspectionId, RequestId, WholeRequest

router = APIRouter(prefix="/devices", route_class=PageRoute, include_in_schema=False)

Watcher = Annotated[Principal, need(Role.OPERATOR, "requests")]
Inspecting = Annotated[Principal, need(Role.OPERATOR, "inspect")]

Condition = Annotated[str, Query(max_length=256, pattern=TEXT)]

_TIMES = ((300, "5 min"), (600, "10 min"), (1800, "30 min"), (3600, "1 h"))


@router.get("/{device_id}/requests")
async def live_log(
    request: Request,
    api: ApiDependency,
    principal: Watcher,
    device_id: devices.DeviceId,
    service: Condition = "",
    status: Condition = "",
    path: Condition = "",
) -> Response:
    """Requests to a device as they come; which of its services are inspected."""
    device = await devices.get_device(api, principal, device_id)
    me = await frame_of(request, api, principal)
    said = {"service": service, "status": status, "path": path}
    query = urlencode({key: value for key, value in said.items() if value})
    return show(
        "requests",
        "/devices",
        me,
        device=device,
        said=said,
        source=f"/api/devices/{device.id}/requests" + (f"?{query}" if query else ""),
        running=await inspections.list_inspections(api, principal, device.id),
        times=_TIMES,
    )


@router.get("/{device_id}/inspections/{inspection_id}")
async def inspection_page(
    request: Request,
    api: ApiDependency,
    principal: Inspecting,
    device_id: devices.DeviceId,
    inspection_id: InspectionId,
    method: Condition = "",
    status: Condition = "",
    path: Condition = "",
) -> Response:
    """What was kept so far, the newest first."""
    found = await inspections.get_inspection(
        api, principal, device_id, inspection_id, method, status, path
    )
    me = await frame_of(request, api, principal)
    said = {"method": method, "status": status, "path": path}
    return show("inspection", "/devices", me, inspection=found, said=said)


@router.get("/{device_id}/inspections/{inspection_id}/requests/{request_id}")
async def inspected_page(
    request: Request,
    api: ApiDependency,
    principal: Inspecting,
    device_id: devices.DeviceId,
    inspection_id: InspectionId,
    request_id: RequestId,
    beside: Annotated[str, Query(max_length=64, pattern=TEXT)] = "",
) -> Response:
    """One request with all that is known of it, or two side by side."""
    found = await inspections.get_inspection(api, principal, device_id, inspection_id)
    ids = [request_id, *([beside] if beside and beside != request_id else [])]
    shown = [
        await inspections.get_request(api, principal, device_id, inspection_id, one) for one in ids
    ]
    me = await frame_of(request, api, principal)
    return show(
        "inspected",
        "/devices",
        me,
        inspection=found,
        shown=shown,
        bodies=[(_text(one.body), _text(one.answer_body)) for one in shown],
        differs=_differences(shown),
        beside=beside,
    )


def _text(body: str | None) -> str | None:
    """A body for people; None where there is none to show."""
    if not body:
        return None
    content = base64.b64decode(body)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return f"({len(content)} bytes that are no text)"


def _differences(shown: list[WholeRequest]) -> set[str]:
    """Names of fields, of the request as `> name` and of the answer as `< name`, and of `method`,
    `target`, `status`, which two requests have not in common."""
    if len(shown) < 2:
        return set()
    first, second = (_facts(one) for one in shown)
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def _facts(one: WholeRequest) -> dict[str, list[str]]:
    facts = {"method": [one.method], "target": [one.target], "status": [str(one.status)]}
    for mark, fields in ((">", one.headers), ("<", one.answer_headers)):
        for name, value in fields:
            facts.setdefault(f"{mark} {name.lower()}", []).append(value)
    return facts
