"""The second protection between tenants: no statement reaches the database without its tenant.

The first protection is that the tenant is part of the object that makes the statements. This one
checks the finished statement: for each table that belongs to tenants, `tenant_id = <this tenant>`
must be among the conditions that all have to be true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList
from sqlalchemy.sql.selectable import Join, Select

__all__ = ["WithoutTenant", "check_tenant"]


class WithoutTenant(AssertionError):
    """A bug in tunnelmux: a statement would have touched rows of any tenant."""


Rows = Sequence[Mapping[str, object]] | None


def check_tenant(statement: sa.Executable, tenant_id: str, rows: Rows = None) -> None:
    """Raise WithoutTenant unless the statement can only touch rows of this tenant.

    `rows` are the parameters of an INSERT of many rows.
    """
    if isinstance(statement, sa.TextClause):
        raise WithoutTenant("plain SQL text in a tenant's transaction")
    for part in visitors.iterate(cast(visitors.ExternallyTraversible, statement)):
        if isinstance(part, Select):
            froms = part.get_final_froms()
            tables = [table for source in froms for table in _tables(source)]
            held = set(_held(part.whereclause, tenant_id))
            for source in froms:
                held |= set(_held_by_joins(source, tenant_id))
        elif isinstance(part, Update | Delete):
            tables = [*_tables(part.table)]
            held = set(_held(part.whereclause, tenant_id))
        elif isinstance(part, Insert):
            tables = [*_tables(part.table)]
            held = {part.table} if _inserts_into(part, tenant_id, rows) else set()
        else:
            continue
        loose = [table.name for table in tables if table not in held]
        if loose:
            raise WithoutTenant(f"a statement on {', '.join(loose)} does not name its tenant")


def _tables(source: object) -> Iterator[sa.Table]:
    """The tables of a FROM that belong to tenants. A subquery is checked separately."""
    if isinstance(source, sa.Table):
        if _tenant_column(source) is not None:
            yield source
    elif isinstance(source, Join):
        yield from _tables(source.left)
        yield from _tables(source.right)
    elif isinstance(source, sa.Alias):
        raise WithoutTenant("an alias hides the table: write the query without one")


def _tenant_column(table: sa.Table) -> sa.Column[str] | None:
    return table.c.get("id") if table.name == "tenants" else table.c.get("tenant_id")


def _held(condition: object, tenant_id: str) -> Iterator[sa.FromClause]:
    """The tables that a condition limits to this tenant in any case."""
    if isinstance(condition, BooleanClauseList):
        if condition.operator is operators.and_:
            for clause in condition.clauses:
                yield from _held(clause, tenant_id)
    elif (
        isinstance(condition, BinaryExpression)
        and condition.operator is operators.eq
        and isinstance(condition.left, sa.Column)
        and isinstance(condition.right, BindParameter)
        and condition.right.value == tenant_id
    ):
        table = condition.left.table
        if condition.left is _tenant_column(table):
            yield table


def _held_by_joins(source: object, tenant_id: str) -> Iterator[sa.FromClause]:
    if isinstance(source, Join):
        # The condition of an outer join limits its right side only.
        held = _held(source.onclause, tenant_id)
        if not source.full:
            yield from (table for table in held if not source.isouter or table is source.right)
        yield from _held_by_joins(source.left, tenant_id)
        yield from _held_by_joins(source.right, tenant_id)


def _inserts_into(insert: Insert, tenant_id: str, rows: Rows) -> bool:
    if insert.table.name == "tenants" or insert._multi_values:  # noqa: SLF001 - no other way to ask
        return False
    if rows is not None:
        return all(row.get("tenant_id") == tenant_id for row in rows)
    values = cast(Mapping[object, object], insert._values or {})  # noqa: SLF001
    # The keys are names, or columns.
    given = values.get("tenant_id", values.get(insert.table.c.tenant_id))
    return isinstance(given, BindParameter) and given.value == tenant_id
