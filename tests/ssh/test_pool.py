"""Connections: shared, bounded, looked after, and made anew when they are dead."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from support.blackhole import blackhole_relay
from support.ssh_client import Asker, descriptors, nothing_open, processes_with, until
from support.sshd import running_sshd
from tunnelmux.commands import CommandRequest, CommandResult, Exited, SshUse, Started
from tunnelmux.config import Address
from tunnelmux.ssh.pool import SshPool, open_pool

pytestmark = pytest.mark.slow  # each starts an sshd


async def run_many(pool: SshPool, ask: Asker, commands: list[str]) -> list[CommandResult]:
    """All at once; the results in the order of the commands."""
    results: dict[int, CommandResult] = {}

    async def one(number: int, command: str) -> None:
        results[number] = await pool.run(ask(command))

    async with trio.open_nursery() as nursery:
        for number, command in enumerate(commands):
            nursery.start_soon(one, number, command)
    return [results[number] for number in range(len(commands))]


async def uses(pool: SshPool, request: CommandRequest) -> list[SshUse | None]:
    """What the events of one command say of the pool, in order."""
    async with pool.execute(request) as events:
        return [event.ssh async for event in events if isinstance(event, Started | Exited)]


def numbered(count: int, pause: str = "0.05") -> list[str]:
    return [f"sleep {pause}; echo {number}" for number in range(count)]


def all_right(results: list[CommandResult]) -> bool:
    return [result.stdout for result in results] == [f"{n}\n" for n in range(len(results))]


async def test_a_connection_is_used_again(pool: SshPool, ask: Asker) -> None:
    for number in range(4):
        assert (await pool.run(ask(f"echo {number}"))).stdout == f"{number}\n"
    assert (pool.figures.connects, pool.figures.reused) == (1, 3)


async def test_a_command_says_how_it_came_by_its_connection(
    pool: SshPool, ask: Asker, unused_port: int
) -> None:
    kept = 60.0 + 5.0  # idle_connection, and the time between two looks
    began = trio.current_time()
    started, exited = await uses(pool, ask("true"))
    assert started is not None and started.seconds is not None
    assert 0 < started.seconds < trio.current_time() - began
    assert started == SshUse("new", started.seconds, 1, kept)
    assert exited == SshUse(None, None, 1, kept)
    assert await uses(pool, ask("true")) == [
        SshUse("reused", None, 1, kept),
        SshUse(None, None, 1, kept),
    ]
    [failed] = await uses(pool, ask("true", port=unused_port))
    assert failed is not None and failed.seconds is not None
    assert failed == SshUse("failed", failed.seconds, 1, kept)


async def test_a_connection_counts_as_new_for_one_of_all_who_waited_for_it(
    login, ask: Asker, unused_port: int
) -> None:
    async def came_by(pool: SshPool, **more: object) -> list[str | None]:
        found: list[str | None] = []

        async def one() -> None:
            first = (await uses(pool, ask("sleep 0.1", **more)))[0]
            assert first is not None
            found.append(first.came_by)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        return sorted(found, key=str)

    async with open_pool(login()) as pool:
        assert await came_by(pool) == ["new", "reused", "reused", "reused"]
        assert await came_by(pool, port=unused_port) == [None, None, None, "failed"]


async def test_a_connection_that_came_too_late_counts_as_failed(pool: SshPool, ask: Asker) -> None:
    async with blackhole_relay(ask("true").port) as relay:
        relay.swallow()
        [late] = await uses(pool, ask("true", port=relay.port, timeout=0.3))
    assert late is not None and late.seconds is not None
    assert (late.came_by, late.pooled) == ("failed", 0)
    assert late.seconds > 0


async def test_one_connection_is_made_for_all_who_wait_for_one(login, ask: Asker) -> None:
    async with open_pool(login(sessions_per_connection=9)) as pool:
        assert all_right(await run_many(pool, ask, numbered(9)))
        assert pool.figures.connects == 1


async def test_connections_per_login_and_sessions_per_connection_bound_what_runs(
    login, ask: Asker
) -> None:
    limits = {"connections_per_login": 2, "sessions_per_connection": 2}
    async with open_pool(login(**limits)) as pool, trio.open_nursery() as nursery:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, sum(len(c.running) for c in pool.connections()))
                await trio.sleep(0.005)

        nursery.start_soon(watch)
        assert all_right(await run_many(pool, ask, numbered(12)))
        nursery.cancel_scope.cancel()
        assert most == 4
        assert pool.connection_count == pool.figures.connects == 2


async def test_max_connections_makes_room_in_place_of_an_idle_one(login, ask: Asker) -> None:
    async with open_pool(login(max_connections=1)) as pool:
        other = ask("echo other")
        assert (await pool.run(ask("echo one"))).stdout == "one\n"
        # The same server under another name is another server to the pool.
        other = ask("echo other", host="localhost")
        assert (await pool.run(other)).stdout == "other\n"
        assert pool.connection_count == 1
        assert pool.figures.connects == 2


async def test_max_connections_is_waited_for_when_none_is_idle(login, ask: Asker) -> None:
    async with open_pool(login(max_connections=1)) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, ask("sleep 0.5"))
        await until(lambda: pool.connection_count == 1, "the one connection is taken")
        result = await pool.run(ask("echo other", host="localhost"))
        assert result.stdout == "other\n"
        early = await pool.run(ask("echo one", timeout=5))
        assert early.stdout == "one\n"


async def test_who_waits_too_long_for_a_connection_was_not_begun(login, ask: Asker) -> None:
    limits = {"connections_per_login": 1, "sessions_per_connection": 1}
    async with open_pool(login(**limits)) as pool:
        async with pool.execute(ask("sleep 5")) as events:
            assert isinstance(await anext(events), Started)
            result = await pool.run(ask("echo never", timeout=0.2))
        assert (result.exit_code, result.stdout) == (124, "")
        assert result.stderr == "no end within 0.2 s: it was not even started\n"
        await nothing_open(pool)


async def test_a_server_that_allows_fewer_sessions_is_kept_to_it(
    tmp_path: Path, login, debian_program
) -> None:
    async with (
        running_sshd(tmp_path, debian_program, more="MaxSessions 2") as server,
        open_pool(login(connections_per_login=2)) as pool,
    ):
        assert all_right(await run_many(pool, Asker(server), numbered(8, "0.2")))
        assert pool.figures.connects == 2


async def test_an_idle_connection_is_closed(login, ask: Asker) -> None:
    before = descriptors()
    async with open_pool(login(idle_connection=0.2)) as pool:
        await pool.run(ask("true"))
        assert pool.connection_count == 1
        await until(lambda: pool.connection_count == 0, "it is closed")
        await until(lambda: pool._bridge.task_count == 0, "its tasks are over")
        assert (await pool.run(ask("echo back"))).stdout == "back\n"
    assert descriptors() == before


async def test_after_the_server_was_restarted_the_next_command_works(
    tmp_path: Path, login, debian_program
) -> None:
    async with open_pool(login()) as pool:
        async with running_sshd(tmp_path, debian_program) as server:
            ask = Asker(server)
            assert (await pool.run(ask("echo one"))).stdout == "one\n"
        async with running_sshd(tmp_path, debian_program, port=server.address.port):
            assert (await pool.run(ask("echo two"))).stdout == "two\n"
        assert pool.figures.connects == 2


async def test_a_server_that_goes_down_under_a_command_is_reported(
    tmp_path: Path, login, debian_program, word: str
) -> None:
    async with open_pool(login()) as pool:
        async with running_sshd(tmp_path, debian_program) as server:
            run = pool.execute(Asker(server)(f"echo begun; exec sleep {word}"))
            events = await run.__aenter__()
            assert isinstance(await anext(events), Started)
        story = [event async for event in events]
        assert (story[-1].exit_code, story[-1].reason) == (255, "lost")
        assert "closed the connection" in story[-1].message
        await run.__aexit__(None, None, None)
    for number in processes_with(word):
        os.kill(number, signal.SIGKILL)


async def test_a_connection_lost_under_a_command_is_reported_and_nothing_runs_twice(
    tmp_path: Path, sshd, login, word: str
) -> None:
    mark = tmp_path / "ran"
    async with (
        blackhole_relay(sshd.address.port) as relay,
        open_pool(login(ssh_keepalive=0.2)) as pool,
    ):
        ask = Asker(sshd)
        request = ask(f"echo ran >> {mark}; sleep 1 # {word}", port=relay.port)
        async with pool.execute(request) as events:
            assert isinstance(await anext(events), Started)
            await until(mark.exists, "it runs")
            relay.swallow()  # the keepalive notices
            story = [event async for event in events]
        assert (story[-1].exit_code, story[-1].reason) == (255, "lost")
        assert mark.read_text() == "ran\n"
        await until(lambda: not processes_with(word), "it ended by itself")


async def test_a_dead_connection_is_found_out_before_anything_is_asked_for_on_it(
    sshd, login, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    async with (
        blackhole_relay(sshd.address.port) as relay,
        open_pool(login(probe_timeout=0.3)) as pool,
    ):
        ask = Asker(sshd)
        port = relay.port
        assert (await pool.run(ask("true", port=port))).exit_code == 0
        relay.swallow()
        (dead,) = pool.connections()
        with trio.fail_after(30):
            result = await pool.run(ask(f"echo ran >> {mark}", port=port, timeout=2))
        assert dead.closed.is_set()
        assert (result.exit_code, result.reason) == (124, "timeout")  # no other way leads there
        assert not mark.exists()
        assert pool.connection_count == 0


async def test_when_nobody_waits_any_more_the_attempt_ends_too(login, sshd) -> None:
    before = descriptors()
    async with open_pool(login()) as pool:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")  # takes, and says nothing
        silent = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
        for delay in (0.0, 0.01, 0.05, 0.2):
            with trio.move_on_after(delay):
                await pool.run(Asker(sshd)("true", host=silent.host, port=silent.port))
        await nothing_open(pool)
        await until(lambda: pool._bridge.task_count == 0, "no task")
        for listener in listeners:
            await listener.aclose()
        assert pool.connection_count == 0
    assert descriptors() == before
