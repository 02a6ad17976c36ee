"""One transaction of the registry: its tenant, its audit entries and the changes it announces."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, CursorResult, Row

from tunnelmux.errors import NoSuchRecord
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.audit import AuditEntry, hash_entry
from tunnelmux.registry.changes import ChangeKind
from tunnelmux.registry.ids import Clock, format_time
from tunnelmux.registry.pairing import PairingRules
from tunnelmux.registry.record_limits import RecordLimits
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.database import Database
from tunnelmux.registry.sql.guard import check_tenant
from tunnelmux.registry.sql.shares import DailyShares

__all__ = [
    "CHANNEL",
    "Repository",
    "RuledRepository",
    "Transaction",
    "as_json",
    "reads",
    "writes",
]

CHANNEL = "tunnelmux_changes"
"""PostgreSQL's NOTIFY channel. Its payload is the number of the last change."""

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R", bound="Repository")


class Transaction:
    """A connection, bound to a tenant and an actor.

    Statements go through `execute`, which refuses those that do not name this tenant. Without a
    tenant (`tenant_id` None) it is for records that belong to no tenant; `within` binds it to one.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        tenant_id: str | None,
        actor: Actor,
        now: datetime,
        shares: DailyShares,
        limits: RecordLimits,
    ) -> None:
        self.tenant_id = tenant_id
        self.actor = actor
        self.now = now
        self.limits = limits
        self._connection = connection
        self._shares = shares

    @property
    def tenant(self) -> str:
        """The tenant it is bound to."""
        assert self.tenant_id is not None
        return self.tenant_id

    def within(self, tenant_id: str) -> Transaction:
        """The same transaction, bound to this tenant from now on and locked for writing there.

        On PostgreSQL others may have written there while this one waited for its turn: what was
        read before must be read again, and no row of the tenant may be locked before.
        """
        inner = self._bound(tenant_id, self.actor)
        inner.lock()
        return inner

    def above(self) -> Transaction:
        """The same transaction, bound to no tenant, for records that belong to none yet."""
        return self._bound(None, self.actor)

    def acting(self, actor: Actor) -> Transaction:
        """The same transaction with another actor, who became known within the transaction."""
        return self._bound(self.tenant_id, actor)

    def _bound(self, tenant_id: str | None, actor: Actor) -> Transaction:
        return Transaction(
            self._connection,
            tenant_id=tenant_id,
            actor=actor,
            now=self.now,
            shares=self._shares,
            limits=self.limits,
        )

    def lock(self) -> None:
        """Be the only writer in this tenant until the end; raises NoSuchRecord.

        So what was read before a change is still true when the change is made. FOR NO KEY UPDATE,
        because a plain FOR UPDATE would deadlock with the checks of foreign keys.
        """
        tenants = schema.tenants
        row = self._connection.execute(
            sa.select(tenants.c.id)
            .where(tenants.c.id == self.tenant_id)
            .with_for_update(key_share=True)
        ).first()
        if row is None:
            raise NoSuchRecord("tenant", self.tenant)

    def lock_installation(self) -> None:
        """Be the only writer of the installation's own audit until the end.

        To be called before `within` where both audits are written: each takes the installation
        first, so that no two wait for each other.
        """
        tenants = schema.tenants
        self._connection.execute(
            sa.select(tenants.c.id)
            .where(tenants.c.id == schema.SYSTEM_TENANT)
            .with_for_update(key_share=True)
        ).one()

    # -- statements -----------------------------------------------------------------------------

    def execute(
        self, statement: sa.Executable, rows: list[dict[str, Any]] | None = None
    ) -> CursorResult[Any]:
        """The result of a statement, which must name the tenant of this transaction."""
        if self.tenant_id is not None:
            check_tenant(statement, self.tenant_id, rows)
        return self._connection.execute(statement, rows)

    def select(self, table: sa.Table, *columns: sa.ColumnElement[Any] | sa.Table) -> sa.Select[Any]:
        """SELECT of this tenant's rows."""
        return sa.select(*(columns or (table,))).where(table.c.tenant_id == self.tenant)

    def insert(self, table: sa.Table, **values: object) -> None:
        """INSERT of one row of this tenant."""
        self.execute(table.insert().values(tenant_id=self.tenant, **values))

    def insert_new(
        self, table: sa.Table, on_known: Mapping[str, object] | None = None, **values: object
    ) -> bool:
        """INSERT of one row of no tenant, unless there is one with its key: then `on_known` are
        its new values. Whether it was inserted, or changed. Two transactions that do it at once
        are both right, where one of a SELECT and an INSERT would fail."""
        insert = (
            postgresql.insert if self._connection.dialect.name == "postgresql" else sqlite.insert
        )
        statement = insert(table).values(**values)
        key = list(table.primary_key)
        if on_known is None:
            statement = statement.on_conflict_do_nothing(index_elements=key)
        else:
            statement = statement.on_conflict_do_update(index_elements=key, set_=on_known)
        return self.execute(statement.returning(*key)).first() is not None

    def update(self, table: sa.Table, *where: sa.ColumnElement[bool], **values: object) -> int:
        """UPDATE of this tenant's rows; how many there were."""
        return self.execute(
            table.update().where(table.c.tenant_id == self.tenant, *where).values(**values)
        ).rowcount

    def delete(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        """DELETE of this tenant's rows; how many there were."""
        return self.execute(table.delete().where(table.c.tenant_id == self.tenant, *where)).rowcount

    def one(self, table: sa.Table, row_id: str, kind: str) -> Row[Any]:
        """This tenant's row with this id; raises NoSuchRecord."""
        row = self.execute(self.select(table).where(table.c.id == row_id)).first()
        if row is None:
            raise NoSuchRecord(kind, row_id)
        return row

    def label_is_taken(self, label: str) -> bool:
        """Whether host names with this label are used already, in any tenant."""
        labels = schema.host_labels
        return (
            self._connection.execute(
                sa.select(labels.c.label).where(labels.c.label == label)
            ).first()
            is not None
        )

    def last_change(self) -> int:
        """The number of the last change of all."""
        counters = schema.counters
        number: int = self._connection.execute(
            sa.select(counters.c.value).where(counters.c.name == "changes")
        ).scalar_one()
        return number

    # -- the audit and announcements ------------------------------------------------------------

    def record(
        self,
        action: str,
        object_kind: str,
        object_id: str,
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
    ) -> AuditEntry:
        """Write the audit entry of a change, chained to the previous one.

        Without a tenant it goes into the installation's own audit. Raises RegistryRefused
        `too_many` where the actor, or the tenant, has caused too many within a day.
        """
        self._shares.take(self.actor, action, self.now, self.tenant_id)
        tenants = schema.tenants
        tenant_id = self.tenant_id or schema.SYSTEM_TENANT
        number, previous = self._connection.execute(
            sa.select(tenants.c.audit_number, tenants.c.audit_hash)
            .where(tenants.c.id == tenant_id)
            .with_for_update(key_share=True)
        ).one()
        content: dict[str, Any] = {
            "number": number + 1,
            "at": self.now,
            "actor": self.actor,
            "action": action,
            "object_kind": object_kind,
            "object_id": object_id,
            "before": as_json(before),
            "after": as_json(after),
            "previous_hash": previous,
        }
        hashed = hash_entry(tenant_id, AuditEntry(**content, hash=""))
        actor = content.pop("actor")
        self._connection.execute(
            schema.audit.insert().values(
                tenant_id=tenant_id,
                actor_kind=actor.kind,
                actor_id=actor.id,
                actor_name=actor.name,
                actor_address=actor.address,
                hash=hashed,
                **content,
            )
        )
        self._connection.execute(
            tenants.update()
            .where(tenants.c.id == tenant_id)
            .values(audit_number=number + 1, audit_hash=hashed)
        )
        return AuditEntry(**content, actor=actor, hash=hashed)

    def announce(self, kind: ChangeKind, object_id: str) -> int:
        """Announce to all readers that this object changed; returns the change's number.

        Call it last: the counter is locked from here to the end of the transaction, so that numbers
        appear in the order in which they were given, and a reader misses none.
        """
        counters = schema.counters
        mine = counters.c.name == "changes"
        self._connection.execute(counters.update().where(mine).values(value=counters.c.value + 1))
        number: int = self._connection.execute(sa.select(counters.c.value).where(mine)).scalar_one()
        self._connection.execute(
            schema.changes.insert().values(
                number=number,
                at=self.now,
                tenant_id=self.tenant_id or schema.SYSTEM_TENANT,
                kind=kind,
                object_id=object_id,
            )
        )
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(sa.select(sa.func.pg_notify(CHANNEL, str(number))))
        return number


class Repository:
    """One kind of records, of one tenant or of none, for one actor.

    Its methods are marked `reads` or `writes`: each call is one transaction.
    """

    def __init__(
        self, database: Database, clock: Clock, *, tenant_id: str | None, actor: Actor
    ) -> None:
        self._database = database
        self._clock = clock
        self._tenant_id = tenant_id
        self._actor = actor

    def _begin(self, connection: Connection, write: bool) -> Transaction:
        transaction = Transaction(
            connection,
            tenant_id=self._tenant_id,
            actor=self._actor,
            now=self._clock(),
            shares=self._database.shares,
            limits=self._database.limits,
        )
        if write and self._tenant_id is not None:
            transaction.lock()
        return transaction


class RuledRepository(Repository):
    """One of a tenant, under the rules about codes, keys and devices."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        tenant_id: str,
        actor: Actor,
        rules: PairingRules,
    ) -> None:
        super().__init__(database, clock, tenant_id=tenant_id, actor=actor)
        self._rules = rules


def reads(
    method: Callable[Concatenate[R, Transaction, P], T],
) -> Callable[Concatenate[R, P], Coroutine[Any, Any, T]]:
    """Turn a method that takes a transaction into an async one that makes the transaction
    itself."""
    return _in_transaction(method, write=False)


def writes(
    method: Callable[Concatenate[R, Transaction, P], T],
) -> Callable[Concatenate[R, P], Coroutine[Any, Any, T]]:
    """Like `reads`, with a transaction that may write."""
    return _in_transaction(method, write=True)


def _in_transaction(
    method: Callable[Concatenate[R, Transaction, P], T], *, write: bool
) -> Callable[Concatenate[R, P], Coroutine[Any, Any, T]]:
    async def call(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def work(connection: Connection) -> T:
            return method(self, self._begin(connection, write), *args, **kwargs)

        return await self._database.run(work, write=write)

    functools.update_wrapper(call, method)
    return call


def as_json(content: dict[str, Any] | None) -> str:
    """The JSON of an object in the audit; an empty text for None."""
    if content is None:
        return ""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    )


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return format_time(value)
    raise TypeError(f"a {type(value).__name__} cannot be written into the audit")
