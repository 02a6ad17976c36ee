"""The audit, who changed what: `/api/audit`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator
from starlette.responses import StreamingResponse

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.context import ApiDependency, tenant_for
from tunnelmux.api.records import TEXT, After, Computable, Limit, Listing, Record, listing
from tunnelmux.registry import AuditFilter, TenantRegistry

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)

router = APIRouter(prefix="/api/audit", route_class=AccessRoute, tags=["audit"])

Admin = Annotated[Principal, need(Role.ADMIN, "audit")]


def _check_moment(value: object) -> object:
    if isinstance(value, str) and not _RFC3339.fullmatch(value):
        raise ValueError("write a time like 2026-11-27T20:15:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_check_moment), Computable]
Word = Annotated[str, Query(max_length=128, pattern=TEXT)]


class AuditActor(Record):
    """Who did it."""

    kind: str
    id: str
    name: str
    address: str


class AuditEntry(Record):
    """One change; `previous_hash` and `hash` make a chain in which a gap shows."""

    number: int
    at: datetime
    actor: AuditActor
    action: str
    object_kind: str
    object_id: str
    before: str
    after: str
    previous_hash: str
    hash: str


class ChainCheck(BaseModel):
    """The result of checking the chain. Entries up to the number `cut` were deleted as too old."""

    entries: int
    broken_at: int | None
    problem: str
    cut: int


@router.get("")
async def list_audit(
    api: ApiDependency,
    principal: Admin,
    action: Word = "",
    object_id: Word = "",
    actor_id: Word = "",
    since: Moment | None = None,
    until: Moment | None = None,
    limit: Limit = 50,
    after: After = None,
) -> Listing[AuditEntry]:
    """Entries, the newest first. `action` may be the beginning of several: `device.`"""
    where = AuditFilter(
        action=action, object_id=object_id, actor_id=actor_id, since=since, until=until
    )
    page = await tenant_for(api, principal).audit.page(where=where, limit=limit, after=after)
    return listing(page, AuditEntry.model_validate)


@router.get("/export", response_class=StreamingResponse)
async def export_audit(
    api: ApiDependency,
    principal: Admin,
    from_number: Annotated[int, Query(ge=1)] = 1,
) -> StreamingResponse:
    """All entries from a number on, the oldest first, as lines of JSON."""
    lines = _lines(tenant_for(api, principal), from_number)
    return StreamingResponse(lines, media_type="application/x-ndjson")


@router.get("/verify")
async def verify_audit(api: ApiDependency, principal: Admin) -> ChainCheck:
    """Check the whole chain of hashes."""
    check = await tenant_for(api, principal).audit.verify()
    return ChainCheck(
        entries=check.entries, broken_at=check.broken_at, problem=check.problem, cut=check.cut
    )


async def _lines(tenant: TenantRegistry, number: int) -> AsyncIterator[str]:
    while entries := await tenant.audit.export(from_number=number):
        yield "".join(
            AuditEntry.model_validate(entry).model_dump_json() + "\n" for entry in entries
        )
        number = entries[-1].number + 1
