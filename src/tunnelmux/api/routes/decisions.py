"""Answers whether a person may reach a service now, as JSON and as a page of the console.

All proxies are asked, since a visitor may come to any of them, and each has its own proxy.toml.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Annotated, Literal

import trio
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import RecordId
from tunnelmux.api.routes import people
from tunnelmux.api.routes.console import PageRoute, frame_of, show
from tunnelmux.api.routes.devices import DeviceId, get_device
from tunnelmux.api.routes.overview import condition_of_device
from tunnelmux.api.routes.visitors import ServiceName, list_rules
from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.errors import ConnectError, NoSuchRecord
from tunnelmux.registry import Device
from tunnelmux.sessions.decisions import Decision as ProxyDecision

router = APIRouter(prefix="/api/devices", route_class=AccessRoute, tags=["visitors"])
pages = APIRouter(route_class=PageRoute, include_in_schema=False)

Viewer = Annotated[Principal, need(Role.VIEWER, "access")]
Address = Annotated[str, Query(max_length=64, pattern=r"^[0-9A-Fa-f:.]*$")]

_PEOPLE = 200
# Members to choose from on the page, as many as the page about people has.


class DecidingRule(BaseModel):
    """The rule that decides."""

    source: Literal["proxy.toml", "registry", "default"]
    scope: Literal["service", "device", "all"]
    let_in: list[str]
    roles: list[str]
    people: list[str]
    allow_from: list[str]
    deny_from: list[str]


class Decision(BaseModel):
    """Whether a person may reach a service now by HTTP, why, and until when."""

    device_id: str
    device: str
    service: str
    user_id: str
    user_name: str
    allowed: bool
    by: Literal["public", "login", "lease", ""]
    until: datetime | None
    """When the access ends; null if only a change of rule or role ends it."""
    lease: str
    rule: DecidingRule
    reason: str
    otherwise: list[str]
    """What proxies with another answer say: their proxy.toml has other rules, or a change has not
    come to all of them yet. `allowed` is false then."""


@router.get("/{device_id}/access/{service}/decision")
async def decide(
    api: ApiDependency,
    principal: Viewer,
    device_id: DeviceId,
    service: ServiceName,
    user: Annotated[RecordId | None, Query(description="Whose; yours, if left out.")] = None,
    address: Address = "",
) -> Decision:
    """Whether a member may reach a service of a device now, by which rule, and until when."""
    tenant = tenant_for(api, principal)
    device = await tenant.devices.find(device_id)
    person = user or principal.user_id
    role = await tenant.members.role_of(person)
    if role is None:
        raise NoSuchRecord("member", person)
    known = await api.installation.users.find(person)
    found = await _ask(api, device, service, person, role=role, name=known.called, address=address)
    return Decision.model_validate(
        {
            **found,
            "device_id": device.id,
            "device": device.name,
            "user_id": person,
            "user_name": known.called,
        }
    )


async def _ask(api: Api, device: Device, service: str, user: str, **more: str) -> dict[str, object]:
    """What the proxies say, in the words of one that refuses, if there is one."""
    answers: list[ProxyDecision] = []

    async def one(client: ProxyClient) -> None:
        with contextlib.suppress(ConnectError, ApiCallFailed):
            answers.append(await client.decide_access(device.label, service, user, **more))

    async with trio.open_nursery() as nursery:
        for client in await api.proxies.clients():
            nursery.start_soon(one, client)
    if not answers:
        message = "No proxy answers, and it is a proxy that decides: start one with [internal]."
        raise Refused(502, "proxy_away", message)
    found = min(answers, key=lambda answer: answer.allowed)
    return {
        "service": found.service,
        "allowed": found.allowed,
        "by": found.by,
        "until": found.until,
        "lease": found.lease,
        "reason": found.reason,
        "rule": {name: getattr(found.rule, name) for name in found.rule.__struct_fields__},
        "otherwise": sorted({one.reason for one in answers if one.allowed != found.allowed}),
    }


@pages.get("/devices/{device_id}/access")
async def access_page(
    request: Request,
    api: ApiDependency,
    principal: Viewer,
    device_id: DeviceId,
    service: Annotated[str, Query(max_length=63)] = "",
    person: Annotated[str, Query(max_length=64)] = "",
    address: Address = "",
) -> Response:
    """Who may reach a device's services: its rules, and the answer about one person."""
    device = await get_device(api, principal, device_id)
    me = await frame_of(request, api, principal)
    decision, problem = None, ""
    if service:
        try:
            decision = await decide(api, principal, device.id, service, person or None, address)
        except Refused as exc:
            problem = exc.detail
    return show(
        "access",
        "/devices",
        me,
        device=device,
        condition=condition_of_device(device),
        people=(await people.list_members(api, principal, limit=_PEOPLE)).items,
        rules=await list_rules(api, principal, device.id),
        decision=decision,
        problem=problem,
        said={
            "service": service or next(iter(device.state.services), ""),
            "person": person or principal.user_id,
            "address": address,
        },
    )
