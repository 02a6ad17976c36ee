"""Pairing devices: `/api/pairings` and `/api/install-keys` for operators, and `/api/pairing` for
devices, which only have a code or a key."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field, StrictBool
from starlette.responses import Response

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, MaybeSignedIn, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import (
    After,
    Device,
    Ended,
    Input,
    InstallKey,
    Labels,
    Limit,
    Listing,
    Pairing,
    RecordId,
    listing,
)
from tunnelmux.config import Secret
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import Arrival

pairings = APIRouter(prefix="/api/pairings", route_class=AccessRoute, tags=["pairing"])
install_keys = APIRouter(prefix="/api/install-keys", route_class=AccessRoute, tags=["pairing"])
joining = APIRouter(prefix="/api/pairing", route_class=AccessRoute, tags=["pairing: devices"])

Operator = Annotated[Principal, need(Role.OPERATOR, "pairing")]
Admin = Annotated[Principal, need(Role.ADMIN, "pairing")]

Name = Annotated[str, Field(max_length=63)]
Serial = Annotated[str, Field(max_length=128)]
Code = Annotated[str, Field(min_length=4, max_length=64)]
AgentVersion = Annotated[str, Field(max_length=64)]
Fingerprint = Annotated[str, Field(max_length=128)]
PairingId = Annotated[str, Path(max_length=64)]

_TOO_MANY = frozenset({"too_many_guesses", "too_many_requests", "key_resting"})
_RETRY_AFTER = {"retry-after": "60"}
_POLL_SECONDS = 3


class NewCode(Input):
    """The properties of the device that uses the code; most can be left to the device."""

    name: Name = ""
    serial: Serial = ""
    labels: Labels = Field(default_factory=dict)
    replace: RecordId | None = None
    lifetime: Annotated[float, Field(ge=60, le=86_400)] | None = None


class MadeCode(BaseModel):
    """A code, shown only this once, and the command to type on the device."""

    pairing: Pairing
    code: str
    command: str


class CodeShown(Input):
    """The code that a device shows."""

    code: Code


class Approval(Input):
    """The name under which a device is approved; `replace` is the device that it replaces."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    labels: Labels | None = None
    replace: RecordId | None = None


class NewInstallKey(Input):
    """A key for many devices."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    lifetime: Annotated[float, Field(ge=60, le=366 * 86_400)] = 30 * 86_400.0
    max_uses: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    needs_approval: StrictBool = False
    serials: Annotated[list[Serial], Field(max_length=10_000)] = Field(default_factory=list)
    labels: Labels = Field(default_factory=dict)


class MadeInstallKey(BaseModel):
    """An install key; its text is shown only this once."""

    install_key: InstallKey
    key: str
    command: str


class KeyRevocation(Input):
    """What happens to the devices that used the key."""

    devices: Literal["keep", "disable", "remove"] = "keep"


class RevokedInstallKey(BaseModel):
    """The result of revoking a key."""

    install_key: InstallKey
    disabled: list[str]
    removed: list[str]
    ended: Ended


class JoinByCode(Input):
    """A code from the console, and what the device reports about itself."""

    code: Code
    name: Name = ""
    serial: Serial = ""
    agent_version: AgentVersion = ""


class JoinRequest(Input):
    """A device asks to be paired."""

    name: Name = ""
    serial: Serial = ""
    fingerprint: Fingerprint = ""
    agent_version: AgentVersion = ""


class JoinByKey(Input):
    """An install key, and what the device reports about itself."""

    key: Annotated[str, Field(min_length=8, max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=63)]
    serial: Serial = ""
    fingerprint: Fingerprint = ""
    agent_version: AgentVersion = ""


class PollSecret(Input):
    """The secret that the device got with its request."""

    secret: Annotated[str, Field(min_length=8, max_length=256)]


class Joined(BaseModel):
    """All that a device needs to connect; shown only this once."""

    device: str
    label: str
    token: str
    tunnel_urls: list[str]
    tunnel_pin: str | None


class Waiting(BaseModel):
    """The device waits for an operator: it shows the code and polls with the secret."""

    code: str | None
    secret: str | None
    expires_in: float
    interval: int = _POLL_SECONDS
    confirm_url: str


# For operators


@pairings.post("", status_code=201)
async def make_code(api: ApiDependency, principal: Operator, new: NewCode) -> MadeCode:
    """A code that a device exchanges for its credential. It works once, by default for 10 minutes.
    `replace` is the id of a device that the new one replaces."""
    pairing, code = await tenant_for(api, principal).pairings.make_code(
        name=new.name,
        serial=new.serial,
        labels=new.labels,
        replace=new.replace,
        lifetime=new.lifetime,
    )
    command = f"tunnelmux-agent pair {code.reveal()} --url {_url(api)}"
    return MadeCode(pairing=Pairing.model_validate(pairing), code=code.reveal(), command=command)


@pairings.get("")
async def list_pairings(
    api: ApiDependency,
    principal: Operator,
    waiting: bool = False,
    limit: Limit = 50,
    after: After = None,
) -> Listing[Pairing]:
    """Codes and requests, the newest first; `waiting`: only those that can be decided or used."""
    tenant = tenant_for(api, principal)
    page = await tenant.pairings.page(waiting=waiting, limit=limit, after=after)
    return listing(page, Pairing.model_validate)


@pairings.post("/find")
async def find_request(api: ApiDependency, principal: Operator, shown: CodeShown) -> Pairing:
    """The request of the waiting device that shows this code."""
    with codes_refused():
        return Pairing.model_validate(
            await tenant_for(api, principal).pairings.find_request(shown.code)
        )


@pairings.get("/{pairing_id}")
async def get_pairing(api: ApiDependency, principal: Operator, pairing_id: PairingId) -> Pairing:
    """One code or request."""
    return Pairing.model_validate(await tenant_for(api, principal).pairings.find(pairing_id))


@pairings.post("/{pairing_id}/approve")
async def approve(
    api: ApiDependency, principal: Operator, pairing_id: PairingId, approval: Approval
) -> Device:
    """Approve a waiting device; it fetches its credential itself."""
    device = await tenant_for(api, principal).pairings.approve(
        pairing_id, name=approval.name, labels=approval.labels, replace=approval.replace
    )
    return Device.model_validate(device)


@pairings.post("/{pairing_id}/deny", status_code=204)
async def deny(api: ApiDependency, principal: Operator, pairing_id: PairingId) -> None:
    """Refuse a waiting device, or cancel a code."""
    await tenant_for(api, principal).pairings.deny(pairing_id)


@install_keys.post("", status_code=201)
async def add_install_key(
    api: ApiDependency, principal: Admin, new: NewInstallKey
) -> MadeInstallKey:
    """A key by which many devices can be paired."""
    record, key = await tenant_for(api, principal).install_keys.add(
        new.name,
        lifetime=new.lifetime,
        max_uses=new.max_uses,
        needs_approval=new.needs_approval,
        serials=tuple(new.serials),
        labels=new.labels,
    )
    command = f"tunnelmux-agent pair --install-key-file KEYFILE --url {_url(api)}"
    return MadeInstallKey(
        install_key=InstallKey.model_validate(record), key=key.reveal(), command=command
    )


@install_keys.get("")
async def list_install_keys(
    api: ApiDependency, principal: Operator, limit: Limit = 50, after: After = None
) -> Listing[InstallKey]:
    """Install keys, the newest first."""
    page = await tenant_for(api, principal).install_keys.page(limit=limit, after=after)
    return listing(page, InstallKey.model_validate)


@install_keys.post("/{key_id}/revoke")
async def revoke_install_key(
    api: ApiDependency, principal: Admin, key_id: PairingId, wish: KeyRevocation
) -> RevokedInstallKey:
    """End a key, so that no device can be paired with it; keep, disable or remove those that were.
    Of thousands this takes a while. When it fails on the way, the same call does the others."""
    keys = tenant_for(api, principal).install_keys
    record, devices, change = await keys.revoke(key_id, devices=wish.devices)
    return RevokedInstallKey(
        install_key=InstallKey.model_validate(record),
        disabled=devices if wish.devices == "disable" else [],
        removed=devices if wish.devices == "remove" else [],
        ended=await Ended.by(api.registry, change),
    )


# For devices


@joining.post("/exchange")
async def exchange_code(
    request: Request,
    api: ApiDependency,
    _principal: MaybeSignedIn,
    joining_device: JoinByCode,
) -> Joined:
    """Exchange a code from the console for a credential."""
    with codes_refused():
        arrival = await api.registry.joining.exchange(
            joining_device.code,
            address=_address(request),
            name=joining_device.name,
            serial=joining_device.serial,
            agent_version=joining_device.agent_version,
        )
    return _joined(api, arrival)


@joining.post("/requests", status_code=201)
async def request_joining(
    request: Request,
    api: ApiDependency,
    _principal: MaybeSignedIn,
    joining_device: JoinRequest,
) -> Waiting:
    """Begin on the device: it shows a code and waits for an operator."""
    with codes_refused():
        pairing, code, secret = await api.registry.joining.request(
            address=_address(request), **joining_device.model_dump()
        )
    lifetime = (pairing.expires - pairing.created).total_seconds()
    return Waiting(
        code=code.reveal(),
        secret=secret.reveal(),
        expires_in=lifetime,
        confirm_url=f"{_url(api)}/pair",
    )


@joining.post("/requests/poll", responses={202: {"model": Waiting}})
async def poll_request(
    response: Response, api: ApiDependency, _principal: MaybeSignedIn, known: PollSecret
) -> Joined | Waiting:
    """The state of a request: 202 while it waits; once approved, the credential, only once."""
    with codes_refused():
        result = await api.registry.joining.poll(Secret(known.secret))
    if isinstance(result, Arrival):
        return _joined(api, result)
    response.status_code = 202
    lifetime = (result.expires - result.created).total_seconds()
    return Waiting(code=None, secret=None, expires_in=lifetime, confirm_url=f"{_url(api)}/pair")


@joining.post("/install", responses={202: {"model": Waiting}})
async def install(
    request: Request,
    response: Response,
    api: ApiDependency,
    _principal: MaybeSignedIn,
    joining_device: JoinByKey,
) -> Joined | Waiting:
    """Use an install key; if the key needs approval, the device waits for an operator."""
    said = joining_device.model_dump(exclude={"key"})
    with codes_refused():
        result = await api.registry.joining.install(
            Secret(joining_device.key), address=_address(request), **said
        )
    if isinstance(result, Arrival):
        return _joined(api, result)
    pairing, secret = result
    response.status_code = 202
    lifetime = (pairing.expires - pairing.created).total_seconds()
    return Waiting(
        code=None,
        secret=secret.reveal(),
        expires_in=lifetime,
        confirm_url=f"{_url(api)}/pair",
    )


def _joined(api: Api, arrival: Arrival) -> Joined:
    return Joined(
        device=arrival.device.name,
        label=arrival.device.label,
        token=arrival.token.reveal(),
        tunnel_urls=api.config.proxies.tunnel_urls,
        tunnel_pin=api.config.proxies.tunnel_pin,
    )


class codes_refused:  # noqa: N801  reads like the context managers of contextlib
    """Answers too many guesses with 429 and a time to wait, other problems of a code with 409."""

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, RegistryRefused) and exc.code in _TOO_MANY:
            raise Refused(429, exc.code, f"{exc}.", headers=_RETRY_AFTER) from exc


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _url(api: Api) -> str:
    return api.config.api.public_url.rstrip("/")
