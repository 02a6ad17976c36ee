"""The caller's own browser sessions and access tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema

from tunnelmux.api.access import SCOPES, AccessRoute, Principal, Role, need
from tunnelmux.api.context import ApiDependency, SignedIn, installation_for, tenant_for
from tunnelmux.api.identity import session_of
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import After, Input, Limit, Listing, Record, listing
from tunnelmux.errors import NoSuchRecord

browser_sessions = APIRouter(
    prefix="/api/browser-sessions", route_class=AccessRoute, tags=["signing in"]
)
access_tokens = APIRouter(
    prefix="/api/access-tokens", route_class=AccessRoute, tags=["access tokens"]
)

Viewer = Annotated[Principal, need(Role.VIEWER, "tokens")]

RecordPath = Annotated[str, Path(max_length=64)]


def _check_scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"there is no such scope: choose from {', '.join(SCOPES)}")
    return scope


Scope = Annotated[
    str, AfterValidator(_check_scope), WithJsonSchema({"type": "string", "enum": [*SCOPES]})
]


class BrowserSession(Record):
    """One browser in which the caller is signed in."""

    id: str
    address: str
    user_agent: str
    created: datetime
    last_seen: datetime
    idle_ends: datetime
    ends: datetime
    current: bool = False


class NewAccessToken(Input):
    """The rights of a program's token; without scopes, it may do all that its role may."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    role: Literal["viewer", "operator", "admin", "owner"] = "viewer"
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))]
    lifetime: Annotated[float, Field(ge=60, le=366 * 86_400)] = 90 * 86_400.0


class AccessToken(Record):
    """A token of a program."""

    id: str
    name: str
    user_id: str
    role: Literal["viewer", "operator", "admin", "owner"]
    scopes: list[str]
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    last_address: str
    revoked: datetime | None


class MadeAccessToken(BaseModel):
    """An access token; its text is shown only this once."""

    access_token: AccessToken
    token: str


@browser_sessions.get("")
async def list_browser_sessions(
    request: Request, api: ApiDependency, principal: SignedIn
) -> list[BrowserSession]:
    """The caller's own browser sessions, the newest first."""
    current = session_of(request).id
    sessions = await installation_for(api, principal).browser_sessions.of_user(principal.user_id)
    shown = [BrowserSession.model_validate(item) for item in sessions]
    return [item.model_copy(update={"current": item.id == current}) for item in shown]


@browser_sessions.delete("/{session_id}", status_code=204)
async def end_browser_session(
    request: Request, api: ApiDependency, principal: SignedIn, session_id: RecordPath
) -> None:
    """End one of the caller's own browser sessions."""
    session_of(request)
    sessions = installation_for(api, principal).browser_sessions
    if not await sessions.end(session_id, user_id=principal.user_id):
        raise NoSuchRecord("browser session", session_id)


@access_tokens.post("", status_code=201)
async def add_access_token(
    request: Request, api: ApiDependency, principal: Viewer, new: NewAccessToken
) -> MadeAccessToken:
    """A token for a program, with no more rights than the person who makes it."""
    session_of(request)  # a token may not make tokens: a leaked one could so leave access behind
    record, token = await tenant_for(api, principal).access_tokens.add(
        new.name,
        user_id=principal.user_id,
        role=new.role,
        scopes=tuple(new.scopes),
        lifetime=new.lifetime,
    )
    return MadeAccessToken(access_token=AccessToken.model_validate(record), token=token.reveal())


@access_tokens.get("")
async def list_access_tokens(
    api: ApiDependency,
    principal: Viewer,
    everyone: bool = False,
    limit: Limit = 50,
    after: After = None,
) -> Listing[AccessToken]:
    """The caller's own tokens, the newest first; an admin may ask for everyone's."""
    if everyone:
        _require_admin(principal)
    page = await tenant_for(api, principal).access_tokens.page(
        user_id=None if everyone else principal.user_id, limit=limit, after=after
    )
    return listing(page, AccessToken.model_validate)


@access_tokens.delete("/{token_id}", status_code=204)
async def revoke_access_token(api: ApiDependency, principal: Viewer, token_id: RecordPath) -> None:
    """End one of the caller's own tokens now; an admin may end everyone's."""
    tokens = tenant_for(api, principal).access_tokens
    token = await tokens.find(token_id)
    if token.user_id != principal.user_id:
        _require_admin(principal)
    await tokens.revoke(token_id)


def _require_admin(principal: Principal) -> None:
    if principal.role is None or principal.role < Role.ADMIN:
        message = f"Other people's tokens need the role admin; yours is {principal.role}."
        raise Refused(403, "insufficient_role", message)
