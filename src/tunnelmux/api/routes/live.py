"""The tunnels of devices that are connected now, and the visits through them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.backend import ApiCallFailed
from tunnelmux.backend.proxies import LiveSession
from tunnelmux.errors import ConnectError, SessionNotFound
from tunnelmux.registry import Device

router = APIRouter(prefix="/api", route_class=AccessRoute, tags=["live"])

Viewer = Annotated[Principal, need(Role.VIEWER, "sessions")]
Operator = Annotated[Principal, need(Role.OPERATOR, "sessions")]

DeviceId = Annotated[str, Path(max_length=64)]
VisitId = Annotated[str, Path(max_length=64)]


class LiveTunnel(BaseModel):
    """The tunnel of a device."""

    device_id: str
    device: str
    proxy_id: str
    connected_at: datetime
    last_heartbeat: datetime
    address: str
    user_id: str


class LiveTunnels(BaseModel):
    """All tunnels of the tenant's devices; `silent` names proxies that did not answer."""

    items: list[LiveTunnel]
    silent: list[str]


class LiveVisit(BaseModel):
    """A visitor's use of one service."""

    id: str
    way: str
    service: str
    visitor: str
    since: datetime
    bytes_in: int
    bytes_out: int


class Closed(BaseModel):
    """How many tunnels or visits were ended."""

    closed: int


@router.get("/sessions")
async def list_sessions(api: ApiDependency, principal: Viewer) -> LiveTunnels:
    """The tunnels of the tenant's devices, by device."""
    survey = await api.proxies.survey()
    devices = await _by_label(api, principal)
    items = [
        _tunnel(devices[session.summary.device_id], session)
        for session in survey.sessions
        if session.summary.device_id in devices
    ]
    return LiveTunnels(items=sorted(items, key=lambda item: item.device), silent=survey.silent)


@router.post("/devices/{device_id}/session/close")
async def close_session(api: ApiDependency, principal: Operator, device_id: DeviceId) -> Closed:
    """End a device's tunnel now. The agent connects again: to keep it out, disable the device."""
    tenant = tenant_for(api, principal)
    device = await tenant.devices.find(device_id)
    closed = 0
    for session in (await api.proxies.survey(device.label)).sessions:
        try:
            await session.client.close_session(session.summary.token)
            closed += 1
        except SessionNotFound:
            continue
    await tenant.audit.note("session.close", object_kind="device", object_id=device.id)
    return Closed(closed=closed)


@router.get("/devices/{device_id}/visits")
async def list_visits(
    api: ApiDependency, principal: Viewer, device_id: DeviceId
) -> list[LiveVisit]:
    """The visits to a device that go on now, the oldest first."""
    device = await tenant_for(api, principal).devices.find(device_id)
    visits: list[LiveVisit] = []
    for client in await api.proxies.clients():
        try:
            found = await client.list_visits(device=device.label)
        except (ConnectError, ApiCallFailed):
            continue
        visits += [
            LiveVisit(
                id=item.id,
                way=item.way,
                service=item.service,
                visitor=item.visitor,
                since=item.since,
                bytes_in=item.bytes_in,
                bytes_out=item.bytes_out,
            )
            for item in found
        ]
    return sorted(visits, key=lambda item: item.since)


@router.post("/devices/{device_id}/visits/{visit_id}/close")
async def close_visit(
    api: ApiDependency, principal: Operator, device_id: DeviceId, visit_id: VisitId
) -> Closed:
    """End one visit now."""
    tenant = tenant_for(api, principal)
    device = await tenant.devices.find(device_id)
    for client in await api.proxies.clients():
        try:
            if visit_id in {item.id for item in await client.list_visits(device=device.label)}:
                await client.close_visit(visit_id)
                details: dict[str, object] = {"visit": visit_id}
                await tenant.audit.note(
                    "visit.close", object_kind="device", object_id=device.id, details=details
                )
                return Closed(closed=1)
        except (ConnectError, ApiCallFailed):
            continue
    raise Refused(404, "not_found", "There is no such visit, or it is over.")


async def _by_label(api: Api, principal: Principal) -> dict[str, Device]:
    devices: dict[str, Device] = {}
    after: str | None = None
    while True:
        page = await tenant_for(api, principal).devices.page(limit=200, after=after)
        devices |= {device.label: device for device in page.items}
        if (after := page.next) is None:
            return devices


def _tunnel(device: Device, session: LiveSession) -> LiveTunnel:
    summary = session.summary
    return LiveTunnel(
        device_id=device.id,
        device=device.name,
        proxy_id=session.proxy_id,
        connected_at=summary.connected_at,
        last_heartbeat=summary.last_heartbeat,
        address=summary.remote_addr,
        user_id=summary.user_id,
    )
