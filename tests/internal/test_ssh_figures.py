"""What the proxy's metrics say of its agents' SSH connections, from what the agents say."""

from __future__ import annotations

import json

import trio
import trio.testing

from support.exec_agent import exec_agents
from support.internal import Bench, running_bench
from tunnelmux.commands import CommandRequest, Event, Started


def said(connection: str | None, pooled: int, kept_for: float = 60, **more: object) -> object:
    return {"connection": connection, "pooled": pooled, "keptFor": kept_for, **more}


async def run(bench: Bench, device: str, command: str) -> None:
    """Run a command there; what it said of SSH is for nobody but the metrics."""

    async def emit(event: Event) -> None:
        assert not isinstance(event, Started) or event.ssh is None

    request = CommandRequest(
        command_id="c1", host="127.0.0.1", username="root", command=command, timeout=400
    )
    end = await bench.dispatcher.run(device, request, asked_by="test", emit=emit)
    assert (end.exit_code, end.ssh) == (0, None)


async def use(bench: Bench, device: str, started: object, exited: object = None) -> None:
    """Run a command whose events say this of SSH."""
    await run(bench, device, f"ssh {json.dumps([started, exited])}")


async def figures(bench: Bench) -> dict[str, float]:
    """The samples of SSH, by name and labels."""
    text = (await bench.ask("GET", "/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("tunnelmux_ssh_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def pooled(bench: Bench) -> float:
    return (await figures(bench))["tunnelmux_ssh_pooled_connections"]


async def test_connects_are_counted_by_result_and_timed() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1", "dev2"):
        await use(bench, "dev1", said("new", 1, seconds=0.2), said(None, 1))
        await use(bench, "dev1", said("reused", 1))
        await use(bench, "dev1", said("reused", 1))
        await use(bench, "dev2", said("new", 1, seconds=3))
        await use(bench, "dev2", None, said("failed", 1, seconds=15))
        got = await figures(bench)
    for result, count in {"new": 2, "reused": 2, "failed": 1}.items():
        assert got[f'tunnelmux_ssh_connects_total{{result="{result}"}}'] == count
    assert got["tunnelmux_ssh_connect_seconds_count"] == 2
    assert got["tunnelmux_ssh_connect_seconds_sum"] == 3.2
    assert got['tunnelmux_ssh_connect_seconds_bucket{le="0.25"}'] == 1
    assert not any("dev" in name for name in got)


async def test_an_agent_that_says_nothing_or_nonsense_leaves_no_trace() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        await run(bench, "dev1", "echo as older agents do")
        await use(bench, "dev1", said("made up", 5), said("new", -5))
        await use(bench, "dev1", "new", {"connection": "new"})
        got = await figures(bench)
    assert not any("connects_total" in name for name in got)
    assert got["tunnelmux_ssh_connect_seconds_count"] == 0
    assert got["tunnelmux_ssh_pooled_connections"] == 0


async def test_a_command_counts_once_whatever_its_agent_says() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        await use(bench, "dev1", said("new", 10**15, seconds=1), said("failed", 10**15))
        got = await figures(bench)
    assert got['tunnelmux_ssh_connects_total{result="new"}'] == 1
    assert 'tunnelmux_ssh_connects_total{result="failed"}' not in got
    assert got["tunnelmux_ssh_pooled_connections"] == 10_000


async def test_the_pools_of_connected_devices_are_added_up() -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        await use(bench, "dev1", said("new", 1), said(None, 3))
        async with exec_agents(bench, "dev2"):
            await use(bench, "dev2", said("reused", 4))
            assert await pooled(bench) == 7
            await use(bench, "dev1", said("reused", 2))
            assert await pooled(bench) == 6
        assert await pooled(bench) == 2
        async with exec_agents(bench, "dev2"):  # who may have been started anew
            assert await pooled(bench) == 2


async def test_what_an_agent_said_holds_until_it_has_closed_idle_connections(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_bench() as bench, exec_agents(bench, "dev1"):
        await use(bench, "dev1", said("new", 2, kept_for=65))
        await trio.sleep(64)
        assert await pooled(bench) == 2
        await trio.sleep(2)
        assert await pooled(bench) == 0
        await use(bench, "dev1", said("new", 1, kept_for=65))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, bench, "dev1", "sleep 300")
            await trio.sleep(200)
            assert await pooled(bench) == 1  # a command that runs keeps its connection
        assert await pooled(bench) == 0
