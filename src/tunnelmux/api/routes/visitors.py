"""Who may visit a device: its rules, links to its services, and the sign-in of visitors."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, MaybeSignedIn, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import After, Ended, Input, Limit, Listing, Record, RecordId, listing
from tunnelmux.config.access import AccessRule
from tunnelmux.pump.field_names import field_kind
from tunnelmux.registry import RuleChange, ServiceLink

rules = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["visitors"])
visitors = APIRouter(prefix="/api/access", route_class=AccessRoute, tags=["visitors"])

Viewer = Annotated[Principal, need(Role.VIEWER, "access")]
Operator = Annotated[Principal, need(Role.OPERATOR, "access")]
Admin = Annotated[Principal, need(Role.ADMIN, "access")]

DeviceId = Annotated[str, Path(max_length=64, description="The device's id.")]
LinkId = Annotated[str, Path(max_length=64, description="The link's id.")]
ServiceName = Annotated[
    str, Path(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=63, description="The service.")
]
Networks = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=256)]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$", max_length=64)]


class RuleInput(Input):
    """Who may visit. One of the ways in `let_in` is enough; the address lists are checked first."""

    let_in: Annotated[
        list[Literal["public", "login", "basic", "link", "token", "lease"]],
        Field(min_length=1, max_length=6),
    ]
    roles: list[Literal["viewer", "operator", "admin", "owner"]] = Field(
        default_factory=list, max_length=4
    )
    people: list[RecordId] = Field(default_factory=list, max_length=256)
    users: list[Annotated[str, Field(max_length=400)]] = Field(default_factory=list, max_length=256)
    tokens: list[Annotated[str, Field(max_length=200)]] = Field(
        default_factory=list, max_length=256
    )
    allow_from: Networks = Field(default_factory=list)
    deny_from: Networks = Field(default_factory=list)
    preflights: bool = False
    user_field: FieldName | None = None
    email_field: FieldName | None = None
    roles_field: FieldName | None = None
    assertion: bool = False


class ShownRule(BaseModel):
    """A rule as it is shown: only the names of users and tokens."""

    service: str
    """Empty for the device's own rule, which holds for services without one."""
    let_in: list[str]
    roles: list[str]
    people: list[str]
    users: list[str]
    tokens: list[str]
    allow_from: list[str]
    deny_from: list[str]
    preflights: bool
    user_field: str | None
    email_field: str | None
    roles_field: str | None
    assertion: bool
    changed: datetime
    changed_by: str


class ChangedRules(BaseModel):
    """All rules of a device after a change, and what the change has ended."""

    rules: list[ShownRule]
    ended: Ended


class NewLink(Input):
    """A link to make: its holder may visit the service until it ends."""

    service: Annotated[str, Field(pattern=r"^([a-z0-9]+(-[a-z0-9]+)*)?$", max_length=63)] = ""
    lifetime: Annotated[float, Field(ge=60, le=31 * 86_400)] = 3600.0
    once: bool = False
    note: Annotated[str, Field(max_length=255)] = ""


class Link(Record):
    """A link. Its URL is shown only once, when it is made."""

    id: str
    service: str
    note: str
    once: bool
    uses: int
    last_used: datetime | None
    created: datetime
    created_by: str
    ends: datetime
    revoked: datetime | None


class MadeLink(BaseModel):
    """A new link and its URL, which is for a browser."""

    link: Link
    url: str


class RevokedLink(BaseModel):
    """A revoked link, and the visits that ended with it."""

    link: Link
    ended: Ended


class Key(BaseModel):
    """A public key in the format of RFC 8037."""

    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA"] = "EdDSA"
    kid: str
    x: str


class KeySet(BaseModel):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[Key]


@rules.get("/{device_id}/access")
async def list_rules(api: ApiDependency, principal: Viewer, device_id: DeviceId) -> list[ShownRule]:
    """Who may visit a device and its services; without a rule, members who sign in may."""
    found = await tenant_for(api, principal).visitor_rules.of(device_id)
    return [_shown(one.service, one.rule, one.changed, one.changed_by) for one in found]


@rules.put("/{device_id}/access")
async def set_device_rule(
    api: ApiDependency, principal: Admin, device_id: DeviceId, rule: RuleInput
) -> ChangedRules:
    """Set who may visit those services of a device that have no rule of their own."""
    return await _set(api, principal, device_id, "", rule)


@rules.delete("/{device_id}/access")
async def remove_device_rule(
    api: ApiDependency, principal: Admin, device_id: DeviceId
) -> ChangedRules:
    """Remove the device's own rule: then members who sign in may visit."""
    return await _changed(api, await tenant_for(api, principal).visitor_rules.remove(device_id, ""))


@rules.put("/{device_id}/access/{service}")
async def set_service_rule(
    api: ApiDependency, principal: Admin, device_id: DeviceId, service: ServiceName, rule: RuleInput
) -> ChangedRules:
    """Set who may visit one service."""
    return await _set(api, principal, device_id, service, rule)


@rules.delete("/{device_id}/access/{service}")
async def remove_service_rule(
    api: ApiDependency, principal: Admin, device_id: DeviceId, service: ServiceName
) -> ChangedRules:
    """Remove a service's rule, so that the device's own rule holds for it."""
    tenant = tenant_for(api, principal)
    return await _changed(api, await tenant.visitor_rules.remove(device_id, service))


@rules.post("/{device_id}/links", status_code=201)
async def add_link(
    api: ApiDependency, principal: Operator, device_id: DeviceId, new: NewLink
) -> MadeLink:
    """A link that lets its holder visit one service, for a time; `once`: in one browser."""
    tenant = tenant_for(api, principal)
    await tenant.devices.find(device_id)
    if await api.visitors.visitors_url() is None:
        message = "No proxy has announced an address for visitors: start one with [ingress.http]."
        raise Refused(409, "no_ingress", message)
    link = await tenant.service_links.add(
        device_id, new.service, lifetime=new.lifetime, once=new.once, note=new.note
    )
    url = await api.visitors.link_url(link)
    return MadeLink(link=Link.model_validate(link), url=url or "")


@rules.get("/{device_id}/links")
async def list_links(
    api: ApiDependency,
    principal: Viewer,
    device_id: DeviceId,
    limit: Limit = 50,
    after: After = None,
) -> Listing[Link]:
    """The links to services of a device, the newest first."""
    page = await tenant_for(api, principal).service_links.page(device_id, limit=limit, after=after)
    return listing(page, _link)


@rules.delete("/{device_id}/links/{link_id}")
async def revoke_link(
    api: ApiDependency, principal: Operator, device_id: DeviceId, link_id: LinkId
) -> RevokedLink:
    """Revoke a link; visits by it end."""
    link, change = await tenant_for(api, principal).service_links.revoke(device_id, link_id)
    return RevokedLink(link=_link(link), ended=await Ended.by(api.registry, change))


@visitors.get("/sign-in", include_in_schema=False)
async def sign_in(
    api: ApiDependency,
    principal: MaybeSignedIn,
    asked: Annotated[str, Query(max_length=4096)],
) -> Response:
    """Give a ticket to a visitor that a proxy has sent here; the visitor may have to sign in
    first."""
    wish = await api.visitors.read_asked(asked)
    if principal is None or principal.session_id is None:
        back = quote(f"/api/access/sign-in?asked={asked}", safe="")
        return RedirectResponse(f"/api/auth/login?return_to={back}", 303, _HEADERS)
    who = await api.installation.users.memberships(principal.user_id)
    return RedirectResponse(api.visitors.ticket_url(wish, principal.session_id, who), 303, _HEADERS)


@visitors.get("/keys")
async def keys(api: ApiDependency, _principal: MaybeSignedIn) -> KeySet:
    """The keys by which proxies sign `Tunnelmux-Assertion`."""
    return KeySet(
        keys=[
            Key(kid=key.id, x=base64.urlsafe_b64encode(key.public).decode("ascii").rstrip("="))
            for key in await api.visitors.proxies_keys()
        ]
    )


_HEADERS = {"referrer-policy": "no-referrer"}


async def _set(
    api: Api, principal: Principal, device_id: str, service: str, wish: RuleInput
) -> ChangedRules:
    for name in (wish.user_field, wish.email_field, wish.roles_field):
        if name is not None and field_kind(name.encode("ascii")) != "forwarding":
            message = (
                f'"{name}" is a field that visitors may send: take one that never gets through '
                "from outside, such as Remote-User or X-Forwarded-User."
            )
            raise Refused(422, "invalid_rule", message)
    try:
        rule = msgspec.convert(wish.model_dump(), AccessRule)
    except msgspec.ValidationError as exc:
        raise Refused(422, "invalid_rule", f"{exc}.") from None
    rules_of = tenant_for(api, principal).visitor_rules
    return await _changed(api, await rules_of.set(device_id, service, rule))


async def _changed(api: Api, change: RuleChange) -> ChangedRules:
    shown = [_shown(one.service, one.rule, one.changed, one.changed_by) for one in change.rules]
    return ChangedRules(rules=shown, ended=await Ended.by(api.registry, change.change))


def _shown(service: str, rule: AccessRule, changed: datetime, changed_by: str) -> ShownRule:
    fields: dict[str, Any] = msgspec.to_builtins(rule)
    for key in ("users", "tokens"):
        fields[key] = [entry.partition(":")[0] for entry in fields[key]]
    return ShownRule(service=service, changed=changed, changed_by=changed_by, **fields)


def _link(record: ServiceLink) -> Link:
    return Link.model_validate(record)
