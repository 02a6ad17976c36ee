"""Leases in SQL."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.audit import AuditEntry
from tunnelmux.registry.audit_details import MOST_TEXT, shortened
from tunnelmux.registry.ids import MAX_PAGE, Page, new_id
from tunnelmux.registry.leases import MAX_LEASE, RIGHTS, Lease, Leases, LeaseTerms
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.audit import read_entry
from tunnelmux.registry.sql.devices import find_device
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlLeases", "change_lease", "end_lease", "find_lease", "is_living", "read_lease"]

_L = schema.leases
_A = schema.audit

_MAX_SERVICES = 64
_MAX_DETAILS = 8 * MOST_TEXT
# Characters of JSON about one event, with what is not text in it. A control character takes six.

_SLACK = timedelta(seconds=30)
# How far apart two clocks may be: another program's clock may have computed "in 12 h".


class SqlLeases(Repository, Leases):
    """See `Leases`."""

    @writes
    def add(self, tx: Transaction, terms: LeaseTerms, *, approved: bool) -> tuple[Lease, int]:
        device = find_device(tx, terms.device_id)
        values = _checked(terms, tx.now)
        if device.state.assist is not None:
            device.state.assist.check(terms.services, max(terms.starts, tx.now), terms.ends)
        _need_room(tx, terms.device_id)
        lease_id = new_id()
        values |= {
            "kind": "person",
            "approval": "not_needed" if approved else "asked",
            "consent": "asked",
        }
        by = {"created_by": tx.actor.user_id, "created_by_name": tx.actor.name}
        tx.insert(_L, id=lease_id, created=tx.now, **by, **values)
        tx.record("lease.request", "lease", lease_id, after=values | {"device": device.name})
        return find_lease(tx, lease_id), tx.announce("lease", lease_id)

    @reads
    def find(self, tx: Transaction, lease_id: str) -> Lease:
        return find_lease(tx, lease_id)

    @reads
    def page(
        self,
        tx: Transaction,
        *,
        device_id: str | None = None,
        holder: str | None = None,
        living: bool = False,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Lease]:
        query = tx.select(_L)
        if device_id is not None:
            query = query.where(_L.c.device_id == device_id)
        if holder is not None:
            query = query.where(_L.c.holder == holder)
        if living:
            query = query.where(is_living(tx.now))
        return paging.descending(tx, query, _L.c.id, read_lease, limit=limit, after=after)

    @reads
    def running(self, tx: Transaction, *, holder: str, device_id: str) -> list[Lease]:
        mine = sa.and_(_L.c.holder == holder, _L.c.device_id == device_id, _L.c.kind == "person")
        rows = tx.execute(tx.select(_L).where(mine, is_living(tx.now)))
        found = [lease for row in rows if (lease := read_lease(row)).state(tx.now) == "running"]
        return sorted(found, key=lambda lease: lease.ends, reverse=True)

    @writes
    def decide(
        self, tx: Transaction, lease_id: str, approve: bool, reason: str = ""
    ) -> tuple[Lease, int]:
        before = _not_over(tx, lease_id)
        if before.approval != "asked":
            raise RegistryRefused("this lease does not wait for an approval", code="not_asked")
        if approve and tx.actor.user_id == before.created_by:
            raise RegistryRefused(
                "this request is your own: ask another person to approve it", code="own_request"
            )
        values: dict[str, Any] = {
            "approval": "given" if approve else "refused",
            "decided_by": tx.actor.user_id,
            "decided": tx.now,
        }
        if not approve:
            reason = names.check_text("reason", reason, 255) or "it was not approved"
            return end_lease(tx, before, reason, "lease.deny", values)
        return change_lease(tx, before, "lease.approve", values)

    @writes
    def use(
        self, tx: Transaction, lease_id: str, details: dict[str, object] | None = None
    ) -> Lease:
        return use_lease(tx, lease_id, details or {})

    @writes
    def note(
        self, tx: Transaction, lease_id: str, what: str, details: dict[str, object]
    ) -> AuditEntry:
        find_lease(tx, lease_id)
        return tx.record(f"lease.{what}", "lease", lease_id, after=_details(details))

    @writes
    def extend(self, tx: Transaction, lease_id: str, until: datetime) -> tuple[Lease, int]:
        before = _not_over(tx, lease_id)
        if before.kind != "person":
            raise RegistryRefused("only the device extends this lease", code="device_refuses")
        if until <= before.ends:
            raise RegistryRefused(
                "the new end must be later than the present one", code="invalid", field="until"
            )
        _check_end(until, tx.now)
        device = find_device(tx, before.device_id)
        if device.state.assist is not None:
            device.state.assist.check(before.services, before.starts, until)
        values = {"ends": until, "extended": before.extended + 1}
        return change_lease(tx, before, "lease.extend", values)

    @writes
    def end(self, tx: Transaction, lease_id: str, reason: str) -> tuple[Lease, int]:
        before = find_lease(tx, lease_id)
        if before.state(tx.now) in ("ended", "expired"):
            return before, tx.last_change()
        return end_lease(tx, before, names.check_text("reason", reason, 255))

    @reads
    def report(
        self, tx: Transaction, lease_id: str, *, from_number: int = 1, limit: int = 200
    ) -> list[AuditEntry]:
        find_lease(tx, lease_id)
        query = (
            tx.select(_A)
            .where(_A.c.object_id == lease_id, _A.c.number >= from_number)
            .order_by(_A.c.number)
            .limit(max(1, min(limit, MAX_PAGE)))
        )
        return [read_entry(row) for row in tx.execute(query)]


# -- for the other repositories -----------------------------------------------------------------


def find_lease(tx: Transaction, lease_id: str) -> Lease:
    """The lease of this id in the transaction's tenant; raises NoSuchRecord."""
    return read_lease(tx.one(_L, lease_id, "lease"))


def is_living(now: datetime) -> sa.ColumnElement[bool]:
    """Whether a row is that of a lease that is not over."""
    return sa.and_(
        _L.c.ended.is_(None),
        _L.c.ends > now,
        sa.or_(_L.c.max_uses.is_(None), _L.c.uses < _L.c.max_uses),
    )


def change_lease(
    tx: Transaction, before: Lease, action: str, values: dict[str, Any]
) -> tuple[Lease, int]:
    """Write these values and an audit entry. Returns the changed lease and the change's number."""
    tx.update(_L, _L.c.id == before.id, **values)
    was = {key: getattr(before, key) for key in values}
    tx.record(action, "lease", before.id, before=was, after=values)
    number = tx.announce("lease", before.id)
    return find_lease(tx, before.id), number


def end_lease(
    tx: Transaction,
    before: Lease,
    reason: str,
    action: str = "lease.end",
    more: dict[str, Any] | None = None,
) -> tuple[Lease, int]:
    """End a lease that has not ended; the actor did it."""
    values: dict[str, Any] = {
        "ended": tx.now,
        "ended_by": tx.actor.user_id or tx.actor.id,
        "ended_by_name": tx.actor.name,
        "end_reason": reason[:255],
    }
    return change_lease(tx, before, action, values | (more or {}))


# -- inside -------------------------------------------------------------------------------------


def use_lease(tx: Transaction, lease_id: str, details: dict[str, object]) -> Lease:
    """Count one use, with an audit entry; raises RegistryRefused `lease_over`."""
    before = _not_over(tx, lease_id)
    if before.state(tx.now) != "running":
        raise RegistryRefused("this lease is not running yet", code="lease_over")
    tx.update(_L, _L.c.id == lease_id, uses=before.uses + 1)
    after = {"uses": before.uses + 1} | _details(details)
    tx.record("lease.use", "lease", lease_id, after=after)
    if before.max_uses is not None and before.uses + 1 >= before.max_uses:
        tx.announce("lease", lease_id)
    return find_lease(tx, lease_id)


def _need_room(tx: Transaction, device_id: str) -> None:
    here = sa.and_(_L.c.device_id == device_id, _L.c.kind == "person", is_living(tx.now))
    count = tx.select(_L, sa.func.count()).where(here)
    mine: int = tx.execute(count.where(_L.c.created_by == tx.actor.user_id)).scalar_one()
    of_person, of_device = tx.limits.leases_per_person, tx.limits.leases_per_device
    if mine >= of_person or tx.execute(count).scalar_one() >= of_device:
        raise RegistryRefused(
            f"{mine} leases of this device that you asked for are not over, and a person has at "
            f"most {of_person}, a device {of_device}: end some",
            code="too_many",
        )


def _not_over(tx: Transaction, lease_id: str) -> Lease:
    lease = find_lease(tx, lease_id)
    state = lease.state(tx.now)
    if state in ("ended", "expired", "used_up"):
        raise RegistryRefused(
            f"this lease is over ({state.replace('_', ' ')}) and never comes back: make another",
            code="lease_over",
        )
    return lease


def _check_end(ends: datetime, now: datetime) -> None:
    if ends > now + MAX_LEASE + _SLACK:
        hours = MAX_LEASE / timedelta(hours=1)
        raise RegistryRefused(
            f"a lease ends within {hours:g} h of now: ask for less, and extend it then",
            code="invalid",
            field="until",
        )


def _checked(terms: LeaseTerms, now: datetime) -> dict[str, Any]:
    """The columns for these terms; raises RegistryRefused `invalid`."""
    if terms.ends <= max(terms.starts, now):
        raise RegistryRefused(
            "a lease must end after it starts, and in the future", code="invalid", field="until"
        )
    _check_end(terms.ends, now)
    if terms.max_uses is not None and terms.max_uses < 1:
        raise RegistryRefused("max_uses must be 1 or more", code="invalid", field="max_uses")
    if not 1 <= len(terms.services) <= _MAX_SERVICES:
        raise RegistryRefused(
            f"a lease has 1 to {_MAX_SERVICES} services", code="invalid", field="services"
        )
    unknown = [right for right in terms.rights if right not in RIGHTS]
    if unknown:
        raise RegistryRefused(
            f"there is no such right: {unknown[0][:40]}", code="invalid", field="rights"
        )
    if not (terms.recorded or terms.sealed):
        raise RegistryRefused(
            "a lease allows recorded sessions, sealed ones, or both", code="invalid", field="sealed"
        )
    return dataclasses.asdict(terms) | {
        "services": [
            names.check_text("services", service, 63, least=1)
            for service in dict.fromkeys(terms.services)
        ],
        "rights": [right for right in RIGHTS if right in terms.rights],
        "addresses": names.check_networks("addresses", terms.addresses),
        "holder_name": names.check_text("holder_name", terms.holder_name, 255),
        "reason": names.check_text("reason", terms.reason, 1000),
    }


def _details(details: dict[str, object]) -> dict[str, object]:
    cut = shortened(details)
    if len(json.dumps(cut, default=str, ensure_ascii=False)) > _MAX_DETAILS:
        raise RegistryRefused("too many details for one entry", code="invalid")
    return cut


def read_lease(row: Row[Any]) -> Lease:
    """A lease from its row."""
    return Lease(
        id=row.id,
        kind=row.kind,
        device_id=row.device_id,
        services=tuple(row.services),
        rights=tuple(row.rights),
        holder=row.holder,
        holder_name=row.holder_name,
        reason=row.reason,
        recorded=row.recorded,
        sealed=row.sealed,
        addresses=tuple(row.addresses),
        approval=row.approval,
        consent=row.consent,
        decided_by=row.decided_by,
        decided=row.decided,
        starts=row.starts,
        ends=row.ends,
        max_uses=row.max_uses,
        uses=row.uses,
        created_by=row.created_by,
        created_by_name=row.created_by_name,
        created=row.created,
        ended=row.ended,
        ended_by=row.ended_by,
        ended_by_name=row.ended_by_name,
        end_reason=row.end_reason,
        extended=row.extended,
    )
