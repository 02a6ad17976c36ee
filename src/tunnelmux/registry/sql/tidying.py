"""Forgets what is over, in small batches, so that no other writer waits for long."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
import trio

from tunnelmux.registry.actor import Actor
from tunnelmux.registry.ids import Clock
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.changes import KEPT as CHANGES_KEPT
from tunnelmux.registry.sql.database import Database
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.tidying import Keeping

__all__ = ["TIDIED", "Tidying"]

_BATCH = 500
# Rows that one transaction deletes: some milliseconds of SQLite's one writer.

_PAUSE = 0.05
# Seconds after each full batch, in which writers of other processes get their turn.

_LINKS_KEPT = timedelta(days=90)
_DECIDED_KEPT = timedelta(days=30)
_UNDECIDED_KEPT = timedelta(hours=1)
# Any stranger can ask, so what was never decided is kept only to tell the device or terminal.
_GUESSES_KEPT = timedelta(days=1)

_CUT_FROM = timedelta(days=1)
# The audit is cut when its first entry is older than it has to be by this: so the entry that tells
# of the cut is written once a day at most.

Condition = Callable[[Transaction, timedelta], sa.ColumnElement[bool]]


def _ends(column: sa.Column[Any], kept: timedelta = timedelta()) -> Condition:
    return lambda tx, _: column < tx.now - kept


def _over(*columns: sa.Column[Any]) -> Condition:
    """Over for `records_kept`, by any of these times."""
    return lambda tx, kept: sa.or_(*(column < tx.now - kept for column in columns))


def _asked(table: sa.Table) -> Condition:
    return lambda tx, _: sa.or_(
        table.c.expires < tx.now - _DECIDED_KEPT,
        sa.and_(table.c.state == "open", table.c.expires < tx.now - _UNDECIDED_KEPT),
    )


def _used_up_keys(tx: Transaction, kept: timedelta) -> sa.ColumnElement[bool]:
    # As long as devices came by it, its name says how they came, and it can remove them.
    keys, devices = schema.install_keys, schema.devices
    came = sa.select(devices.c.id).where(devices.c.install_key_id == keys.c.id)
    return sa.and_(_over(keys.c.expires, keys.c.revoked)(tx, kept), sa.not_(came.exists()))


TIDIED: dict[sa.Table, Condition] = {
    schema.changes: _ends(schema.changes.c.at, CHANGES_KEPT),
    schema.change_effects: _ends(schema.change_effects.c.at, CHANGES_KEPT),
    schema.used_once: _ends(schema.used_once.c.until),
    schema.service_links: _ends(schema.service_links.c.ends, _LINKS_KEPT),
    schema.signing_keys: _ends(schema.signing_keys.c.ends),
    schema.guesses: _ends(schema.guesses.c.since, _GUESSES_KEPT),
    schema.browser_sessions: lambda tx, _: sa.or_(
        schema.browser_sessions.c.idle_ends < tx.now, schema.browser_sessions.c.ends < tx.now
    ),
    schema.pairings: _asked(schema.pairings),
    schema.terminal_requests: _asked(schema.terminal_requests),
    schema.device_ssh_keys: _ends(schema.device_ssh_keys.c.expires),
    schema.recordings: _ends(schema.recordings.c.expires),
    schema.tickets: _ends(schema.tickets.c.expires),
    schema.access_tokens: _over(schema.access_tokens.c.expires, schema.access_tokens.c.revoked),
    schema.invitations: _over(schema.invitations.c.expires),
    schema.install_keys: _used_up_keys,
    schema.credentials: _over(schema.credentials.c.ended),
    schema.leases: _over(schema.leases.c.ended, schema.leases.c.ends),
}
"""What is deleted of each table."""


class Tidying(Repository):
    """Deletes what is over. Two that run at once do the same work twice, and no harm."""

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__(database, clock, tenant_id=None, actor=Actor.program("tunnelmux-api"))

    async def run(self, keep: Keeping) -> None:
        """Delete all that is over now. What was deleted before an error stays deleted."""
        kept = timedelta(seconds=keep.records)
        for table in TIDIED:
            while keys := await self._find(table, kept):
                await self._forget(table, kept, keys)
                if len(keys) < _BATCH:
                    break
                await trio.sleep(_PAUSE)
        if keep.audit is not None:
            kept = timedelta(seconds=keep.audit)
            for tenant_id in await self._with_old_audit(kept):
                await self._cut_audit(tenant_id, kept)

    @reads
    def _find(self, tx: Transaction, table: sa.Table, kept: timedelta) -> list[tuple[Any, ...]]:
        # Not in the transaction that deletes: SQLite's writer does not wait while a table is read.
        query = sa.select(*table.primary_key).where(TIDIED[table](tx, kept)).limit(_BATCH)
        return [tuple(row) for row in tx.execute(query)]

    @writes
    def _forget(
        self, tx: Transaction, table: sa.Table, kept: timedelta, keys: list[tuple[Any, ...]]
    ) -> None:
        # In order, so that two that do it at once do not wait for each other in a circle.
        found = sa.tuple_(*table.primary_key).in_(sorted(keys))
        tx.execute(table.delete().where(found, TIDIED[table](tx, kept)))

    # -- the audit ------------------------------------------------------------------------------

    @reads
    def _with_old_audit(self, tx: Transaction, kept: timedelta) -> list[str]:
        """The tenants whose first entry is so old that the audit is to be cut."""
        tenants, entries = schema.tenants, schema.audit
        first = sa.and_(
            entries.c.tenant_id == tenants.c.id,
            entries.c.number == tenants.c.audit_cut + 1,
            # The last one stays, so that the chain is never empty.
            entries.c.number < tenants.c.audit_number,
        )
        old = entries.c.at < tx.now - kept - _CUT_FROM
        query = sa.select(tenants.c.id).select_from(tenants.join(entries, first)).where(old)
        return list(tx.execute(query).scalars())

    async def _cut_audit(self, tenant_id: str, kept: timedelta) -> None:
        is_whole = False
        while not is_whole:
            is_whole = await self._cut_batch(tenant_id, kept)
            await trio.sleep(_PAUSE)

    @writes
    def _cut_batch(self, tx: Transaction, tenant_id: str, kept: timedelta) -> bool:
        """Delete the first entries of this tenant's audit that are old. True when these were the
        last of them: then the entry that tells of the cut is written with it. Where it stops
        before, old entries are left, and the next cut tells of all."""
        mine = tx.within(tenant_id)
        entries, tenants = schema.audit, schema.tenants
        number = sa.select(tenants.c.audit_number).where(tenants.c.id == tenant_id)
        head = mine.execute(number).scalar_one()
        rows = mine.execute(
            mine.select(entries, entries.c.number, entries.c.at, entries.c.hash)
            .where(entries.c.number < head)
            .order_by(entries.c.number)
            .limit(_BATCH + 1)
        ).all()
        old = list(itertools.takewhile(lambda row: row.at < tx.now - kept, rows))
        if not old:  # another program has cut them
            return True
        last = old[:_BATCH][-1]
        mine.delete(entries, entries.c.number <= last.number)
        mine.execute(
            tenants.update()
            .where(tenants.c.id == tenant_id)
            .values(audit_cut=last.number, audit_cut_hash=last.hash)
        )
        if len(old) > _BATCH:
            return False
        after = {"up_to": last.number, "hash": last.hash}
        mine.record("audit.cut", "tenant", tenant_id, after=after)
        return True
