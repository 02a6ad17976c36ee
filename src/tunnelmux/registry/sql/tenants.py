"""Tenants in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import names
from tunnelmux.registry.audit import FIRST_HASH
from tunnelmux.registry.ids import Page, new_id
from tunnelmux.registry.sql import paging, schema
from tunnelmux.registry.sql.membership import set_member
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads, writes
from tunnelmux.registry.tenants import Tenant, Tenants

__all__ = ["SqlTenants", "find_tenant"]

_T = schema.tenants


class SqlTenants(Repository, Tenants):
    """See `Tenants`."""

    @writes
    def add(
        self, tx: Transaction, name: str, *, display_name: str = "", owner: str | None = None
    ) -> Tenant:
        names.check_tenant_name(name)
        display_name = names.check_text("display_name", display_name, 255)
        labels = schema.host_labels
        if tx.execute(sa.select(labels.c.label).where(labels.c.label == name)).first():
            raise RegistryRefused(
                f'"{name}" is taken: a tenant has it, or a device of the tenant '
                f'"{names.DEFAULT_TENANT}", whose host names would be the same',
                code="taken",
                field="name",
            )
        tenant_id = new_id()
        tx.execute(
            _T.insert().values(
                id=tenant_id,
                name=name,
                display_name=display_name,
                created=tx.now,
                audit_number=0,
                audit_hash=FIRST_HASH,
            )
        )
        tx.execute(labels.insert().values(label=name, tenant_id=tenant_id))
        content = {"name": name, "display_name": display_name}
        tx.record("tenant.add", "tenant", tenant_id, after=content)
        inner = tx.within(tenant_id)
        inner.record("tenant.add", "tenant", tenant_id, after=content)
        if owner is not None:
            set_member(inner, owner, "owner", "grant", None)
        tx.announce("tenant", tenant_id)
        return find_tenant(tx, tenant_id)

    @reads
    def find(self, tx: Transaction, tenant_id: str) -> Tenant:
        return find_tenant(tx, tenant_id)

    @reads
    def find_named(self, tx: Transaction, name: str) -> Tenant:
        row = tx.execute(
            sa.select(_T).where(_T.c.name == name, _T.c.id != schema.SYSTEM_TENANT)
        ).first()
        if row is None:
            raise NoSuchRecord("tenant", name)
        return _tenant(row)

    @reads
    def page(self, tx: Transaction, *, limit: int = 50, after: str | None = None) -> Page[Tenant]:
        query = sa.select(_T).where(_T.c.id != schema.SYSTEM_TENANT)
        return paging.ascending(tx, query, _T.c.name, _tenant, limit=limit, after=after)

    @writes
    def change(
        self,
        tx: Transaction,
        tenant_id: str,
        *,
        display_name: str | None = None,
        enabled: bool | None = None,
    ) -> Tenant:
        find_tenant(tx, tenant_id)
        tx.lock_installation()
        inner = tx.within(tenant_id)
        before = find_tenant(tx, tenant_id)
        if enabled is False and before.name == names.DEFAULT_TENANT:
            raise RegistryRefused(
                f'the tenant "{names.DEFAULT_TENANT}" stays enabled: its owners run the '
                "installation",
                code="default_tenant",
                field="enabled",
            )
        values: dict[str, Any] = {}
        if display_name is not None:
            values["display_name"] = names.check_text("display_name", display_name, 255)
        if enabled is not None:
            values["enabled"] = enabled
        changed = {key: value for key, value in values.items() if getattr(before, key) != value}
        if not changed:
            return before
        inner.execute(_T.update().where(_T.c.id == tenant_id).values(**changed))
        was = {key: getattr(before, key) for key in changed}
        for trail in (tx, inner):
            trail.record("tenant.change", "tenant", tenant_id, before=was, after=changed)
        inner.announce("tenant", tenant_id)
        return find_tenant(tx, tenant_id)


def find_tenant(tx: Transaction, tenant_id: str) -> Tenant:
    """The tenant of this id; raises NoSuchRecord."""
    row = tx.execute(
        sa.select(_T).where(_T.c.id == tenant_id, _T.c.id != schema.SYSTEM_TENANT)
    ).first()
    if row is None:
        raise NoSuchRecord("tenant", tenant_id)
    return _tenant(row)


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        id=row.id,
        name=row.name,
        display_name=row.display_name,
        enabled=row.enabled,
        created=row.created,
    )
