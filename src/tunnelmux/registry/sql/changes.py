"""The changes in SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
import trio

from tunnelmux.registry.changes import Change, Changes, ChangeWatch, Effect, Effects
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.transaction import Repository, Transaction, reads
from tunnelmux.registry.sql.watch import open_watch

__all__ = ["KEPT", "PROXY_SILENCE", "SqlChanges", "is_living"]

KEPT = timedelta(hours=1)
"""How long a change is kept. A reader that was away for longer reads everything again."""

PROXY_SILENCE = timedelta(seconds=15)
"""A proxy that has not written for this long counts as gone: three of its beats."""

_LOOK = 0.05
# Seconds between two checks of what the proxies have confirmed, while a caller waits for it.

_C = schema.changes
_E = schema.change_effects
_P = schema.proxies


class SqlChanges(Repository, Changes):
    """See `Changes`."""

    @reads
    def latest(self, tx: Transaction) -> int:
        return tx.last_change()

    @reads
    def after(self, tx: Transaction, number: int, *, limit: int = 500) -> list[Change] | None:
        rows = tx.execute(
            sa.select(_C).where(_C.c.number > number).order_by(_C.c.number).limit(limit)
        ).all()
        if rows and rows[0].number != number + 1:
            return None
        # Too low: deleted meanwhile. Too high: the database was restored from a backup.
        if not rows and tx.last_change() != number:
            return None
        return [
            Change(
                number=row.number,
                at=row.at,
                tenant_id=row.tenant_id,
                kind=row.kind,
                object_id=row.object_id,
            )
            for row in rows
        ]

    def watch(self) -> AbstractAsyncContextManager[ChangeWatch]:
        return self._watch()

    @asynccontextmanager
    async def _watch(self) -> AsyncIterator[ChangeWatch]:
        async with open_watch(self._database) as watch:
            yield watch

    async def effects(self, number: int, *, within: float = 2.0) -> Effects:
        until = trio.current_time() + within
        found = await self._effects(number)
        while found.missing and trio.current_time() < until:
            await trio.sleep(_LOOK)
            found = await self._effects(number)
        return found

    @reads
    def _effects(self, tx: Transaction, number: int) -> Effects:
        proxies = tx.execute(sa.select(_P)).all()
        names = {proxy.id: proxy.name for proxy in proxies}
        done: list[Effect] = [
            Effect(
                proxy_id=row.proxy_id,
                proxy_name=names.get(row.proxy_id, row.proxy_id),
                sessions=row.sessions,
                visits=row.visits,
            )
            for row in tx.execute(sa.select(_E).where(_E.c.number == number))
        ]
        missing = [
            proxy.name for proxy in proxies if is_living(proxy, tx) and proxy.applied < number
        ]
        return Effects(done=done, missing=sorted(missing))


def is_living(proxy: sa.Row[Any], tx: Transaction) -> bool:
    """Whether a proxy has written recently enough."""
    return bool(proxy.working) and proxy.beat > tx.now - PROXY_SILENCE
