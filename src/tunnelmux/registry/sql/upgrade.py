"""Finds the version of the database, and upgrades it to the version that this program needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import sqlalchemy as sa
import trio
from sqlalchemy.engine import Connection

from tunnelmux.config import Secret
from tunnelmux.errors import RegistryFailed
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.database import Database

__all__ = ["REVISIONS", "prepare", "upgrade_database"]

REVISIONS = tuple(f"{number:04}" for number in range(1, 15))
"""The migrations, the first to the last. Known without Alembic, which takes longer to import than
all the rest of a proxy; a test compares."""

_MIGRATIONS = Path(__file__).with_name("migrations")

_LOCK = 7_212_050
# The number of PostgreSQL's advisory lock for upgrades: one process at a time.


def upgrade_database(url: Secret, *, timeout: float = 60.0) -> str:
    """Create the tables, or upgrade them to this program's version. Returns the version before
    that, empty for a database without tables.

    All of it is one transaction. Raises ConfigError, RegistryFailed for a database of a newer
    version, RegistryAway.
    """
    database = Database(url, connections=1, timeout=timeout)
    try:
        before = database.run_here(_version, write=False)
        if before != REVISIONS[-1]:
            _check_known(before, database)
            database.run_here(_upgrade, write=True)
        return before or ""
    finally:
        database.close()


async def prepare(database: Database, *, migrate: bool) -> None:
    """Make sure that the database has this program's version; see `open_registry`."""
    version = await database.run(_version, write=False)
    if version == REVISIONS[-1]:
        return
    _check_known(version, database)
    if not migrate:
        state = "is empty" if version is None else f"has version {version}"
        raise RegistryFailed(
            f"the registry at {database.place} {state}, and this program needs version "
            f"{REVISIONS[-1]}: run `tunnelmux-api db upgrade` with the same registry.url"
        )
    # No deadline: it is done completely or not at all.
    await trio.to_thread.run_sync(partial(database.run_here, _upgrade, write=True))


def _check_known(version: str | None, database: Database) -> None:
    if version is not None and version not in REVISIONS:
        raise RegistryFailed(
            f"the registry at {database.place} has version {version}, which is newer than this "
            f"program ({REVISIONS[-1]}): use the newer tunnelmux with it; nothing was changed"
        )


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(
        sa.select(sa.column("version_num")).select_from(sa.table("alembic_version"))
    ).scalar()
    return version


def _upgrade(connection: Connection) -> None:
    # Alembic is imported only when there is something to upgrade.
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    settings = Config()
    settings.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    settings.attributes["metadata"] = schema.metadata
    command.upgrade(settings, "head")
