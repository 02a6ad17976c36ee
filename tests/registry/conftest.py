"""A registry on each of the two databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.postgresql import PostgreSQL, run_postgresql
from tunnelmux.config import Secret
from tunnelmux.registry import Actor, PairingRules, Registry, TenantRegistry
from tunnelmux.registry.sql import open_sql_registry

ANN = Actor(kind="user", id="ann", name="Ann", address="192.0.2.1")


class WallClock:
    """A clock that a test moves. Times in the past would end browser sessions at once."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


OpenRegistry = Callable[..., AbstractAsyncContextManager[Registry]]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with run_postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def open_registry(database_url: str, clock: WallClock) -> OpenRegistry:
    """Opens the registry, again and again if a test wants: `async with open_registry() as …`."""

    def open_it(
        *, rules: PairingRules | None = None, timeout: float = 5.0
    ) -> AbstractAsyncContextManager[Registry]:
        return open_sql_registry(
            Secret(database_url),
            migrate=True,
            rules=rules or PairingRules(),
            connections=4,
            timeout=timeout,
            clock=clock,
        )

    return open_it


@pytest.fixture
async def registry(open_registry: OpenRegistry) -> AsyncIterator[Registry]:
    async with open_registry() as opened:
        yield opened


@pytest.fixture
async def acme(registry: Registry) -> TenantRegistry:
    tenant = await registry.installation(ANN).tenants.add("acme")
    return registry.tenant(tenant.id, by=ANN)


@pytest.fixture
async def other(registry: Registry) -> TenantRegistry:
    tenant = await registry.installation(ANN).tenants.add("other")
    return registry.tenant(tenant.id, by=ANN)


@pytest.fixture
async def default(registry: Registry) -> TenantRegistry:
    tenant = await registry.installation(ANN).tenants.find_named("default")
    return registry.tenant(tenant.id, by=ANN)
