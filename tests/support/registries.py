"""What tests of the registry share: who acts, a clock that a test moves, prepared databases."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from support.postgresql import PostgreSQL
from tunnelmux.config import Secret
from tunnelmux.registry import Actor, Lease, LeaseTerms, Registry, TenantRegistry
from tunnelmux.registry.sql import schema, upgrade_database

__all__ = ["ANN", "OpenRegistry", "Templates", "WallClock", "add_lease", "add_tenant"]

ANN = Actor(kind="user", id="ann", name="Ann", address="192.0.2.1")

OpenRegistry = Callable[..., AbstractAsyncContextManager[Registry]]


async def add_tenant(registry: Registry, name: str, *, by: Actor = ANN) -> TenantRegistry:
    """A new tenant, as `by` sees it."""
    tenant = await registry.installation(ANN).tenants.add(name)
    return registry.tenant(tenant.id, by=by)


class WallClock:
    """A clock that a test moves. It begins now: what the tests' other parts write is not old."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


async def add_lease(
    tenant: TenantRegistry, clock: WallClock, *, approved: bool = False, max_uses: int | None = None
) -> Lease:
    """A lease of an hour for a new device cam1."""
    device, _ = await tenant.devices.add("cam1")
    terms = LeaseTerms(
        device_id=device.id,
        services=("ssh",),
        holder="bob",
        reason="ticket 7",
        starts=clock.now,
        ends=clock.now + timedelta(hours=1),
        max_uses=max_uses,
    )
    lease, _ = await tenant.leases.add(terms, approved=approved)
    return lease


class Templates:
    """Databases with their tables and nothing else, for test after test.

    Making the tables takes longer than most tests: SQLite's file is copied, PostgreSQL's database
    emptied.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "template.db"
        self._database: str | None = None

    def sqlite(self, folder: Path) -> str:
        if not self._file.exists():
            upgrade_database(Secret(f"sqlite:///{self._file}"))
        copy = folder / "registry.db"
        shutil.copy(self._file, copy)
        return f"sqlite:///{copy}"

    def postgresql(self, server: PostgreSQL) -> str:
        if self._database is None:
            self._database = server.new_database()
            upgrade_database(Secret(self._database))
            for table in _WITH_ROWS:
                keep = f"CREATE TABLE first_{table} AS TABLE {table}"
                server.execute(self._database, keep)
        else:
            names = ", ".join(schema.metadata.tables)
            server.execute(self._database, f"TRUNCATE {names}")
            for table in _WITH_ROWS:
                server.execute(self._database, f"INSERT INTO {table} TABLE first_{table}")
        return self._database


_WITH_ROWS = ("tenants", "host_labels", "counters")
