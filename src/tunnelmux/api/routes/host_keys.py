"""The host keys of devices' SSH servers: `/api/devices/…/ssh-host-keys`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import ApiDependency, tenant_for
from tunnelmux.api.records import Input
from tunnelmux.registry import DeviceHostKeys, parse_public_key

router = APIRouter(
    prefix="/api/devices/{device_id}/ssh-host-keys", route_class=AccessRoute, tags=["devices"]
)

Viewer = Annotated[Principal, need(Role.VIEWER, "devices:read")]
Operator = Annotated[Principal, need(Role.OPERATOR, "devices:write")]
DeviceId = Annotated[str, Path(max_length=64, description="The device's id.")]


class HostKey(BaseModel):
    """A key, as a line of `known_hosts` has it behind the name, and its fingerprint."""

    line: str
    type: str
    fingerprint: str


class HostKeys(BaseModel):
    """The host keys that the gateway accepts, and new ones that wait to be accepted."""

    pinned: list[HostKey]
    reported: list[HostKey]


class AcceptedKeys(Input):
    """The fingerprints of all keys that wait, as they were shown."""

    fingerprints: Annotated[
        list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=8)
    ]


@router.get("")
async def list_host_keys(api: ApiDependency, principal: Viewer, device_id: DeviceId) -> HostKeys:
    """The host keys of the device's SSH server: the pinned ones, and new ones that its agent has
    reported or the gateway has met."""
    return _told(await tenant_for(api, principal).devices.host_keys(device_id))


@router.post("/accept")
async def accept_host_keys(
    api: ApiDependency, principal: Operator, device_id: DeviceId, accepted: AcceptedKeys
) -> HostKeys:
    """Pin the new keys in place of the old ones: the device's SSH server was installed anew."""
    devices = tenant_for(api, principal).devices
    return _told(await devices.accept_host_keys(device_id, accepted.fingerprints))


@router.delete("")
async def forget_host_keys(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> HostKeys:
    """Forget all host keys of the device: the next that are reported or met are pinned."""
    return _told(await tenant_for(api, principal).devices.forget_host_keys(device_id))


def _told(keys: DeviceHostKeys) -> HostKeys:
    return HostKeys(pinned=_listed(keys.pinned), reported=_listed(keys.reported))


def _listed(lines: Sequence[str]) -> list[HostKey]:
    keys = [parse_public_key(line) for line in lines]
    return [HostKey(line=key.line, type=key.kind, fingerprint=key.fingerprint) for key in keys]
