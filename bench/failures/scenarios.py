"""The failures, one after another: what is done, and how long visitors are watched afterwards."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from bench.failures.stage import Stage

__all__ = ["SCENARIOS", "Scenario"]

FROZEN = 30.0
REDIS_AWAY = 60.0
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


async def kill_node(stage: Stage) -> None:
    stage.kill("b")


async def freeze_node(stage: Stage) -> None:
    pid = stage.proxies["b"].pid
    stage.signal(pid, signal.SIGSTOP)
    await trio.sleep(FROZEN)
    stage.signal(pid, signal.SIGCONT)


async def restart_nodes(stage: Stage) -> None:
    for name in ("a", "b"):
        stage.signal(stage.proxies[name].pid, signal.SIGTERM)
        await trio.sleep(5.0)
        await stage.start_proxy(name)
        await trio.sleep(10.0)


async def kill_redis(stage: Stage) -> None:
    stage.signal(stage.redis_pid, signal.SIGKILL)
    await trio.sleep(REDIS_AWAY)
    await stage.start_redis()


async def freeze_redis(stage: Stage) -> None:
    stage.signal(stage.redis_pid, signal.SIGSTOP)
    await trio.sleep(FROZEN)
    stage.signal(stage.redis_pid, signal.SIGCONT)


async def kill_worker(stage: Stage) -> None:
    stage.signal(stage.workers("a")[0], signal.SIGKILL)


async def freeze_worker(stage: Stage) -> None:
    pid = stage.workers("a")[0]
    stage.signal(pid, signal.SIGSTOP)
    await trio.sleep(FROZEN)
    stage.signal(pid, signal.SIGCONT)


async def kill_and_restart(stage: Stage) -> None:
    stage.kill("a")
    await trio.sleep(RESTART)
    await stage.start_proxy("a")


SCENARIOS = [
    Scenario("node-killed", "One of two nodes is killed", kill_node, 30),
    Scenario("node-frozen", "One of two nodes hangs for 30 s", freeze_node, 60),
    Scenario("nodes-restarted", "Both nodes are restarted, one after the other", restart_nodes, 40),
    Scenario("redis-killed", "Redis is killed, and comes back empty after 60 s", kill_redis, 75),
    Scenario("redis-frozen", "Redis hangs for 30 s", freeze_redis, 45),
    Scenario("worker-killed", "One of two workers is killed", kill_worker, 20, 1, 2),
    Scenario("worker-frozen", "One of two workers hangs for 30 s", freeze_worker, 60, 1, 2),
    Scenario("parent-killed", "The parent of two workers is killed", kill_and_restart, 30, 1, 2),
    Scenario("proxy-killed", "The only proxy is killed", kill_and_restart, 30, 1, 1),
]
