"""Leases, their tickets, and people's SSH keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, WithJsonSchema

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import Api, ApiDependency, SignedIn, installation_for, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import (
    After,
    Computable,
    Ended,
    Input,
    Limit,
    Listing,
    Record,
    RecordId,
    listing,
)
from tunnelmux.errors import NoSuchRecord
from tunnelmux.registry import AuditEntry, LeaseTerms, Right, TenantRegistry
from tunnelmux.registry import Lease as LeaseRecord

leases = APIRouter(prefix="/api/leases", route_class=AccessRoute, tags=["leases"])
ssh_keys = APIRouter(prefix="/api/ssh-keys", route_class=AccessRoute, tags=["leases"])

Viewer = Annotated[Principal, need(Role.VIEWER, "leases")]
Operator = Annotated[Principal, need(Role.OPERATOR, "leases")]

_LONGEST_TIME = 40

LeaseId = Annotated[str, Path(max_length=64, description="The lease's id.")]
Reason = Annotated[str, Field(max_length=255)]
ServiceName = Annotated[str, Field(min_length=1, max_length=63)]
Network = Annotated[str, Field(min_length=1, max_length=64)]


def _check_text(value: object) -> object:
    """Refuse numbers: they would be read as seconds since 1970, which no caller means."""
    if not isinstance(value, str) or len(value) > _LONGEST_TIME:
        raise ValueError("write the time in RFC 3339 format: 2026-11-27T20:15:00Z")
    return value


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_check_text),
    Computable,
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": _LONGEST_TIME}),
]
State = Literal["requested", "waiting", "running", "later", "ended", "expired", "used_up"]


class NewLease(Input):
    """A request for a lease. It ends at `until`, or `seconds` after the start."""

    device: Annotated[str, Field(min_length=1, max_length=128)]
    """The device's id, name or serial number."""
    services: Annotated[list[ServiceName], Field(min_length=1, max_length=64)]
    rights: Annotated[list[Right], Field(max_length=6)] = Field(default=["shell", "exec"])
    reason: Annotated[str, Field(min_length=1, max_length=1000)]
    holder: RecordId | None = None
    """The user who gets it; the caller, if it is left out."""
    recorded: bool = True
    sealed: bool = False
    addresses: Annotated[list[Network], Field(max_length=32)] = Field(default_factory=list)
    starts: Moment | None = None
    until: Moment | None = None
    seconds: Annotated[float, Field(ge=60, le=12 * 3600)] | None = None
    max_uses: Annotated[int, Field(ge=1, le=100_000)] | None = None


class Decision(Input):
    """The reason; people read it."""

    reason: Reason = ""


class Extension(Input):
    """The new end: a time, or so many seconds after the current end."""

    until: Moment | None = None
    seconds: Annotated[float, Field(ge=60, le=12 * 3600)] | None = None


class Lease(Record):
    """A lease and its state."""

    id: str
    kind: Literal["person", "code"]
    state: State
    device_id: str
    services: list[str]
    rights: list[Right]
    holder: str
    holder_name: str
    reason: str
    recorded: bool
    sealed: bool
    addresses: list[str]
    approval: Literal["not_needed", "asked", "given", "refused"]
    consent: Literal["asked", "given", "refused"]
    decided_by: str
    decided: datetime | None
    starts: datetime
    ends: datetime
    max_uses: int | None
    uses: int
    created_by: str
    created_by_name: str
    created: datetime
    ended: datetime | None
    ended_by: str
    ended_by_name: str
    end_reason: str
    extended: int


class ChangedLease(BaseModel):
    """A lease after a change, and what the change has ended."""

    lease: Lease
    ended: Ended


class LeaseEntry(BaseModel):
    """One audit entry about a lease."""

    number: int
    at: datetime
    action: str
    actor_kind: str
    actor_id: str
    actor_name: str
    actor_address: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class NewSshKey(Input):
    """One line of a `.pub` file."""

    key: Annotated[str, Field(min_length=1, max_length=12_000)]
    name: Annotated[str, Field(max_length=255)] = ""


class SshKey(Record):
    """A public key of the caller."""

    id: str
    name: str
    fingerprint: str
    line: str
    created: datetime
    last_used: datetime | None
    last_address: str


class MadeTicket(BaseModel):
    """A ticket for one SSH session; it is shown only this once."""

    ticket: str
    expires: datetime


@leases.post("", status_code=201)
async def request_lease(api: ApiDependency, principal: Viewer, new: NewLease) -> Lease:
    """Ask for access to a device for a time.

    An operator's request goes to the device at once; a viewer's waits for an approval.
    """
    tenant = tenant_for(api, principal)
    is_operator = principal.role is not None and principal.role >= Role.OPERATOR
    holder = new.holder or principal.user_id
    if holder != principal.user_id:
        if not is_operator:
            message = "Only an operator asks for a lease for another person."
            raise Refused(403, "insufficient_role", message)
        if await tenant.members.role_of(holder) is None:
            raise NoSuchRecord("member", holder)
    starts, ends = _times(new)
    terms = LeaseTerms(
        device_id=await _device_id(tenant, new.device),
        services=tuple(new.services),
        rights=tuple(new.rights),
        holder=holder,
        holder_name=await _name_of(api, holder),
        reason=new.reason,
        recorded=new.recorded,
        sealed=new.sealed,
        addresses=tuple(new.addresses),
        starts=starts,
        ends=ends,
        max_uses=new.max_uses,
    )
    lease, _ = await tenant.leases.add(terms, approved=is_operator)
    return _shown(lease)


@leases.get("")
async def list_leases(
    api: ApiDependency,
    principal: Viewer,
    device: Annotated[str | None, Query(max_length=128)] = None,
    mine: bool = False,
    living: bool = False,
    limit: Limit = 50,
    after: After = None,
) -> Listing[Lease]:
    """The tenant's leases, the newest first."""
    tenant = tenant_for(api, principal)
    page = await tenant.leases.page(
        device_id=None if device is None else await _device_id(tenant, device),
        holder=principal.user_id if mine else None,
        living=living,
        limit=limit,
        after=after,
    )
    return listing(page, _shown)


@leases.get("/{lease_id}")
async def get_lease(api: ApiDependency, principal: Viewer, lease_id: LeaseId) -> Lease:
    """One lease."""
    return _shown(await tenant_for(api, principal).leases.find(lease_id))


@leases.post("/{lease_id}/approve")
async def approve_lease(api: ApiDependency, principal: Operator, lease_id: LeaseId) -> Lease:
    """Approve a request of another person: it then goes to the device."""
    lease, _ = await tenant_for(api, principal).leases.decide(lease_id, True)
    return _shown(lease)


@leases.post("/{lease_id}/deny")
async def deny_lease(
    api: ApiDependency, principal: Operator, lease_id: LeaseId, decision: Decision
) -> Lease:
    """Refuse a request."""
    lease, _ = await tenant_for(api, principal).leases.decide(lease_id, False, decision.reason)
    return _shown(lease)


@leases.post("/{lease_id}/extend")
async def extend_lease(
    api: ApiDependency, principal: Operator, lease_id: LeaseId, wish: Extension
) -> Lease:
    """Give a lease that is not over a later end, which the device must accept."""
    tenant = tenant_for(api, principal)
    before = await tenant.leases.find(lease_id)
    until = _one_end(wish.until, wish.seconds, before.ends)
    lease, _ = await tenant.leases.extend(lease_id, until)
    return _shown(lease)


@leases.post("/{lease_id}/end")
async def end_lease(
    api: ApiDependency, principal: Viewer, lease_id: LeaseId, decision: Decision
) -> ChangedLease:
    """End a lease now: all sessions and visits under it end within 2 s. Viewers may end their
    own."""
    tenant = tenant_for(api, principal)
    _require_own(await tenant.leases.find(lease_id), principal, "End")
    lease, number = await tenant.leases.end(lease_id, decision.reason)
    return ChangedLease(lease=_shown(lease), ended=await Ended.by(api.registry, number))


@leases.get("/{lease_id}/report")
async def report_lease(
    api: ApiDependency,
    principal: Viewer,
    lease_id: LeaseId,
    from_number: Annotated[int, Query(ge=1)] = 1,
    limit: Limit = 200,
) -> list[LeaseEntry]:
    """The audit entries about a lease, the oldest first; fewer than `limit` at the end."""
    tenant = tenant_for(api, principal)
    _require_own(await tenant.leases.find(lease_id), principal, "Read the report of")
    entries = await tenant.leases.report(lease_id, from_number=from_number, limit=limit)
    return [_entry(entry) for entry in entries]


@leases.post("/{lease_id}/ticket", status_code=201)
async def make_ticket(api: ApiDependency, principal: Viewer, lease_id: LeaseId) -> MadeTicket:
    """A ticket for one SSH session under the caller's own lease, valid for five minutes."""
    tenant = tenant_for(api, principal)
    lease = await tenant.leases.find(lease_id)
    ticket, secret = await tenant.tickets.add(
        user_id=principal.user_id, device_id=lease.device_id, lease_id=lease_id
    )
    return MadeTicket(ticket=secret.reveal(), expires=ticket.expires)


@ssh_keys.get("")
async def list_ssh_keys(api: ApiDependency, principal: SignedIn) -> list[SshKey]:
    """The caller's own SSH keys, the newest first."""
    found = await installation_for(api, principal).ssh_keys.of_user(principal.user_id)
    return [SshKey.model_validate(item) for item in found]


@ssh_keys.post("", status_code=201)
async def add_ssh_key(api: ApiDependency, principal: SignedIn, new: NewSshKey) -> SshKey:
    """Register a public key of the caller."""
    _require_browser(principal)
    keys = installation_for(api, principal).ssh_keys
    return SshKey.model_validate(await keys.add(principal.user_id, new.key, new.name))


@ssh_keys.delete("/{ssh_key_id}", status_code=204)
async def remove_ssh_key(
    api: ApiDependency, principal: SignedIn, ssh_key_id: Annotated[str, Path(max_length=64)]
) -> None:
    """Delete a public key of the caller."""
    keys = installation_for(api, principal).ssh_keys
    await keys.remove(ssh_key_id, user_id=principal.user_id)


def _times(new: NewLease) -> tuple[datetime, datetime]:
    starts = new.starts or datetime.now(UTC)
    return starts, _one_end(new.until, new.seconds, starts)


def _one_end(until: datetime | None, seconds: float | None, behind: datetime) -> datetime:
    if (until is None) == (seconds is None):
        raise Refused(409, "invalid", "Give the end either as until or as seconds.")
    return until if until is not None else behind + timedelta(seconds=seconds or 0)


async def _device_id(tenant: TenantRegistry, text: str) -> str:
    try:
        return (await tenant.devices.find(text)).id
    except NoSuchRecord:
        return (await tenant.devices.find_called(text)).id


async def _name_of(api: Api, user_id: str) -> str:
    user = await api.installation.users.find(user_id)
    return user.called


def _require_own(lease: LeaseRecord, principal: Principal, what: str) -> None:
    if principal.role is not None and principal.role >= Role.OPERATOR:
        return
    if principal.user_id not in (lease.holder, lease.created_by):
        message = f"{what} another person's lease: that needs the role operator."
        raise Refused(403, "insufficient_role", message)


def _require_browser(principal: Principal) -> None:
    # A key outlives the token that registered it: a leaked token could so leave access behind.
    if not principal.is_browser:
        message = "Register SSH keys in a browser, signed in; an access token cannot do it."
        raise Refused(403, "no_browser_session", message)


def _shown(lease: LeaseRecord) -> Lease:
    values = {name: getattr(lease, name) for name in Lease.model_fields if name != "state"}
    return Lease.model_validate(values | {"state": lease.state(datetime.now(UTC))})


def _entry(entry: AuditEntry) -> LeaseEntry:
    return LeaseEntry(
        number=entry.number,
        at=entry.at,
        action=entry.action,
        actor_kind=entry.actor.kind,
        actor_id=entry.actor.id,
        actor_name=entry.actor.name,
        actor_address=entry.actor.address,
        before=json.loads(entry.before) if entry.before else None,
        after=json.loads(entry.after) if entry.after else None,
    )
