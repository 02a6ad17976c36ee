"""The failures, one after another: what is done, and how long visitors are watched afterwards."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from bench.failures.stage import Needs, Stage, listening
from bench.processes import HOST

__all__ = ["SCENARIOS", "Scenario"]

FROZEN = 30.0
REDIS_AWAY = 60.0
DATABASE_AWAY = 20.0
CUT = 30.0
HOUR = 3600
RESTART = 1.0
"""Seconds until systemd starts again what crashed, by the unit files."""


@dataclass(frozen=True)
class Scenario:
    """One failure."""

    name: str
    title: str
    act: Callable[[Stage], Awaitable[None]]
    watch: float
    """Seconds from its begin for which requests are counted."""
    nodes: int = 2
    workers: int = 1
    needs: Needs = ""
    broken: str = ""
    """The proxy that can answer nothing meanwhile: what was asked of it is counted apart."""
    notices: tuple[str, ...] = ()
    """The log's lines by which the rest notices it."""
    goal: str = ""
    """Which goal it is to reach: a key of `report.GOALS`."""


async def kill_node(stage: Stage) -> None:
    stage.kill("b")


async def freeze_node(stage: Stage) -> None:
    await stage.freeze(stage.proxies["b"].pid, FROZEN)


async def restart_nodes(stage: Stage) -> None:
    for name in ("a", "b"):
        await stage.stop(name)
        await stage.start_proxy(name)
        await trio.sleep(5.0)


async def upgrade_nodes(stage: Stage) -> None:
    for name in ("a", "b"):
        await stage.upgrade(name)
        await trio.sleep(5.0)


async def part_nodes(stage: Stage) -> None:
    assert stage.network is not None
    stage.network.cut("a", "b")
    await trio.sleep(CUT)
    stage.network.mend("a", "b")


async def part_from_redis(stage: Stage) -> None:
    assert stage.network is not None
    stage.network.cut("b", "redis")
    await trio.sleep(CUT)
    stage.network.mend("b", "redis")


async def kill_redis(stage: Stage) -> None:
    stage.signal(stage.redis_pid, signal.SIGKILL)
    await trio.sleep(REDIS_AWAY)
    await stage.start_redis()


async def freeze_redis(stage: Stage) -> None:
    await stage.freeze(stage.redis_pid, FROZEN)


async def jump_clocks(stage: Stage) -> None:
    for ahead in (HOUR, -HOUR, 0):
        stage.set_clock("b", ahead)
        await trio.sleep(8.0)


async def kill_worker(stage: Stage) -> None:
    stage.signal(stage.workers("a")[0], signal.SIGKILL)


async def freeze_worker(stage: Stage) -> None:
    await stage.freeze(stage.workers("a")[0], FROZEN)


async def kill_and_restart(stage: Stage) -> None:
    stage.kill("a")
    await trio.sleep(RESTART)
    await stage.start_proxy("a")


async def kill_database(stage: Stage) -> None:
    assert stage.database is not None
    stage.database.signal(signal.SIGKILL)
    await trio.sleep(DATABASE_AWAY)
    await stage.database.start()


async def freeze_database(stage: Stage) -> None:
    assert stage.database is not None
    stage.database.signal(signal.SIGSTOP)
    try:
        await trio.sleep(FROZEN)
    finally:
        stage.database.signal(signal.SIGCONT)


async def kill_api(stage: Stage) -> None:
    began = trio.current_time()
    stage.signal(stage.api_pid, signal.SIGKILL)
    await trio.sleep(RESTART)
    await stage.start_api()
    await api_answers(stage, began)


async def freeze_api(stage: Stage) -> None:
    began = trio.current_time()
    await stage.freeze(stage.api_pid, FROZEN)
    await api_answers(stage, began)


async def api_answers(stage: Stage, began: float) -> None:
    """Note when the API has answered again."""
    await listening(HOST, stage.api_port)
    async with await trio.open_tcp_stream(HOST, stage.api_port) as stream:
        await stream.send_all(b"GET /api/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b"".join([bytes(data) async for data in stream])
    took = trio.current_time() - began
    stage.notes.append(f"the API itself answered {answer[9:12].decode()} after {took:.1f} s")


NODE_LOST = ("hop ended", "node not reached", "node gone")

SCENARIOS = [
    Scenario(
        "node-killed",
        "One of two nodes is killed",
        kill_node,
        20,
        broken="b",
        notices=NODE_LOST,
        goal="5 s",
    ),
    Scenario(
        "node-frozen",
        "One of two nodes hangs for 30 s",
        freeze_node,
        50,
        broken="b",
        notices=NODE_LOST,
    ),
    Scenario("nodes-restarted", "Both nodes are restarted, one after the other", restart_nodes, 40),
    Scenario(
        "nodes-upgraded",
        "Both nodes are upgraded, one after the other",
        upgrade_nodes,
        30,
        goal="none failed",
    ),
    Scenario(
        "nodes-parted",
        "Two nodes do not reach each other for 30 s",
        part_nodes,
        45,
        needs="network",
        notices=NODE_LOST,
    ),
    Scenario(
        "redis-parted",
        "One of two nodes does not reach Redis for 30 s",
        part_from_redis,
        45,
        needs="network",
        notices=("directory away",),
    ),
    Scenario(
        "redis-killed",
        "Redis is killed, and comes back empty after 60 s",
        kill_redis,
        70,
        notices=("directory away",),
        goal="none failed",
    ),
    Scenario(
        "redis-frozen",
        "Redis hangs for 30 s",
        freeze_redis,
        40,
        notices=("directory away",),
        goal="none failed",
    ),
    Scenario(
        "clock-jumps",
        "A node's clock jumps an hour ahead, then two back",
        jump_clocks,
        30,
        needs="clocks",
        goal="none failed",
    ),
    Scenario(
        "worker-killed",
        "One of two workers is killed",
        kill_worker,
        15,
        nodes=1,
        workers=2,
        notices=("worker ended",),
        goal="1.5 s",
    ),
    Scenario(
        "worker-frozen",
        "One of two workers hangs for 30 s",
        freeze_worker,
        50,
        nodes=1,
        workers=2,
        notices=("worker silent", "worker ended"),
    ),
    Scenario(
        "parent-killed",
        "The parent of two workers is killed",
        kill_and_restart,
        20,
        nodes=1,
        workers=2,
    ),
    Scenario("proxy-killed", "The only proxy is killed", kill_and_restart, 20, nodes=1),
    Scenario(
        "database-killed",
        "PostgreSQL is killed, and started again after 20 s",
        kill_database,
        30,
        needs="registry",
        notices=("registry away",),
        goal="none failed",
    ),
    Scenario(
        "database-frozen",
        "PostgreSQL hangs for 30 s",
        freeze_database,
        40,
        needs="registry",
        notices=("registry away",),
        goal="none failed",
    ),
    Scenario(
        "api-killed",
        "tunnelmux-api is killed",
        kill_api,
        10,
        needs="registry",
        goal="none failed",
    ),
    Scenario(
        "api-frozen",
        "tunnelmux-api hangs for 30 s",
        freeze_api,
        35,
        needs="registry",
        goal="none failed",
    ),
]
