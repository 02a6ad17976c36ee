"""All tenants, for the people who run the installation: `/api/tenants`.

These are the owners of the tenant `default`. Owners of other tenants see no tenants here; their own
one is at `/api/tenant`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field, StrictBool

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, installation_for
from tunnelmux.api.identity import actor_of
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import After, Input, Limit, Listing, Record, listing
from tunnelmux.api.routes.people import Email, MadeInvitation, made_invitation
from tunnelmux.errors import NoSuchRecord
from tunnelmux.registry import DEFAULT_TENANT, Tenants

router = APIRouter(prefix="/api/tenants", route_class=AccessRoute, tags=["tenants"])

Owner = Annotated[Principal, need(Role.OWNER, "tenants")]
TenantPath = Annotated[str, Path(max_length=64)]

_INVITED_FOR = 7 * 86_400.0
# Seconds that the link of a new tenant's first owner is valid, like other invitations.


class TenantRecord(Record):
    """A tenant. `name` is its part of its devices' host names."""

    id: str
    name: str
    display_name: str
    enabled: bool
    created: datetime


class NewTenant(Input):
    """A tenant to create, and the person to invite as another owner beside the caller."""

    name: Annotated[str, Field(min_length=1, max_length=20)]
    display_name: Annotated[str, Field(max_length=100)] = ""
    owner_email: Email | None = None


class MadeTenant(BaseModel):
    """The tenant, and the link for the invited owner, which is shown only this once."""

    tenant: TenantRecord
    invitation: MadeInvitation | None


class TenantSettings(Input):
    """The fields to change; the others stay."""

    display_name: Annotated[str, Field(max_length=100)] | None = None
    enabled: StrictBool | None = None


@router.get("")
async def list_tenants(
    api: ApiDependency, principal: Owner, limit: Limit = 50, after: After = None
) -> Listing[TenantRecord]:
    """All tenants by name. The routes of `/api/tenants` are for owners of the tenant `default`."""
    tenants = await _tenants(api, principal)
    return listing(await tenants.page(limit=limit, after=after), TenantRecord.model_validate)


@router.post("", status_code=201)
async def add_tenant(api: ApiDependency, principal: Owner, new: NewTenant) -> MadeTenant:
    """Create a tenant. The caller is its first owner, and may leave it to the invited one."""
    tenants = await _tenants(api, principal)
    made = await tenants.add(new.name, display_name=new.display_name, owner=principal.user_id)
    invitation: MadeInvitation | None = None
    if new.owner_email is not None:
        invitations = api.registry.tenant(made.id, actor_of(principal)).invitations
        invitation = made_invitation(
            api, await invitations.add(new.owner_email, "owner", lifetime=_INVITED_FOR)
        )
    return MadeTenant(tenant=TenantRecord.model_validate(made), invitation=invitation)


@router.get("/{tenant_id}")
async def get_tenant(api: ApiDependency, principal: Owner, tenant_id: TenantPath) -> TenantRecord:
    """One tenant."""
    tenants = await _tenants(api, principal, tenant_id)
    return TenantRecord.model_validate(await tenants.find(tenant_id))


@router.patch("/{tenant_id}")
async def change_tenant(
    api: ApiDependency, principal: Owner, tenant_id: TenantPath, settings: TenantSettings
) -> TenantRecord:
    """Change the display name, or disable a tenant: its devices cannot connect, its people and
    programs have no rights in it, and no data is lost."""
    tenants = await _tenants(api, principal, tenant_id)
    return TenantRecord.model_validate(
        await tenants.change(
            tenant_id, display_name=settings.display_name, enabled=settings.enabled
        )
    )


async def _tenants(api: Api, principal: Principal, tenant_id: str | None = None) -> Tenants:
    """All tenants. For a caller who does not run the installation, raises Refused, or NoSuchRecord
    for the tenant that was named."""
    assert principal.tenant_id is not None  # `need` has checked it
    tenants = installation_for(api, principal).tenants
    home = await tenants.find(principal.tenant_id)
    if home.name == DEFAULT_TENANT:
        return tenants
    if tenant_id is not None:
        raise NoSuchRecord("tenant", tenant_id)
    message = (
        f'Only an owner of the tenant "{DEFAULT_TENANT}" lists and makes tenants; yours is at '
        "/api/tenant."
    )
    raise Refused(403, "insufficient_role", message)
