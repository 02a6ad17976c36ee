"""Devices: `/api/devices`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.problems import Refused, registry_refusal
from tunnelmux.api.records import (
    TEXT,
    After,
    Credential,
    Device,
    DeviceSession,
    Ended,
    Input,
    Labels,
    Limit,
    Listing,
    listing,
)
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import DeviceFilter, Revocation
from tunnelmux.registry.ids import MAX_PAGE
from tunnelmux.registry.names import MAX_LABELS

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["devices"])

Viewer = Annotated[Principal, need(Role.VIEWER, "devices:read")]
Operator = Annotated[Principal, need(Role.OPERATOR, "devices:write")]

DeviceId = Annotated[str, Path(max_length=64, description="The device's id.")]
Name = Annotated[str, Field(min_length=1, max_length=63)]
Serial = Annotated[str, Field(max_length=128)]
LabelFilter = Annotated[str, Query(pattern=r"^[^=\x00]+=[^\x00]*$", max_length=320)]


class NewDevice(Input):
    """A device to add by hand; pairing is the usual way."""

    name: Name
    serial: Serial = ""
    labels: Labels = Field(default_factory=dict)


class DeviceChange(Input):
    """The fields to change; fields that are left out stay."""

    name: Name | None = None
    serial: Serial | None = None
    labels: Labels | None = None


class Quarantine(Input):
    """Why a device is in quarantine; people read it."""

    reason: Annotated[str, Field(min_length=1, max_length=500)]


class BulkChange(Input):
    """A change of many devices, each separately."""

    ids: Annotated[
        list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MAX_PAGE)
    ]
    action: Literal["enable", "disable", "label", "revoke"]
    label: Annotated[str, Field(max_length=320)] = ""
    """With the action `label`: the label to set on each, as `key=value`."""


class NotChanged(BaseModel):
    """A device that was not changed, and why."""

    device_id: str
    code: str
    detail: str


class BulkChanged(BaseModel):
    """How many devices were changed, and which were not."""

    changed: int
    failed: list[NotChanged]


class DeviceWithToken(BaseModel):
    """A device and its token, which is shown only this once."""

    device: Device
    token: str
    ended: Ended | None = None


class ChangedDevice(BaseModel):
    """A device after a change, and what the change has ended."""

    device: Device
    ended: Ended


@router.get("")
async def list_devices(
    api: ApiDependency,
    principal: Viewer,
    name: Annotated[
        str, Query(max_length=128, pattern=TEXT, description="A part of name or serial.")
    ] = "",
    label: Annotated[
        list[LabelFilter] | None,
        Query(description="`key=value`, all of them.", max_length=MAX_LABELS),
    ] = None,
    online: bool | None = None,
    enabled: bool | None = None,
    quarantined: bool | None = None,
    asks_for_help: Annotated[
        bool | None, Query(description="Whether assistance is switched on there.")
    ] = None,
    limit: Limit = 50,
    after: After = None,
) -> Listing[Device]:
    """The tenant's devices by name."""
    pairs = tuple((key, value) for key, _, value in (item.partition("=") for item in label or ()))
    where = DeviceFilter(
        name=name,
        labels=pairs,
        online=online,
        enabled=enabled,
        quarantined=quarantined,
        asks_for_help=asks_for_help,
    )
    page = await tenant_for(api, principal).devices.page(where=where, limit=limit, after=after)
    return listing(page, Device.model_validate)


@router.post("", status_code=201)
async def add_device(api: ApiDependency, principal: Operator, new: NewDevice) -> DeviceWithToken:
    """Add a device by hand; the answer has its token."""
    user = await api.installation.users.find(principal.user_id)
    device, token = await tenant_for(api, principal).devices.add(
        new.name,
        serial=new.serial,
        labels=new.labels,
        paired_by=user.id,
        paired_by_name=user.called,
    )
    return DeviceWithToken(device=Device.model_validate(device), token=token.reveal())


@router.post("/bulk")
async def change_devices(api: ApiDependency, principal: Operator, wish: BulkChange) -> BulkChanged:
    """Enable, disable, label or revoke many devices, one after the other. When one fails, the
    answer says so, and the others are still changed."""
    if (wish.action == "label") != ("=" in wish.label[1:]):
        raise Refused(409, "invalid", 'Send label, as key=value, with the action "label".')
    tenant = tenant_for(api, principal)
    failed: list[NotChanged] = []
    for device_id in dict.fromkeys(wish.ids):
        try:
            match wish.action:
                case "enable" | "disable":
                    await tenant.devices.set_enabled(device_id, wish.action == "enable")
                case "revoke":
                    await tenant.credentials.revoke(device_id)
                case "label":
                    key, _, value = wish.label.partition("=")
                    labels = (await tenant.devices.find(device_id)).labels
                    await tenant.devices.change(device_id, labels={**labels, key: value})
        except (NoSuchRecord, RegistryRefused) as exc:
            refusal = registry_refusal(exc)
            failed.append(NotChanged(device_id=device_id, code=refusal.code, detail=refusal.detail))
    return BulkChanged(changed=len(set(wish.ids)) - len(failed), failed=failed)


@router.get("/{device_id}")
async def get_device(api: ApiDependency, principal: Viewer, device_id: DeviceId) -> Device:
    """One device."""
    return Device.model_validate(await tenant_for(api, principal).devices.find(device_id))


@router.patch("/{device_id}")
async def change_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId, change: DeviceChange
) -> Device:
    """Change name, serial number or labels. A new name ends the device's session."""
    device = await tenant_for(api, principal).devices.change(
        device_id, name=change.name, serial=change.serial, labels=change.labels
    )
    return Device.model_validate(device)


@router.delete("/{device_id}")
async def remove_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> ChangedDevice:
    """Delete a device, its credentials and its history."""
    return await _changed(api, await tenant_for(api, principal).devices.remove(device_id))


@router.post("/{device_id}/enable")
async def enable_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> ChangedDevice:
    """Let a device that was disabled connect again."""
    devices = tenant_for(api, principal).devices
    return await _changed(api, await devices.set_enabled(device_id, True))


@router.post("/{device_id}/disable")
async def disable_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> ChangedDevice:
    """Disable a device: it cannot connect until it is enabled; its session and visits end."""
    devices = tenant_for(api, principal).devices
    return await _changed(api, await devices.set_enabled(device_id, False))


@router.post("/{device_id}/revoke")
async def revoke_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> ChangedDevice:
    """End a device's credentials: it stays known, and has to be paired again."""
    return await _changed(api, await tenant_for(api, principal).credentials.revoke(device_id))


@router.put("/{device_id}/quarantine")
async def quarantine_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId, wish: Quarantine
) -> ChangedDevice:
    """Put a device into quarantine, with a reason."""
    tenant = tenant_for(api, principal)
    return await _changed(api, await tenant.devices.set_quarantine(device_id, wish.reason))


@router.delete("/{device_id}/quarantine")
async def release_device(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> ChangedDevice:
    """End a device's quarantine."""
    devices = tenant_for(api, principal).devices
    return await _changed(api, await devices.set_quarantine(device_id, ""))


@router.post("/{device_id}/credentials/rotate")
async def rotate_credential(api: ApiDependency, principal: Operator, device_id: DeviceId) -> Device:
    """Give the device a new credential over its tunnel; then the old one ends."""
    return Device.model_validate(await tenant_for(api, principal).credentials.rotate(device_id))


@router.delete("/{device_id}/credentials/rotate")
async def cancel_rotation(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> ChangedDevice:
    """Cancel a rotation that is not complete yet."""
    return await _changed(
        api, await tenant_for(api, principal).credentials.cancel_rotation(device_id)
    )


@router.post("/{device_id}/credentials/replace")
async def replace_credential(
    api: ApiDependency, principal: Operator, device_id: DeviceId
) -> DeviceWithToken:
    """End all credentials of a device and make a new one, which a person brings to it."""
    revocation, token = await tenant_for(api, principal).credentials.replace(device_id)
    changed = await _changed(api, revocation)
    return DeviceWithToken(device=changed.device, token=token.reveal(), ended=changed.ended)


@router.get("/{device_id}/credentials")
async def list_credentials(
    api: ApiDependency, principal: Viewer, device_id: DeviceId
) -> list[Credential]:
    """A device's current and earlier credentials, the newest first; never the tokens."""
    credentials = await tenant_for(api, principal).credentials.of(device_id)
    return [Credential.model_validate(item) for item in credentials]


@router.get("/{device_id}/sessions")
async def list_device_sessions(
    api: ApiDependency,
    principal: Viewer,
    device_id: DeviceId,
    limit: Limit = 50,
    after: After = None,
) -> Listing[DeviceSession]:
    """A device's current and earlier sessions, the newest first."""
    devices = tenant_for(api, principal).devices
    page = await devices.sessions(device_id, limit=limit, after=after)
    return listing(page, DeviceSession.model_validate)


async def _changed(api: Api, revocation: Revocation) -> ChangedDevice:
    return ChangedDevice(
        device=Device.model_validate(revocation.device),
        ended=await Ended.by(api.registry, revocation.change),
    )
