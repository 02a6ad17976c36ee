"""The console's pages about who gets in: inbox, pairing, people, access tokens, and the audit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

import segno
from fastapi import APIRouter, Form, Query, Request, Response
from markupsafe import Markup

from tunnelmux.api.access import SCOPES, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, MaybeSignedIn
from tunnelmux.api.records import TEXT, After, InstallKey
from tunnelmux.api.routes import audit, own, pairing, people
from tunnelmux.api.routes.console import (
    PageRoute,
    frame_of,
    has_role,
    names_of,
    show,
    stranger,
    waiting_for,
)
from tunnelmux.errors import RegistryRefused

router = APIRouter(route_class=PageRoute, include_in_schema=False)

Operator = Annotated[Principal, need(Role.OPERATOR, "pairing")]
Member = Annotated[Principal, need(Role.VIEWER, "members")]
Holder = Annotated[Principal, need(Role.VIEWER, "tokens")]
Admin = Annotated[Principal, need(Role.ADMIN, "audit")]

_PEOPLE = 200
_ENTRIES = 50
_KEYS = 200


@router.get("/inbox")
async def inbox(request: Request, api: ApiDependency, principal: Operator) -> Response:
    """Devices and leases that wait for a word."""
    me = await frame_of(request, api, principal)
    waiting = await waiting_for(api, principal)
    return show(
        "inbox",
        "/inbox",
        me,
        waiting=waiting,
        names=await names_of(api, principal, waiting),
        user_id=principal.user_id,
    )


@router.get("/pair")
async def pair(
    request: Request,
    api: ApiDependency,
    principal: Operator,
    code: Annotated[str, Query(max_length=64, pattern=TEXT)] = "",
) -> Response:
    """Find the device that shows a code; devices' QR codes lead here."""
    me = await frame_of(request, api, principal)
    found, problem = None, ""
    if code:
        try:
            found = await pairing.find_request(
                api, principal, pairing.CodeShown.model_construct(code=code.strip())
            )
        except RegistryRefused as exc:
            problem = f"{exc}."
    keys = await _good_keys(api, principal)
    return show(
        "pair", "/pair", me, code=code, found=found, problem=problem, made=None, qr="", keys=keys
    )


@router.post("/pair")
async def make_code(
    request: Request,
    api: ApiDependency,
    principal: Operator,
    name: Annotated[str, Form(max_length=40, pattern=TEXT)] = "",
) -> Response:
    """A code for a device, told this once, and as a QR code."""
    me = await frame_of(request, api, principal)
    made = await pairing.make_code(api, principal, pairing.NewCode(name=name.strip()))
    picture = segno.make(made.command, error="m").svg_inline(scale=4, border=3, omitsize=True)
    return show(
        "pair",
        "/pair",
        me,
        code="",
        found=None,
        problem="",
        made=made,
        qr=Markup(picture),  # noqa: S704  segno draws it, and writes no text into it
        keys=await _good_keys(api, principal),
    )


@router.get("/invitation")
async def invitation(request: Request, api: ApiDependency, principal: MaybeSignedIn) -> Response:
    """Where the link of an invitation leads. Its secret stands behind "#", which only the page's
    script sees, and keeps for the way over the sign-in: so a stranger gets the page too."""
    if principal is None:
        me = stranger(request)
    else:
        me = await frame_of(request, api, principal)
    return show("invitation", "", me)


@router.get("/people")
async def people_page(request: Request, api: ApiDependency, principal: Member) -> Response:
    """Who is in the tenant; an admin changes roles and invites."""
    me = await frame_of(request, api, principal)
    found = (await people.list_members(api, principal, limit=_PEOPLE)).items
    is_admin = has_role(principal, Role.ADMIN)
    invited = (
        (await people.list_invitations(api, principal, limit=_PEOPLE)).items if is_admin else []
    )
    return show(
        "people",
        "/people",
        me,
        people=found,
        invitations=[item for item in invited if not item.revoked and item.used_by is None],
        roles=_roles_up_to(principal) if is_admin else [],
        may_change={
            item.user_id
            for item in found
            if is_admin
            and item.user_id != principal.user_id
            and has_role(principal, Role.parse(item.role))
        },
    )


@router.get("/tokens")
async def tokens(request: Request, api: ApiDependency, principal: Holder) -> Response:
    """The tokens that the person made for programs."""
    me = await frame_of(request, api, principal)
    found = await own.list_access_tokens(api, principal, limit=_PEOPLE)
    return show(
        "tokens",
        "/tokens",
        me,
        tokens=found.items,
        scopes=SCOPES,
        roles=_roles_up_to(principal),
    )


@router.get("/audit")
async def audit_page(
    request: Request,
    api: ApiDependency,
    principal: Admin,
    action: audit.Word = "",
    after: After = None,
) -> Response:
    """What was changed by whom, the newest first."""
    me = await frame_of(request, api, principal)
    found = await audit.list_audit(api, principal, action=action, limit=_ENTRIES, after=after)
    more = urlencode({"action": action, "after": found.next}) if found.next else ""
    return show("audit", "/audit", me, entries=found.items, action=action, more=more)


async def _good_keys(api: Api, principal: Principal) -> list[InstallKey]:
    """The install keys by which devices can get in, for who may revoke them."""
    if not has_role(principal, Role.ADMIN):
        return []
    found = (await pairing.list_install_keys(api, principal, limit=_KEYS)).items
    now = datetime.now(UTC)
    return [
        key
        for key in found
        if key.revoked is None and key.expires > now and key.uses < key.max_uses
    ]


def _roles_up_to(principal: Principal) -> list[str]:
    return [str(role) for role in Role if has_role(principal, role)]
