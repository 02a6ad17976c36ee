"""Notices changes of the database: by data_version on SQLite, by NOTIFY on PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from tunnelmux.observability import get_logger
from tunnelmux.registry.changes import ChangeWatch
from tunnelmux.registry.sql.database import Database

__all__ = ["Signal", "open_watch"]

_log = get_logger("registry")

_SQLITE_LOOK = 0.25
# Seconds between two reads of data_version, which cost 5 µs each.

_LONGEST = 1.0
# Seconds after which a reader looks at the table without a notification: one can be lost with its
# connection, and that may go unnoticed for a while.

_RETRY = 0.5


class Signal(ChangeWatch):
    """Remembers whether it was set since the last wait; several times count as one."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        with trio.move_on_after(self._longest):
            await self._event.wait()
        self._event = trio.Event()


@asynccontextmanager
async def open_watch(database: Database) -> AsyncIterator[ChangeWatch]:
    """Watch the database, with a connection of its own, for the length of the block."""
    signal = Signal(_LONGEST)
    follow = _follow_sqlite
    if not database.is_sqlite:
        # Not at the top: an installation on SQLite has no psycopg.
        from tunnelmux.registry.sql.listen import follow_postgresql as follow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, database, signal)
        yield signal
        nursery.cancel_scope.cancel()


async def _follow_sqlite(database: Database, signal: Signal) -> None:
    threads = trio.CapacityLimiter(1)
    while True:  # until the block that watches ends
        connection: sqlite3.Connection | None = None
        try:
            connection = await trio.to_thread.run_sync(
                partial(sqlite3.connect, database.place, check_same_thread=False), limiter=threads
            )
            seen = None
            while True:
                # The same connection each time, with no transaction open: its data_version changes
                # with every write of another connection, also one of this process.
                version = await trio.to_thread.run_sync(_version, connection, limiter=threads)
                if version != seen:
                    seen = version
                    signal.set()
                await trio.sleep(_SQLITE_LOOK)
        except sqlite3.Error as error:
            _log.debug("cannot look for changes", cause=str(error))
            signal.set()
            await trio.sleep(_RETRY)
        finally:
            if connection is not None:
                connection.close()


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
