"""LISTEN on PostgreSQL, without a thread while nothing happens."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import psycopg
import trio

from tunnelmux.observability import get_logger
from tunnelmux.registry.sql.database import CONNECT_TIMEOUT, Database
from tunnelmux.registry.sql.transaction import CHANNEL
from tunnelmux.registry.sql.watch import Signal

__all__ = ["follow_postgresql"]

_log = get_logger("registry")

_LOOK = 1.0
# Seconds between two checks that the connection still works.

_RETRY = 0.5


async def follow_postgresql(database: Database, signal: Signal) -> None:
    """Set the signal whenever a change is announced, and after each time without a connection."""
    parameters = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    # A limiter of its own: while the server is frozen, its threads hang until the timeout.
    threads = trio.CapacityLimiter(2)
    while True:  # until the block that watches ends
        opening = _Opening(parameters)
        try:
            connection = await trio.to_thread.run_sync(
                opening.connect, limiter=threads, abandon_on_cancel=True
            )
            signal.set()
            while True:
                with trio.move_on_after(_LOOK):
                    await trio.lowlevel.wait_readable(connection.fileno())
                # What has arrived is read here, on the Trio thread: it does not wait.
                for _ in connection.notifies(timeout=0):
                    signal.set()
        except (psycopg.Error, OSError) as error:
            _log.debug("cannot listen for changes", cause=str(error).split("\n", 1)[0])
            signal.set()
            await trio.sleep(_RETRY)
        finally:
            opening.close()


class _Opening:
    """A connection that is being made in a thread; if the caller stops waiting, it is closed
    there."""

    def __init__(self, parameters: str) -> None:
        self._connect = partial(
            psycopg.connect,
            parameters,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="tunnelmux changes",
        )
        self._connection: psycopg.Connection | None = None
        self._is_over = False

    def connect(self) -> psycopg.Connection:
        self._connection = connection = self._connect()
        try:
            connection.execute(f"LISTEN {CHANNEL}")
        finally:
            if self._is_over:
                connection.close()
        return connection

    def close(self) -> None:
        self._is_over = True
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
