"""Lists in pages, with a cursor that names the last record of the previous page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.registry.ids import MAX_PAGE, Page, decode_cursor, encode_cursor
from tunnelmux.registry.sql.transaction import Transaction

__all__ = ["ascending", "descending"]

T = TypeVar("T")


def ascending(
    transaction: Transaction,
    query: sa.Select[Any],
    column: sa.Column[Any],
    build: Callable[[Row[Any]], T],
    *,
    limit: int,
    after: str | None,
) -> Page[T]:
    """A page sorted by this column, which must be unique in the query, the smallest first."""
    if after is not None:
        query = query.where(column > _key(after, column))
    return _page(transaction, query.order_by(column), column, build, limit)


def descending(
    transaction: Transaction,
    query: sa.Select[Any],
    column: sa.Column[Any],
    build: Callable[[Row[Any]], T],
    *,
    limit: int,
    after: str | None,
) -> Page[T]:
    """Like `ascending`, but the largest first: for ids, the newest."""
    if after is not None:
        query = query.where(column < _key(after, column))
    return _page(transaction, query.order_by(column.desc()), column, build, limit)


def _page(
    transaction: Transaction,
    query: sa.Select[Any],
    column: sa.Column[Any],
    build: Callable[[Row[Any]], T],
    limit: int,
) -> Page[T]:
    limit = max(1, min(limit, MAX_PAGE))
    rows = transaction.execute(query.limit(limit + 1)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    cursor = encode_cursor(rows[-1]._mapping[column]) if more else None  # noqa: SLF001 - its name
    return Page(items=[build(row) for row in rows], next=cursor)


def _key(cursor: str, column: sa.Column[Any]) -> str | int:
    kind = int if isinstance(column.type, sa.Integer) else str
    (key,) = decode_cursor(cursor, kind)
    return key
