"""Lists in pages, with a cursor that names the last record of the previous page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Row

from tunnelmux.registry.ids import MAX_PAGE, Page, decode_cursor, encode_cursor
from tunnelmux.registry.sql.transaction import Transaction

__all__ = ["as_many_as_allowed", "ascending", "descending"]

T = TypeVar("T")

_HEAVIEST = 1024 * 1024
# Characters of one page's large columns. A record may have some 200,000 in them: 200 such records,
# asked for by a few callers at once, would fill the memory of the API.


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
    large: Sequence[sa.Column[Any]] = (),
) -> Page[T]:
    """Like `ascending`, but the largest first: for ids, the newest. `large` are columns that can be
    so large that a page of them has fewer records."""
    if after is not None:
        query = query.where(column < _key(after, column))
    query = query.order_by(column.desc())
    if large:
        limit = as_many_as_allowed(transaction, query, large, max(1, min(limit, MAX_PAGE)))
    return _page(transaction, query, column, build, limit)


def as_many_as_allowed(
    transaction: Transaction,
    query: sa.Select[Any],
    large: Sequence[sa.Column[Any]],
    limit: int,
) -> int:
    """How many of the first `limit` records are not too much to be read at once: at least one."""
    weights = [sa.func.length(sa.cast(column, sa.Text)).label(column.name) for column in large]
    left = _HEAVIEST
    for number, row in enumerate(
        transaction.execute(query.with_only_columns(*weights).limit(limit))
    ):
        left -= sum(row)
        if left < 0:
            return max(1, number)
    return limit


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
