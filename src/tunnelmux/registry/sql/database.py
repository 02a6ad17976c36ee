"""One database, for Trio: each transaction runs in a thread, bounded in number and in time."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection

from tunnelmux.config import Secret
from tunnelmux.errors import ConfigError, RegistryAway, RegistryError, RegistryFailed
from tunnelmux.registry.record_limits import RecordLimits
from tunnelmux.registry.sql.problems import is_worth_another_try, translate
from tunnelmux.registry.sql.shares import DailyShares

__all__ = ["CONNECT_TIMEOUT", "Database", "parse_url"]

T = TypeVar("T")

_TRIES = 3
# Attempts at a transaction that PostgreSQL gives up in favour of another (40001, 40P01).

_CANCEL_TIME = 0.5
# Seconds that PostgreSQL gets to cancel a late statement, before the connection is cut.

CONNECT_TIMEOUT = 3
"""Seconds for a new connection to PostgreSQL; libpq knows no less than 2."""


class _Call:
    """One transaction under way: its connection, and whether its time is over."""

    __slots__ = ("connection", "is_late")

    def __init__(self) -> None:
        self.connection: DBAPIConnection | None = None
        self.is_late = False


class Database:
    """The engine, its threads and its connections.

    There are as many turns as connections, so that no thread ever waits for a connection. Waiting
    for a turn can be cancelled. A transaction that has begun is shielded: it commits, or is rolled
    back, within its timeout, and its thread always ends.
    """

    def __init__(
        self,
        url: Secret,
        *,
        connections: int,
        timeout: float,
        limits: RecordLimits | None = None,
    ) -> None:
        parsed = parse_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.url = parsed
        shown = parsed.set(drivername="postgresql").render_as_string()
        self.place = parsed.database or "" if self.is_sqlite else shown
        """The name of the database for messages and logs, without a password."""
        self.timeout = timeout
        self.failures = {"away": 0, "failed": 0}
        """How many calls of `run` have failed in these ways."""
        self.limits = limits or RecordLimits()
        """How many records there may be."""
        self.shares = DailyShares(self.limits)
        """What persons, devices and tenants have written into the audit today."""
        self._calls = threading.local()
        self._is_closed = False
        if self.is_sqlite:
            self.engine = self._sqlite_engine(parsed, connections, timeout)
        else:
            self.engine = self._postgresql_engine(parsed, connections, timeout)
        self._cover_pings()
        self._threads = trio.CapacityLimiter(2 * connections + 2)
        self._reading = trio.CapacityLimiter(connections)
        # SQLite has one writer at a time; the writers of this process wait here, in order.
        self._writing = trio.CapacityLimiter(1) if self.is_sqlite else self._reading

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        """Call `work` within one transaction, in a thread, and return its result.

        Raises RegistryAway and RegistryFailed for errors of the database, and any error of `work`;
        the transaction is then rolled back.
        """
        turns = self._writing if write else self._reading
        await turns.acquire()
        try:
            with trio.CancelScope(shield=True):  # bounded by `timeout` and what _end_late takes
                answer = await self._run(work, write)
        finally:
            turns.release()
            if self._is_closed:
                self.engine.pool.dispose()
        return answer

    async def _run(self, work: Callable[[Connection], T], write: bool) -> T:
        call = _Call()
        answer: list[T] = []
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_late, call)
            try:
                answer.append(
                    await trio.to_thread.run_sync(
                        self.run_here, work, write, call, limiter=self._threads
                    )
                )
            except (RegistryError, ConfigError) as error:
                problem = error  # kept from the nursery, which would wrap it in a group
            except Exception as error:  # noqa: BLE001 - a mistake of ours; raised again below
                problem = error
            nursery.cancel_scope.cancel()
        if problem is not None:
            if isinstance(problem, RegistryAway):
                self.failures["away"] += 1
            elif isinstance(problem, RegistryFailed):
                self.failures["failed"] += 1
            raise problem
        return answer[0]

    def run_here(
        self, work: Callable[[Connection], T], write: bool, call: _Call | None = None
    ) -> T:
        """Like `run`, in this thread, without a deadline."""
        self._calls.now = call
        for attempt in range(1, _TRIES + 1):
            try:
                return self._transact(work, write, call)
            except sa.exc.DBAPIError as error:
                if attempt == _TRIES or not is_worth_another_try(error):
                    raise translate(error, self.place, self.timeout) from error
            except sa.exc.SQLAlchemyError as error:
                raise translate(error, self.place, self.timeout) from error
            finally:
                if call is not None:
                    call.connection = None
        raise AssertionError  # the last try has returned or raised

    def _transact(self, work: Callable[[Connection], T], write: bool, call: _Call | None) -> T:
        with self.engine.connect().execution_options(tunnelmux_write=write) as connection:
            if call is not None:
                call.connection = connection.connection.dbapi_connection
            with connection.begin():
                return work(connection)

    async def _end_late(self, call: _Call) -> None:
        """End a call whose time is over."""
        await trio.sleep(self.timeout)
        call.is_late = True
        connection: Any = call.connection
        if connection is None:
            return  # it is connecting, which has a timeout of its own
        if self.is_sqlite:
            connection.interrupt()
            return
        with contextlib.suppress(Exception):  # a frozen server does not answer this either
            await trio.to_thread.run_sync(
                lambda: connection.cancel_safe(timeout=_CANCEL_TIME),
                limiter=trio.CapacityLimiter(1),
            )
        await trio.sleep(_CANCEL_TIME)
        # A frozen server answers nothing, and no timeout of libpq ends that wait. The descriptor is
        # duplicated: closing the driver's own would free its number while the driver still uses it.
        if call.connection is not None and not connection.closed:
            cut = socket.socket(fileno=os.dup(connection.fileno()))
            with contextlib.suppress(OSError):
                cut.shutdown(socket.SHUT_RDWR)
            cut.close()

    def close(self) -> None:
        """Close all connections; those in use, when their calls end. Callers that are cancelled
        with the owner of this may still be in a transaction."""
        self._is_closed = True
        # Not the engine's dispose: it would leave connections in use to the garbage collector.
        self.engine.pool.dispose()

    # -- engines ------------------------------------------------------------------------------

    def _sqlite_engine(self, url: sa.URL, connections: int, timeout: float) -> Engine:
        # A short code could be found from its SHA-256, so the file is for its owner and group only,
        # and SQLite gives the files beside it the same mode. For an error here, SQLite's own
        # message, which follows, is better.
        with contextlib.suppress(OSError):
            os.close(os.open(self.place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o660))
        engine = sa.create_engine(
            url,
            pool_size=connections + 1,
            max_overflow=0,
            pool_timeout=timeout,
            poolclass=sa.pool.QueuePool,
            connect_args={"timeout": timeout, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None  # the driver must not begin transactions itself
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=NORMAL")
            # Set only if it differs, so that a read-only database can still be read.
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            if mode != "wal":
                connection.execute("PRAGMA journal_mode=WAL")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # A transaction that reads first and writes later fails at once, despite the timeout,
            # when another process has written in between (SQLITE_BUSY_SNAPSHOT).
            write = connection.get_execution_options().get("tunnelmux_write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _postgresql_engine(self, url: sa.URL, connections: int, timeout: float) -> Engine:
        milliseconds = int(timeout * 1000)
        options = (
            f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} "
            f"-c idle_in_transaction_session_timeout={2 * milliseconds} -c timezone=UTC"
        )
        engine = sa.create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=timeout,
            pool_pre_ping=True,
            pool_recycle=1800,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT,
                "options": options,
                "application_name": "tunnelmux",
                "keepalives_idle": 10,
                "keepalives_interval": 3,
                "keepalives_count": 3,
            },
        )

        @event.listens_for(engine, "do_connect")
        def refuse_when_late(*_: object) -> None:
            call: _Call | None = getattr(self._calls, "now", None)
            if call is not None and call.is_late:
                # The ping took so long to find the connection dead that the call's time is over.
                raise RegistryAway(f"the registry at {self.place} does not answer")

        return engine

    def _cover_pings(self) -> None:
        """Make a call's deadline hold for the pool's ping too, which comes before the
        connection."""
        dialect = self.engine.dialect
        ping = dialect.do_ping

        def do_ping(connection: DBAPIConnection) -> bool:
            call: _Call | None = getattr(self._calls, "now", None)
            if call is not None:
                call.connection = connection
            return ping(connection)

        dialect.do_ping = do_ping  # type: ignore[method-assign, assignment]


def parse_url(url: Secret) -> sa.URL:
    """The URL as SQLAlchemy's; raises ConfigError, without showing a password."""
    example = "sqlite:////var/lib/tunnelmux/registry.db or postgresql://tunnelmux@db.example.com/tunnelmux"
    try:
        parsed = sa.make_url(url.reveal())
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(f"registry.url is not a URL: write it as {example}") from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        if importlib.util.find_spec("psycopg") is None:
            raise ConfigError(
                "registry.url: PostgreSQL needs a library that is not installed: "
                'in a clone of tunnelmux, pip install ".[postgresql]"'
            )
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "sqlite":
        raise ConfigError(
            f'registry.url: the database "{parsed.drivername}" is not supported: write the URL as '
            f"{example}"
        )
    if not parsed.database or not os.path.isabs(parsed.database):  # noqa: PTH117 - text of a URL
        raise ConfigError(
            "registry.url: SQLite needs the absolute path of a file, after four slashes: "
            "sqlite:////var/lib/tunnelmux/registry.db"
        )
    return parsed
