"""Versions of the database: made, upgraded, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from support.postgresql import PostgreSQL
from tunnelmux.config import Secret
from tunnelmux.errors import ConfigError, RegistryFailed
from tunnelmux.registry import open_registry
from tunnelmux.registry.sql import schema, upgrade, upgrade_database
from tunnelmux.registry.sql.database import Database, parse_url


@pytest.fixture
def empty_url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


def set_version(url: str, version: str) -> None:
    database = Database(Secret(url), connections=1, timeout=5)
    statement = sa.text(f"UPDATE alembic_version SET version_num='{version}'")
    database.run_here(lambda connection: connection.execute(statement), write=True)
    database.close()


def test_the_migrations_make_the_tables_that_the_statements_expect(empty_url: str) -> None:
    assert upgrade_database(Secret(empty_url)) == ""
    database = Database(Secret(empty_url), connections=1, timeout=5)

    def compare(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, schema.metadata)

    try:
        assert database.run_here(compare, write=False) == []
    finally:
        database.close()
    assert upgrade_database(Secret(empty_url)) == upgrade.REVISIONS[-1]


def test_the_list_of_versions_is_that_of_the_migrations() -> None:
    settings = Config()
    folder = Path(upgrade.__file__).with_name("migrations")
    settings.set_main_option("script_location", str(folder))
    found = [script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()]
    assert tuple(reversed(found)) == upgrade.REVISIONS


async def test_sqlite_is_made_by_itself_unless_that_is_turned_off(tmp_path: Path) -> None:
    url = Secret(f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(RegistryFailed, match=r"is empty.*db upgrade"):
        async with open_registry(url, migrate=False):
            pass
    async with open_registry(url) as registry:
        await registry.check()
    async with open_registry(url, migrate=False) as registry:
        await registry.check()


async def test_postgresql_is_made_when_asked_for(postgresql: PostgreSQL) -> None:
    url = Secret(postgresql.new_database())
    with pytest.raises(RegistryFailed, match="is empty"):
        async with open_registry(url):
            pass
    async with open_registry(url, migrate=True) as registry:
        await registry.check()


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(empty_url: str) -> None:
    upgrade_database(Secret(empty_url))
    set_version(empty_url, "9999")
    for attempt in (True, False):
        with pytest.raises(RegistryFailed, match=r"9999, which is newer"):
            async with open_registry(Secret(empty_url), migrate=attempt):
                pass
    with pytest.raises(RegistryFailed, match="newer"):
        upgrade_database(Secret(empty_url))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "mysql://h/d",
        "sqlite://",
        "sqlite:///relative.db",
        "postgresql://u:hunter2@h:port/d",
        "mysql://u:hunter2@h/d",
    ],
)
def test_a_url_of_another_kind_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"registry\.url") as refused:
        parse_url(Secret(url))
    assert "hunter2" not in str(refused.value)
