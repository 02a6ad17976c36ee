"""A registry on each of the two databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from support.postgresql import PostgreSQL, run_postgresql
from support.registries import ANN, OpenRegistry, Templates, WallClock, add_tenant
from tunnelmux.config import Secret
from tunnelmux.registry import PairingRules, RecordLimits, Registry, TenantRegistry
from tunnelmux.registry.sql import open_sql_registry


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with run_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp("templates"))


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which database."""
    return str(request.param)


@pytest.fixture
def database_url(
    kind: str, templates: Templates, request: pytest.FixtureRequest, tmp_path: Path
) -> str:
    """The URL of a database that has its tables."""
    if kind == "sqlite":
        return templates.sqlite(tmp_path)
    return templates.postgresql(request.getfixturevalue("postgresql"))


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def open_registry(database_url: str, clock: WallClock) -> OpenRegistry:
    """Opens the registry, again and again if a test wants: `async with open_registry() as …`."""

    def open_it(
        *,
        rules: PairingRules | None = None,
        limits: RecordLimits | None = None,
        timeout: float = 5.0,
    ) -> AbstractAsyncContextManager[Registry]:
        return open_sql_registry(
            Secret(database_url),
            migrate=False,
            rules=rules or PairingRules(),
            limits=limits,
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
    return await add_tenant(registry, "acme")


@pytest.fixture
async def other(registry: Registry) -> TenantRegistry:
    return await add_tenant(registry, "other")


@pytest.fixture
async def default(registry: Registry) -> TenantRegistry:
    tenant = await registry.installation(ANN).tenants.find_named("default")
    return registry.tenant(tenant.id, by=ANN)
