"""The fleet at a glance: `/api/overview`, of which the console's first page is made."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import trio
from fastapi import APIRouter
from pydantic import BaseModel

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.records import Device
from tunnelmux.api.routes import devices
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.console import Condition, condition_of
from tunnelmux.errors import ConnectError, NoSuchRecord
from tunnelmux.registry import DeviceFilter
from tunnelmux.sessions.traffic import DeviceTraffic, OtherTraffic, TrafficList

__all__ = ["STATES", "condition_of_device", "count_devices", "router"]

router = APIRouter(prefix="/api/overview", route_class=AccessRoute, tags=["devices"])

Viewer = Annotated[Principal, need(Role.VIEWER, "devices:read")]

_LOOKED_AT, _SHOWN = 50, 6
# Devices in trouble that are looked at, and those of them that are named.

_BUSIEST = 5
# Devices whose traffic is shown one by one.

_PATIENCE = 3.0
# Seconds that proxies get to say how much they carried: a person waits for the page.

STATES: dict[str, dict[str, Any]] = {
    "": {},
    "online": {"online": True, "enabled": True, "quarantined": False},
    "offline": {"online": False, "enabled": True, "quarantined": False},
    "quarantine": {"quarantined": True},
    "disabled": {"enabled": False, "quarantined": False},
}
"""For each choice what a device has to be: each is in one of them, as `condition_of` says it."""


class StateCounts(BaseModel):
    """How many devices are in which state."""

    all: int
    online: int
    offline: int
    quarantine: int
    disabled: int


class Trouble(BaseModel):
    """A device that asks for help, is turned away, or is not connected."""

    device_id: str
    device: str
    mark: Literal["online", "offline", "refused"]
    state: str
    """In words."""
    reason: str
    since: datetime | None
    until: datetime | None = None
    """When its wish for help ends."""


class BusyDevice(BaseModel):
    """What a device's tunnel has moved since it connected, and how many visit it now."""

    device_id: str
    device: str
    connected_at: datetime
    bytes_to_device: int
    bytes_from_device: int
    visits: int


class Traffic(BaseModel):
    """What all tunnels have moved since they connected; the busiest devices first. `is_complete` is
    false where a proxy did not answer."""

    bytes_to_device: int
    bytes_from_device: int
    busiest: list[BusyDevice]
    is_complete: bool


class Overview(BaseModel):
    """What the first page of the console shows, without leases."""

    devices: StateCounts
    traffic: Traffic
    attention: list[Trouble]


@router.get("")
async def overview(api: ApiDependency, principal: Viewer) -> Overview:
    """How many devices are online, how much they move, and which of them need a person."""
    return Overview(
        devices=StateCounts(**await count_devices(api, principal, DeviceFilter())),
        traffic=await _traffic(api, principal),
        attention=await _attention(api, principal),
    )


async def count_devices(api: Api, principal: Principal, where: DeviceFilter) -> dict[str, int]:
    """How many devices with this name and these labels are in each state, and in all."""
    known = tenant_for(api, principal).devices
    counts: dict[str, int] = {}
    for state, wish in STATES.items():
        wanted = DeviceFilter(name=where.name, labels=where.labels, **wish)
        counts[state or "all"] = await known.count(wanted)
    return counts


def condition_of_device(device: Device) -> Condition:
    """How a device is, for people."""
    state = device.state
    return condition_of(
        enabled=device.enabled,
        quarantine=device.quarantine,
        online=state.online,
        since=state.since,
        reason=state.reason,
    )


async def _attention(api: Api, principal: Principal) -> list[Trouble]:
    """The devices that ask for help, and a few that are turned away or not connected: what went
    last is first."""
    asking = await devices.list_devices(
        api, principal, asks_for_help=True, online=True, limit=_LOOKED_AT
    )
    seen: dict[str, Trouble] = {}
    for state in ("disabled", "quarantine", "offline"):
        listed = await devices.list_devices(api, principal, **STATES[state], limit=_LOOKED_AT)
        for device in listed.items:
            condition = condition_of_device(device)
            seen[device.id] = Trouble(
                device_id=device.id,
                device=device.name,
                mark=condition.mark,
                state=condition.word,
                reason=condition.reason,
                since=condition.since,
            )

    def urgency(trouble: Trouble) -> tuple[bool, float]:
        since = trouble.since.timestamp() if trouble.since is not None else 0.0
        return trouble.mark != "refused", -since

    for device in asking.items:
        seen.pop(device.id, None)
    trouble = [*map(_asking, asking.items), *sorted(seen.values(), key=urgency)]
    return trouble[: max(_SHOWN, len(asking.items))]


def _asking(device: Device) -> Trouble:
    assist = device.state.assist
    assert assist is not None  # else it asks for nothing
    return Trouble(
        device_id=device.id,
        device=device.name,
        mark="online",
        state="asks for help",
        reason=f"assistance with {', '.join(assist.services)} is switched on there",
        until=assist.until,
        since=None,
    )


async def _traffic(api: Api, principal: Principal) -> Traffic:
    assert principal.tenant_id is not None  # `need(role, …)` has seen to it
    home = await api.installation.tenants.find(principal.tenant_id)
    clients = await api.proxies.clients()
    answers: list[TrafficList] = []

    async def ask(client: ProxyClient) -> None:
        try:
            answers.append(await client.list_traffic(tenant=home.name, top=_BUSIEST))
        except (ConnectError, ApiCallFailed):
            return

    with trio.move_on_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(ask, client)
    shown = [one for answer in answers for one in answer.devices]
    shown.sort(key=lambda one: -one.bytes_to_device - one.bytes_from_device)
    parts: list[DeviceTraffic | OtherTraffic] = [*shown, *(answer.rest for answer in answers)]
    return Traffic(
        bytes_to_device=sum(one.bytes_to_device for one in parts),
        bytes_from_device=sum(one.bytes_from_device for one in parts),
        busiest=await _named(api, principal, home.name, shown[:_BUSIEST]),
        is_complete=len(answers) == len(clients),
    )


async def _named(
    api: Api, principal: Principal, tenant: str, busiest: list[DeviceTraffic]
) -> list[BusyDevice]:
    """Proxies know devices by their labels, people by their names."""
    known = tenant_for(api, principal).devices
    found = []
    for one in busiest:
        try:
            device = await known.find_named(one.device.removesuffix(f"--{tenant}"))
        except NoSuchRecord:
            continue  # it was removed just now, or is one of proxy.toml
        found.append(
            BusyDevice(
                device_id=device.id,
                device=device.name,
                connected_at=one.connected_at,
                bytes_to_device=one.bytes_to_device,
                bytes_from_device=one.bytes_from_device,
                visits=one.visits,
            )
        )
    return found
