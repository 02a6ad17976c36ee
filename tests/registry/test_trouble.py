"""Databases that are shared, locked, full, read-only, stopped, frozen and slow."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
import trio

from support.postgresql import PostgreSQL, run_postgresql
from support.programs import require_program
from support.registries import ANN, OpenRegistry
from tunnelmux.config import Secret, hash_token
from tunnelmux.errors import RegistryAway, RegistryFailed
from tunnelmux.registry import Registry, TenantRegistry, open_registry
from tunnelmux.registry.sql import upgrade_database
from tunnelmux.registry.sql.database import Database

WRITER = [sys.executable, str(Path(__file__).with_name("writer.py"))]


def writer(url: str, tenant_id: str, *arguments: str) -> subprocess.Popen[str]:
    command = [*WRITER, url, tenant_id, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow  # it starts Pythons
@pytest.mark.slow
async def test_two_processes_write_at_once(database_url: str, acme: TenantRegistry) -> None:
    both = [writer(database_url, acme.tenant_id, "add", name, "20") for name in ("a", "b")]
    for process in both:
        output, _ = await trio.to_thread.run_sync(process.communicate)
        assert output == "added 20\n"
    assert await acme.devices.count() == 40
    assert (await acme.audit.verify()).problem == ""


@pytest.mark.slow
async def test_a_killed_writer_leaves_nothing_half(database_url: str, acme: TenantRegistry) -> None:
    entries = len(await acme.audit.export())
    process = writer(database_url, acme.tenant_id, "hold")
    assert process.stdout is not None
    assert await trio.to_thread.run_sync(process.stdout.readline) == "inside\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert await acme.devices.count() == 0
    await acme.devices.add("half")
    assert (await acme.audit.verify()).entries == entries + 2


async def test_connections_in_use_are_closed_when_their_calls_end(database_url: str) -> None:
    """A session may write to the registry while its proxy ends."""
    database = Database(Secret(database_url), connections=2, timeout=50)
    used: list[Any] = []
    go_on = threading.Event()

    def work(connection: sa.Connection) -> None:
        used.append(connection.connection.dbapi_connection)
        go_on.wait(50)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(database.run, work, write=False))
        while not used:  # noqa: ASYNC110  a thread tells no task
            await trio.sleep(0.001)
        database.close()
        go_on.set()
    with pytest.raises((sqlite3.ProgrammingError, psycopg.OperationalError), match="closed"):
        used[0].execute("SELECT 1")


async def test_a_failure_at_any_statement_of_an_exchange_leaves_the_code_as_it_was(
    registry: Registry, acme: TenantRegistry
) -> None:
    _, code = await acme.pairings.make_code(name="cam1")
    engine: sa.Engine = registry._database.engine  # type: ignore[attr-defined]
    left = broken = 0

    def fail(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("injected")

    arrived = False
    while not arrived:  # the first statement fails, then the second, until none is left to fail
        left = broken + 1
        sa.event.listen(engine, "before_cursor_execute", fail)
        try:
            await registry.joining.exchange(code.reveal(), address="")
            arrived = True
        except RuntimeError:
            broken += 1
        finally:
            sa.event.remove(engine, "before_cursor_execute", fail)
        (pairing,) = (await acme.pairings.page()).items
        assert (await acme.devices.count(), pairing.state) == (
            (1, "used") if arrived else (0, "open")
        )
    assert broken > 10


# -- SQLite ---------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    file = tmp_path / "own.db"
    upgrade_database(Secret(f"sqlite:///{file}"))
    return file


@pytest.fixture
def fill_in(tmp_path: Path) -> Callable[[str], list[str]]:
    """Lets a writer fill `$1/own.db` after a line of shell that may mount what it likes."""
    program = require_program("unshare", "util-linux")

    def run(prepare: str) -> list[str]:
        script = f'{prepare} && exec "$2" "$3" sqlite:///$1/own.db default fill'
        command = [program, "-rm", "sh", "-e", "-c", script, "-", str(tmp_path), *WRITER]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.splitlines()

    return run


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_lost(fill_in: Callable[[str], list[str]]) -> None:
    told, kept = fill_in("mount -t tmpfs -o size=1m small $1")
    assert told.startswith("RegistryFailed")
    assert "its disk is full: make room" in told or "look at the disk, its space" in told
    assert kept == "kept True True"


@pytest.mark.slow
def test_a_file_that_can_only_be_read_is_read(
    sqlite_file: Path, fill_in: Callable[[str], list[str]]
) -> None:
    told, kept = fill_in("mount --bind $1/own.db $1/own.db && mount -o remount,bind,ro $1/own.db")
    assert told.startswith("RegistryFailed")
    assert "it is read-only: give this program's user write access" in told
    assert kept == "kept True True"


async def test_a_file_that_is_locked_is_waited_for_and_then_given_up(sqlite_file: Path) -> None:
    async with open_registry(Secret(f"sqlite:///{sqlite_file}"), timeout=0.5) as registry:
        lock = sqlite3.connect(sqlite_file, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryAway, match="locked"):
            await registry.installation(ANN).tenants.add("acme")
        assert await registry.installation(ANN).tenants.find_named("default")  # reads go on
        lock.execute("ROLLBACK")
        lock.close()
        await registry.installation(ANN).tenants.add("acme")


async def test_a_new_file_is_for_its_owner_and_group_only(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    async with open_registry(Secret(f"sqlite:///{file}")) as registry:
        await registry.installation(ANN).tenants.add("acme")
        modes = [path.stat().st_mode & 0o007 for path in file.parent.iterdir()]
    assert len(modes) == 3  # with the log and its index
    assert set(modes) == {0}


async def test_rubbish_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "rubbish.db"
    file.write_bytes(b"this is no database at all " * 200)
    with pytest.raises(RegistryFailed, match="no database or is damaged"):
        async with open_registry(Secret(f"sqlite:///{file}")):
            pass
    with pytest.raises(RegistryFailed, match="cannot be opened"):
        async with open_registry(Secret(f"sqlite:///{tmp_path}/none/r.db")):
            pass


# -- PostgreSQL -----------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[PostgreSQL]:
    """A server that this test may stop and freeze."""
    with run_postgresql() as server:
        yield server


@pytest.mark.slow
async def test_a_server_that_stops_freezes_and_comes_back(own_server: PostgreSQL) -> None:
    url = own_server.new_database()
    upgrade_database(Secret(url))
    async with open_registry(Secret(url), timeout=1) as registry:
        tenant = await registry.installation(ANN).tenants.find_named("default")
        devices = registry.tenant(tenant.id, by=ANN).devices
        _, token = await devices.add("cam1")

        own_server.freeze()
        for _ in range(2):
            with pytest.raises(RegistryAway), trio.fail_after(20):
                await registry.fleet.identify(hash_token(token))
        own_server.thaw()
        assert await registry.fleet.identify(hash_token(token)) is not None

        await trio.to_thread.run_sync(own_server.stop)
        with pytest.raises(RegistryAway, match="does not answer"), trio.fail_after(20):
            await devices.add("cam2")
        await trio.to_thread.run_sync(own_server.start)
        assert await registry.fleet.identify(hash_token(token)) is not None
        assert [device.name for device in (await devices.page()).items] == ["cam1"]


async def test_a_standby_says_that_it_is_no_primary(postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()
    upgrade_database(Secret(url))
    name = urlsplit(url).path[1:]
    postgresql.execute(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with open_registry(Secret(url)) as registry:
        with pytest.raises(RegistryFailed, match="name the primary"):
            await registry.installation(ANN).tenants.add("acme")
        assert await registry.installation(ANN).tenants.find_named("default")


@pytest.mark.slow
async def test_a_server_on_a_full_disk_is_said_and_nothing_is_lost() -> None:
    with run_postgresql(small_disk="24m") as server:
        server.administer(f"CREATE TABLESPACE small LOCATION '{server.folder}/small'")
        url = server.new_database("TABLESPACE small")
        upgrade_database(Secret(url))
        async with open_registry(Secret(url)) as registry:
            tenant = await registry.installation(ANN).tenants.find_named("default")
            acme = registry.tenant(tenant.id, by=ANN)
            _, token = await acme.devices.add("cam1")
            fill_disk(url)
            added = ["cam1"]
            with pytest.raises(RegistryFailed, match="disk is full: make room"):
                for number in range(2, 1000):  # for as long as begun pages have room
                    await acme.devices.add(f"cam{number}")
                    added.append(f"cam{number}")
            assert await registry.fleet.identify(hash_token(token)) is not None
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP TABLE filler")
            page = await acme.devices.page(limit=200)
            assert sorted(device.name for device in page.items) == sorted(added)[:200]
            assert (await acme.audit.verify()).broken_at is None
            await acme.devices.add("last")


def fill_disk(url: str) -> None:
    """Take all the space that the database's disk has, in pieces down to one page."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE filler (part text)")
        connection.execute("ALTER TABLE filler ALTER part SET STORAGE PLAIN")
        for rows in (64, 1):
            with pytest.raises(psycopg.errors.DiskFull):
                while True:
                    connection.execute(
                        "INSERT INTO filler SELECT repeat('x', 8000) FROM generate_series(1, %s)",
                        [rows],
                    )


@pytest.mark.slow
async def test_a_slow_server_is_given_up_and_changes_nothing(postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()
    upgrade_database(Secret(url))
    async with open_registry(Secret(url), timeout=0.5) as registry:
        with psycopg.connect(url) as blocker:
            blocker.execute("LOCK TABLE tenants")
            with pytest.raises(RegistryAway), trio.fail_after(20):
                await registry.installation(ANN).tenants.add("acme")
        await registry.installation(ANN).tenants.add("acme")


async def test_waiting_for_a_turn_can_be_cancelled(open_registry: OpenRegistry) -> None:
    async with open_registry() as registry, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(registry.check)
        with trio.move_on_after(0) as scope:
            await registry.check()
        assert scope.cancelled_caught


@pytest.mark.slow
async def test_opening_a_frozen_database_ends_in_time(own_server: PostgreSQL) -> None:
    url = own_server.new_database()
    upgrade_database(Secret(url))
    own_server.freeze()
    try:
        with pytest.raises(RegistryAway), trio.fail_after(20):
            async with open_registry(Secret(url), timeout=1):
                pass
    finally:
        own_server.thaw()
