"""SSH keys of devices without an agent, which connect by OpenSSH: `/api/devices/…/ssh-keys`.

The device itself calls the first route, with a proof instead of an identity.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from tunnelmux.api.access import AccessRoute, Principal, Role, need, require
from tunnelmux.api.context import Api, ApiDependency, MaybeSignedIn, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import Ended, ExactInput, Record
from tunnelmux.api.routes.pairing import Waiting, codes_refused
from tunnelmux.config import Secret, hash_token
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import Actor, Arrival, Device, Pairing, parse_public_key

router = APIRouter(route_class=AccessRoute, tags=["devices"])

Viewer = Annotated[Principal, need(Role.VIEWER, "devices:read")]
Operator = Annotated[Principal, need(Role.OPERATOR, "devices:write")]
Serial = Annotated[str, Path(max_length=128, description="The device's serial number.")]
DeviceId = Annotated[str, Path(max_length=64, description="The device's id.")]
Word = Annotated[str, Field(min_length=1, max_length=128)]

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 40

_DAY = 86_400.0

KEY_SHOWN = "SSH key"
"""The beginning of the fingerprint, which an operator compares, in a request for an SSH key."""


class NewDeviceKey(ExactInput):
    """A device's public key, and the proof that it may have one: exactly one of the four, or an
    operator's identity."""

    key: Annotated[str, Field(max_length=12_000)]
    lifetime: Annotated[float, Field(ge=60, le=366 * _DAY)] = _DAY
    name: Annotated[str, Field(max_length=63)] = ""
    code: Annotated[str, Field(max_length=64)] | None = None
    install_key: Word | None = None
    secret: Word | None = None
    token: Word | None = None


class DeviceKey(Record):
    """A key that lets a device log in to the gateway until `expires`."""

    id: str
    device_id: str
    fingerprint: str
    created: datetime
    expires: datetime
    last_used: datetime | None
    last_address: str


class AddedDeviceKey(BaseModel):
    """The key, and the device's name. If the proof works only once, the answer has a `token`, shown
    only here: it proves the device's next keys."""

    ssh_key: DeviceKey
    device: str
    token: str | None


@router.post("/api/devices/{serial}/ssh-keys", status_code=201, responses={202: {"model": Waiting}})
async def add_device_key(
    request: Request,
    response: Response,
    api: ApiDependency,
    principal: MaybeSignedIn,
    serial: Serial,
    new: NewDeviceKey,
) -> AddedDeviceKey | Waiting:
    """Let the device with this serial number log in to the gateway with this key, for `lifetime`
    seconds. The proof is a pairing `code`, an `install_key`, the `secret` of a request that an
    operator has approved, the `token` of an earlier answer, or an operator's identity. The status
    is 202 while an operator has to approve it: then send the same again with `secret`."""
    parse_public_key(new.key)  # before the proof, which may work only once
    found = await _proven(request, api, principal, serial, new)
    if isinstance(found, Waiting):
        response.status_code = 202
        return found
    tenant_id, device, token = found
    by = Actor(kind="device", id=device.id, name=device.name, address=_address(request))
    tenant = (
        api.registry.tenant(tenant_id, by)
        if principal is None or _has_proof(new)
        else tenant_for(api, principal)
    )
    added = await tenant.device_ssh_keys.add(device.id, new.key, new.lifetime)
    return AddedDeviceKey(
        ssh_key=DeviceKey.model_validate(added),
        device=device.label,
        token=token.reveal() if token is not None else None,
    )


@router.get("/api/devices/{device_id}/gateway-keys")
async def list_device_keys(
    api: ApiDependency, principal: Viewer, device_id: DeviceId
) -> list[DeviceKey]:
    """The keys that let a device log in to the gateway now, the newest first."""
    found = await tenant_for(api, principal).device_ssh_keys.of(device_id)
    return [DeviceKey.model_validate(key) for key in found]


@router.delete("/api/devices/{device_id}/gateway-keys/{device_key_id}")
async def remove_device_key(
    api: ApiDependency,
    principal: Operator,
    device_id: DeviceId,
    device_key_id: Annotated[str, Path(max_length=64)],
) -> Ended:
    """Remove a key; a device that is connected by it is disconnected."""
    change = await tenant_for(api, principal).device_ssh_keys.remove(device_id, device_key_id)
    return await Ended.by(api.registry, change)


async def _proven(
    request: Request, api: Api, principal: Principal | None, serial: str, new: NewDeviceKey
) -> tuple[str, Device, Secret | None] | Waiting:
    """The tenant and the device of the proof, and a token if the proof created one."""
    joining, address = api.registry.joining, _address(request)
    name = new.name or _NOT_IN_NAMES.sub("-", serial.lower())[:_LONGEST_NAME].strip("-")
    shown = f"{KEY_SHOWN} {parse_public_key(new.key).fingerprint}"
    if sum(proof is not None for proof in _proofs(new)) > 1:
        raise Refused(409, "invalid", "Give one of code, install_key, secret and token.")
    with codes_refused():
        result: Arrival | Pairing | tuple[Pairing, Secret]
        if new.code is not None:
            result = await joining.exchange(new.code, address=address, name=name, serial=serial)
        elif new.install_key is not None:
            result = await joining.install(
                Secret(new.install_key),
                address=address,
                name=name,
                serial=serial,
                fingerprint=shown,
            )
        elif new.secret is not None:
            result = await joining.poll(Secret(new.secret), fingerprint=shown)
        elif new.token is not None:
            return await _by_token(api, serial, Secret(new.token))
        else:
            operator = require(principal, Role.OPERATOR, "devices:write")
            tenant = tenant_for(api, operator)
            return tenant.tenant_id, await tenant.devices.find_called(serial), None
    if isinstance(result, Arrival):
        _check_serial(result.device, serial)
        return result.tenant_id, result.device, result.token
    pairing, secret = result if isinstance(result, tuple) else (result, None)
    return Waiting(
        code=None,
        secret=secret.reveal() if secret is not None else None,
        expires_in=(pairing.expires - pairing.created).total_seconds(),
        confirm_url=f"{api.config.api.public_url.rstrip('/')}/pair",
    )


async def _by_token(api: Api, serial: str, token: Secret) -> tuple[str, Device, None]:
    found = await api.registry.fleet.identify(hash_token(token))
    if found is None or found.refused:
        raise RegistryRefused("no device that may connect has this token", code="key_unknown")
    by = Actor(kind="device", id=found.device_id)
    device = await api.registry.tenant(found.tenant_id, by).devices.find(found.device_id)
    _check_serial(device, serial)
    return found.tenant_id, device, None


def _check_serial(device: Device, serial: str) -> None:
    if serial.casefold() not in (device.serial.casefold(), device.name):
        raise RegistryRefused(
            "this proof is for a device with another serial number", code="wrong_serial"
        )


def _proofs(new: NewDeviceKey) -> tuple[str | None, ...]:
    return new.code, new.install_key, new.secret, new.token


def _has_proof(new: NewDeviceKey) -> bool:
    return any(proof is not None for proof in _proofs(new))


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""
