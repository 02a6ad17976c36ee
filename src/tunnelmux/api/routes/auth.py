"""Signing in and out: `/api/auth/…`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, RedirectResponse, Response

from tunnelmux.api.access import AccessRoute
from tunnelmux.api.browser_sessions.cookie import (
    BEGUN,
    COOKIE,
    ended_cookie,
    session_cookie,
    shown_cookie,
    shown_cookies,
)
from tunnelmux.api.browser_sessions.sign_in import Landing, Shown
from tunnelmux.api.context import ApiDependency, MaybeSignedIn, SignedIn, tenant_for
from tunnelmux.api.fetch_metadata import field_of, is_opened_by_person
from tunnelmux.api.identity import session_of
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import Input, RecordId

router = APIRouter(prefix="/api/auth", route_class=AccessRoute, tags=["signing in"])


class TenantMembership(BaseModel):
    """A tenant that the person is a member of."""

    tenant_id: str
    tenant: str
    role: str


class Me(BaseModel):
    """The caller, and the tenant that the caller works in."""

    user_id: str
    name: str
    email: str
    tenant_id: str | None
    role: str | None
    tenants: list[TenantMembership]


class TenantChoice(Input):
    """The tenant to work in."""

    tenant_id: RecordId


class SignedOut(BaseModel):
    """The next step after signing out here."""

    redirect: str | None
    """The page at which the browser signs out at the provider too; null if it has none."""


@router.get("/login", include_in_schema=False)
async def login(
    request: Request,
    api: ApiDependency,
    _principal: MaybeSignedIn,
    return_to: Annotated[str, Query(max_length=4096)] = "/",
) -> Response:
    """Send the browser to the provider."""
    fields = request.scope["headers"]
    if field_of(fields, b"sec-fetch-mode") is not None and not is_opened_by_person(fields):
        # A neighbour's page could fill a browser with the cookies of sign-ins, by frames too.
        message = "Signing in is for a page that a person opens: follow a link to it."
        raise Refused(403, "cross_origin", message)
    with api.metrics.counting_sign_in():
        landing = await api.sign_in.begin(_shown(request), return_to)
    return _land(landing)


@router.get("/callback", include_in_schema=False)
async def callback(request: Request, api: ApiDependency, _principal: MaybeSignedIn) -> Response:
    """Handle the provider's answer."""
    query = dict(request.query_params)
    with api.metrics.counting_sign_in() as count:
        landing = await api.sign_in.finish(_shown(request), query)
        count("signed_in" if landing.is_new else "signed_in_already")
    return _land(landing)


@router.get("/me")
async def me(api: ApiDependency, principal: SignedIn) -> Me:
    """Who is signed in, with the roles in all tenants."""
    users = api.installation.users
    user = await users.find(principal.user_id)
    memberships = await users.memberships(principal.user_id)
    return Me(
        user_id=user.id,
        name=user.name,
        email=user.email,
        tenant_id=principal.tenant_id,
        role=str(principal.role) if principal.role is not None else None,
        tenants=[
            TenantMembership(tenant_id=item.tenant_id, tenant=item.tenant_name, role=item.role)
            for item in memberships
            if item.tenant_enabled
        ],
    )


@router.put("/tenant", status_code=204)
async def choose_tenant(
    request: Request,
    response: Response,
    api: ApiDependency,
    _principal: SignedIn,
    choice: TenantChoice,
) -> None:
    """Switch to another of the person's tenants."""
    cookie = await api.sign_in.choose_tenant(session_of(request), choice.tenant_id)
    if cookie is not None:
        set_session_cookie(response, cookie)


@router.post("/logout")
async def logout(
    request: Request, response: Response, api: ApiDependency, principal: SignedIn
) -> SignedOut:
    """Sign out: end this browser's session, or the access token that is used."""
    if principal.token_id is not None and principal.tenant_id is not None:
        await tenant_for(api, principal).access_tokens.revoke(principal.token_id)
        return SignedOut(redirect=None)
    redirect = await api.sign_in.end(session_of(request))
    # Browsers that keep whole pages for the way back drop those of before when a cookie changes.
    response.headers.append("set-cookie", ended_cookie(COOKIE))
    return SignedOut(redirect=redirect)


@router.post("/backchannel-logout", include_in_schema=False)
async def backchannel_logout(
    api: ApiDependency,
    _principal: MaybeSignedIn,
    logout_token: Annotated[str, Form(max_length=16_384)],
) -> Response:
    """The provider reports that a session has ended (Back-Channel Logout 1.0)."""
    ended = await api.sign_in.end_for_provider(logout_token)
    return JSONResponse({"ended": ended})


def set_session_cookie(response: Response, value: str) -> None:
    """Set the session's cookie, so that scripts and other hosts never see it."""
    response.headers.append("set-cookie", session_cookie(value))


def _shown(request: Request) -> Shown:
    return Shown(
        shown_cookie(request),
        shown_cookies(request, BEGUN),
        address=request.client.host if request.client is not None else "",
        user_agent=request.headers.get("user-agent", ""),
    )


def _land(landing: Landing) -> Response:
    response = RedirectResponse(landing.url, 303)
    for field in landing.set_cookies:
        response.headers.append("set-cookie", field)
    return response
