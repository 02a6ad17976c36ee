"""The audit in SQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.registry.actor import Actor
from tunnelmux.registry.audit import (
    FIRST_HASH,
    AuditEntry,
    AuditFilter,
    AuditTrail,
    ChainCheck,
    hash_entry,
)
from tunnelmux.registry.ids import Page
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes

__all__ = ["SqlAuditTrail", "read_entry"]

_A = schema.audit
_BATCH = 500
_LARGE = (_A.c.before, _A.c.after)


class SqlAuditTrail(Repository, AuditTrail):
    """The audit of a tenant, or of the installation when it has none."""

    @reads
    def page(
        self,
        tx: Transaction,
        *,
        where: AuditFilter | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[AuditEntry]:
        query = self._entries().where(*_conditions(where or AuditFilter()))
        return paging.descending(
            tx, query, _A.c.number, read_entry, limit=limit, after=after, large=_LARGE
        )

    @reads
    def export(
        self, tx: Transaction, *, from_number: int = 1, limit: int = 200
    ) -> list[AuditEntry]:
        return self._from(tx, from_number, limit)

    @writes
    def note(
        self,
        tx: Transaction,
        action: str,
        *,
        object_kind: str,
        object_id: str,
        details: dict[str, object] | None = None,
    ) -> AuditEntry:
        return tx.record(action, object_kind, object_id, after=details)

    async def verify(self) -> ChainCheck:
        # In pages, each in its own transaction: entries are only added, and the oldest deleted.
        cut, number, previous = 0, 0, FIRST_HASH
        while entries := await self.export(from_number=number + 1, limit=_BATCH):
            begin = await self._begin_of_chain() if entries[0].number > number + 1 else (0, "")
            if begin[0] > number:
                cut, previous = begin
                number = cut
                continue
            for entry in entries:
                problem = self._problem(entry, number + 1, previous)
                if problem:
                    return ChainCheck(
                        entries=number - cut, broken_at=number + 1, problem=problem, cut=cut
                    )
                number, previous = entry.number, entry.hash
        count, last = await self._head(number)
        if count > number or (count == number and last != previous):
            return ChainCheck(
                entries=number - cut,
                cut=cut,
                broken_at=number + 1,
                problem="entries are missing at the end"
                if count > number
                else "the last entry is not the one that was written last",
            )
        return ChainCheck(entries=number - cut, broken_at=None, problem="", cut=cut)

    def _problem(self, entry: AuditEntry, number: int, previous: str) -> str:
        if entry.number != number:
            return f"entry {number} is missing"
        if entry.previous_hash != previous:
            return f"entry {number} does not continue the entry before it"
        if hash_entry(self._owner, replace(entry, hash="")) != entry.hash:
            return f"entry {number} was altered"
        return ""

    @reads
    def _begin_of_chain(self, tx: Transaction) -> tuple[int, str]:
        """The last entry that was deleted as too old, and its hash."""
        tenants = schema.tenants
        row = tx.execute(
            sa.select(tenants.c.audit_cut, tenants.c.audit_cut_hash).where(
                tenants.c.id == self._owner
            )
        ).one()
        return row.audit_cut, row.audit_cut_hash

    @reads
    def _head(self, tx: Transaction, at_least: int) -> tuple[int, str]:
        """How many entries there must be, and the last one's hash.

        If more were written meanwhile, the entries up to `at_least` are right.
        """
        tenants = schema.tenants
        row = tx.execute(
            sa.select(tenants.c.audit_number, tenants.c.audit_hash).where(
                tenants.c.id == self._owner
            )
        ).one_or_none()
        if row is None:
            return 0, FIRST_HASH
        written = sa.func.coalesce(sa.func.max(_A.c.number), 0)
        last = tx.execute(sa.select(written).where(_A.c.tenant_id == self._owner)).scalar_one()
        if last == row.audit_number > at_least:
            return at_least, tx.execute(
                sa.select(_A.c.hash).where(_A.c.tenant_id == self._owner, _A.c.number == at_least)
            ).scalar() or FIRST_HASH
        return row.audit_number, row.audit_hash

    @property
    def _owner(self) -> str:
        return self._tenant_id or schema.SYSTEM_TENANT

    def _entries(self) -> sa.Select[Any]:
        return sa.select(_A).where(_A.c.tenant_id == self._owner)

    def _from(self, tx: Transaction, number: int, limit: int) -> list[AuditEntry]:
        query = self._entries().where(_A.c.number >= number).order_by(_A.c.number)
        limit = paging.as_many_as_allowed(tx, query, _LARGE, max(1, min(limit, _BATCH)))
        return [read_entry(row) for row in tx.execute(query.limit(limit))]


def _conditions(where: AuditFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if where.action:
        found.append(
            _A.c.action.startswith(where.action, autoescape=True)
            if where.action.endswith(".")
            else _A.c.action == where.action
        )
    if where.object_id:
        found.append(_A.c.object_id == where.object_id)
    if where.actor_id:
        found.append(_A.c.actor_id == where.actor_id)
    if where.since is not None:
        found.append(_A.c.at >= where.since)
    if where.until is not None:
        found.append(_A.c.at < where.until)
    return found


def read_entry(row: Row[Any]) -> AuditEntry:
    """An entry from its row."""
    return AuditEntry(
        number=row.number,
        at=row.at,
        actor=Actor(
            kind=row.actor_kind, id=row.actor_id, name=row.actor_name, address=row.actor_address
        ),
        action=row.action,
        object_kind=row.object_kind,
        object_id=row.object_id,
        before=row.before,
        after=row.after,
        previous_hash=row.previous_hash,
        hash=row.hash,
    )
