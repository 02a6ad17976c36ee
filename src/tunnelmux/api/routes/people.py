"""The tenant and its people: `/api/tenant`, `/api/members`, `/api/invitations`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field, StrictBool
from starlette.responses import Response

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, SignedIn, installation_for, tenant_for
from tunnelmux.api.identity import session_of
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import After, Input, Limit, Listing, Record, listing
from tunnelmux.api.routes.auth import set_session_cookie
from tunnelmux.config import Secret
from tunnelmux.registry import Invitation as InvitationRecord
from tunnelmux.registry import Member as MemberRecord

tenant_routes = APIRouter(prefix="/api/tenant", route_class=AccessRoute, tags=["people"])
members = APIRouter(prefix="/api/members", route_class=AccessRoute, tags=["people"])
invitations = APIRouter(prefix="/api/invitations", route_class=AccessRoute, tags=["people"])

RoleName = Literal["viewer", "operator", "admin", "owner"]

TenantViewer = Annotated[Principal, need(Role.VIEWER, "tenant")]
TenantOwner = Annotated[Principal, need(Role.OWNER, "tenant")]
Viewer = Annotated[Principal, need(Role.VIEWER, "members")]
Admin = Annotated[Principal, need(Role.ADMIN, "members")]

Email = Annotated[str, Field(min_length=3, max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")]
RecordPath = Annotated[str, Path(max_length=64)]
_KeyLine = Annotated[str, Field(max_length=12_000)]
_Network = Annotated[str, Field(max_length=64)]


class Tenant(Record):
    """The tenant that the caller works in."""

    id: str
    name: str
    display_name: str
    created: datetime


class TenantChange(Input):
    """The fields to change."""

    display_name: Annotated[str, Field(max_length=100)]


class Member(BaseModel):
    """A person in the tenant. `subject` is what the provider calls the person, `name` and `email`
    may be empty."""

    user_id: str
    subject: str
    name: str
    email: str
    role: RoleName
    source: Literal["grant", "claim"]
    since: datetime
    last_sign_in: datetime | None


class RoleChange(Input):
    """The new role."""

    role: RoleName


class NewInvitation(Input):
    """The person to invite, and the role."""

    email: Email
    role: RoleName
    lifetime: Annotated[float, Field(ge=300, le=30 * 86_400)] = 7 * 86_400.0


class Invitation(Record):
    """A role for a person who has not accepted it yet."""

    id: str
    email: str
    role: RoleName
    created: datetime
    expires: datetime
    used_by: str | None
    revoked: bool


class MadeInvitation(BaseModel):
    """An invitation and its link, which is shown only this once."""

    invitation: Invitation
    url: str


class InvitationSecret(Input):
    """The secret at the end of an invitation's link."""

    secret: Annotated[str, Field(min_length=8, max_length=256)]


class Accepted(BaseModel):
    """The membership that the invitation gave."""

    tenant_id: str
    tenant: str
    role: RoleName


@tenant_routes.get("")
async def get_tenant(api: ApiDependency, principal: TenantViewer) -> Tenant:
    """The tenant that the caller works in."""
    assert principal.tenant_id is not None
    return Tenant.model_validate(await api.installation.tenants.find(principal.tenant_id))


@tenant_routes.patch("")
async def change_tenant(api: ApiDependency, principal: TenantOwner, change: TenantChange) -> Tenant:
    """Change the display name."""
    assert principal.tenant_id is not None
    tenants = installation_for(api, principal).tenants
    return Tenant.model_validate(
        await tenants.change(principal.tenant_id, display_name=change.display_name)
    )


class TenantSsh(Record):
    """The tenant's rules for SSH sessions."""

    record_input: bool
    on_recording_failure: Literal["", "stop", "continue"]
    user_authorities: list[str]
    addresses: list[str]


class TenantSshChange(Input):
    """The fields to change; the others stay."""

    record_input: StrictBool | None = Field(
        default=None,
        description="Whether recordings also hold what people type, passwords included.",
    )
    on_recording_failure: Literal["", "stop", "continue"] | None = Field(
        default=None,
        description="Whether a session stops or continues when it can no longer be recorded; "
        "empty: the gateway's setting.",
    )
    user_authorities: Annotated[list[_KeyLine], Field(max_length=10)] | None = Field(
        default=None,
        description="Public keys of certificate authorities: their certificates for a member's "
        "e-mail address identify that member.",
    )
    addresses: Annotated[list[_Network], Field(max_length=32)] | None = Field(
        default=None,
        description="Networks from which people may use the SSH gateway; empty for all.",
    )


@tenant_routes.get("/ssh")
async def get_tenant_ssh(api: ApiDependency, principal: TenantViewer) -> TenantSsh:
    """The tenant's rules for SSH sessions."""
    return TenantSsh.model_validate(await tenant_for(api, principal).ssh.find())


@tenant_routes.patch("/ssh")
async def change_tenant_ssh(
    api: ApiDependency, principal: TenantOwner, change: TenantSshChange
) -> TenantSsh:
    """Change the rules for SSH sessions; they hold for new sessions. Removing an authority ends the
    sessions of its certificates; `addresses` end the sessions from other networks."""
    return TenantSsh.model_validate(
        await tenant_for(api, principal).ssh.change(
            record_input=change.record_input,
            on_recording_failure=change.on_recording_failure,
            user_authorities=change.user_authorities,
            addresses=change.addresses,
        )
    )


@members.get("")
async def list_members(
    api: ApiDependency, principal: Viewer, limit: Limit = 50, after: After = None
) -> Listing[Member]:
    """The tenant's members in the order in which they joined."""
    page = await tenant_for(api, principal).members.page(limit=limit, after=after)
    return listing(page, _member)


@members.put("/{user_id}")
async def set_role(
    api: ApiDependency, principal: Admin, user_id: RecordPath, change: RoleChange
) -> Member:
    """Change a member's role, at most to the caller's own."""
    await _check_reach(api, principal, user_id, Role.parse(change.role))
    tenant = tenant_for(api, principal)
    return _member(await tenant.members.set_role(user_id, change.role))


@members.delete("/{user_id}", status_code=204)
async def remove_member(api: ApiDependency, principal: Admin, user_id: RecordPath) -> None:
    """Remove a person from the tenant; their access tokens end."""
    await _check_reach(api, principal, user_id, Role.VIEWER)
    await tenant_for(api, principal).members.remove(user_id)


@invitations.post("", status_code=201)
async def invite(api: ApiDependency, principal: Admin, new: NewInvitation) -> MadeInvitation:
    """A link that gives one person a role."""
    _check_role(principal, Role.parse(new.role))
    invitations = tenant_for(api, principal).invitations
    return made_invitation(api, await invitations.add(new.email, new.role, lifetime=new.lifetime))


@invitations.get("")
async def list_invitations(
    api: ApiDependency, principal: Admin, limit: Limit = 50, after: After = None
) -> Listing[Invitation]:
    """Invitations, the newest first."""
    page = await tenant_for(api, principal).invitations.page(limit=limit, after=after)
    return listing(page, Invitation.model_validate)


@invitations.delete("/{invitation_id}", status_code=204)
async def revoke_invitation(
    api: ApiDependency, principal: Admin, invitation_id: RecordPath
) -> None:
    """Revoke an invitation."""
    await tenant_for(api, principal).invitations.revoke(invitation_id)


@invitations.post("/accept")
async def accept_invitation(
    request: Request,
    response: Response,
    api: ApiDependency,
    principal: SignedIn,
    known: InvitationSecret,
) -> Accepted:
    """Become a member with the secret of a link, and switch to that tenant."""
    if not principal.is_browser:
        message = "An access token cannot accept an invitation: open the link in a browser."
        raise Refused(403, "no_browser_session", message)
    users = installation_for(api, principal).users
    membership = await users.accept_invitation(principal.user_id, Secret(known.secret))
    cookie = await api.sign_in.rise(session_of(request), membership.tenant_id, membership.role)
    set_session_cookie(response, cookie)
    return Accepted(
        tenant_id=membership.tenant_id, tenant=membership.tenant_name, role=membership.role
    )


def made_invitation(api: Api, made: tuple[InvitationRecord, Secret]) -> MadeInvitation:
    """A new invitation with its link, which is shown only once."""
    invitation, secret = made
    base = api.config.api.public_url.rstrip("/")
    # Behind "#", so that it gets into no log and no Referer.
    url = f"{base}/invitation#{secret.reveal()}"
    return MadeInvitation(invitation=Invitation.model_validate(invitation), url=url)


def _member(record: MemberRecord) -> Member:
    return Member(
        user_id=record.user.id,
        subject=record.user.subject,
        name=record.user.name,
        email=record.user.email,
        role=record.role,
        source=record.source,
        since=record.since,
        last_sign_in=record.user.last_sign_in,
    )


async def _check_reach(api: Api, principal: Principal, user_id: str, role: Role) -> None:
    """Allow the caller to change only people with at most the caller's role, and to at most
    that."""
    current = await tenant_for(api, principal).members.role_of(user_id)
    if current is not None:
        _check_role(principal, Role.parse(current))
    _check_role(principal, role)


def _check_role(principal: Principal, role: Role) -> None:
    assert principal.role is not None
    if role > principal.role:
        message = f"Your role is {principal.role}: you cannot give or take a higher one."
        raise Refused(403, "insufficient_role", message)
