"""Leases in SQL."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.leases import Lease, Leases, LeaseTerms
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.devices import find_device
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlLeases"]

_L = schema.leases


class SqlLeases(Repository, Leases):
    """See `Leases`."""

    @writes
    def add(self, tx: Transaction, terms: LeaseTerms) -> Lease:
        find_device(tx, terms.device_id)
        if terms.ends <= max(terms.starts, tx.now):
            raise RegistryRefused(
                "a lease must end after it starts, and in the future", code="invalid", field="ends"
            )
        if terms.max_uses is not None and terms.max_uses < 1:
            raise RegistryRefused("max_uses must be 1 or more", code="invalid", field="max_uses")
        lease_id = new_id()
        values = dataclasses.asdict(terms) | {
            "services": [
                names.check_text("services", service, 63, least=1) for service in terms.services
            ],
            "holder_name": names.check_text("holder_name", terms.holder_name, 255),
            "reason": names.check_text("reason", terms.reason, 1000),
        }
        tx.insert(_L, id=lease_id, created=tx.now, created_by=tx.actor.user_id, **values)
        tx.record("lease.add", "lease", lease_id, after=values)
        tx.announce("lease", lease_id)
        return _find(tx, lease_id)

    @reads
    def find(self, tx: Transaction, lease_id: str) -> Lease:
        return _find(tx, lease_id)

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
            query = query.where(
                _L.c.ended.is_(None),
                _L.c.ends > tx.now,
                sa.or_(_L.c.max_uses.is_(None), _L.c.uses < _L.c.max_uses),
            )
        return paging.descending(tx, query, _L.c.id, _lease, limit=limit, after=after)

    @writes
    def consent(self, tx: Transaction, lease_id: str, given: bool) -> Lease:
        before = _not_over(tx, lease_id)
        if before.consent != "asked":
            raise RegistryRefused("this lease does not wait for consent", code="lease_over")
        values: dict[str, Any] = {"consent": "given" if given else "refused"}
        if not given:
            values |= {
                "ended": tx.now,
                "ended_by": tx.actor.id,
                "end_reason": "the device refused",
            }
        return _change(tx, before, "lease.consent", values)

    @writes
    def use(self, tx: Transaction, lease_id: str) -> Lease:
        before = _not_over(tx, lease_id)
        if before.state(tx.now) != "running":
            raise RegistryRefused("this lease is not running yet", code="lease_over")
        return _change(tx, before, "lease.use", {"uses": before.uses + 1})

    @writes
    def extend(self, tx: Transaction, lease_id: str, until: datetime) -> Lease:
        before = _not_over(tx, lease_id)
        if until <= before.ends:
            raise RegistryRefused(
                "the new end must be later than the present one", code="invalid", field="until"
            )
        values = {"ends": until, "extended": before.extended + 1}
        return _change(tx, before, "lease.extend", values)

    @writes
    def end(self, tx: Transaction, lease_id: str, reason: str) -> tuple[Lease, int]:
        before = _find(tx, lease_id)
        if before.ended is not None:
            return before, tx.last_change()
        values = {
            "ended": tx.now,
            "ended_by": tx.actor.id,
            "end_reason": names.check_text("reason", reason, 255),
        }
        after = _change(tx, before, "lease.end", values)
        return after, tx.last_change()


def _find(tx: Transaction, lease_id: str) -> Lease:
    return _lease(tx.one(_L, lease_id, "lease"))


def _not_over(tx: Transaction, lease_id: str) -> Lease:
    lease = _find(tx, lease_id)
    state = lease.state(tx.now)
    if state in ("ended", "expired", "used_up"):
        raise RegistryRefused(
            f"this lease is over ({state.replace('_', ' ')}) and never comes back: make another",
            code="lease_over",
        )
    return lease


def _change(tx: Transaction, before: Lease, action: str, values: dict[str, Any]) -> Lease:
    tx.update(_L, _L.c.id == before.id, **values)
    was = {key: getattr(before, key) for key in values}
    tx.record(action, "lease", before.id, before=was, after=values)
    tx.announce("lease", before.id)
    return _find(tx, before.id)


def _lease(row: Row[Any]) -> Lease:
    return Lease(
        id=row.id,
        device_id=row.device_id,
        services=tuple(row.services),
        holder=row.holder,
        holder_name=row.holder_name,
        reason=row.reason,
        recorded=row.recorded,
        consent=row.consent,
        starts=row.starts,
        ends=row.ends,
        max_uses=row.max_uses,
        uses=row.uses,
        created_by=row.created_by,
        created=row.created,
        ended=row.ended,
        ended_by=row.ended_by,
        end_reason=row.end_reason,
        extended=row.extended,
    )
