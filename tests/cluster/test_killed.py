"""Nodes as processes, and what visitors see when one of them, or Redis, is killed."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from support.daemons import Daemon, DaemonSet
from support.doors import open_doors
from support.origin import Origin, serving
from support.redis_server import RedisServer, run_redis
from support.tunnels import Tunnel
from support.visitor import Answer, fetch
from tunnelmux.config import Address
from tunnelmux.relay import abort, relay

PATIENCE = 30.0


async def answered(address: Address) -> Answer:
    """The first answer of the device that is not that it is offline."""
    with trio.fail_after(PATIENCE):
        while True:
            answer = await fetch(address)
            if answer.reason != "device-offline":
                return answer


@pytest.mark.slow
async def test_a_node_and_redis_are_killed(daemons: DaemonSet) -> None:
    with run_redis() as redis:
        async with serving(Origin().handle) as web:
            await run(daemons, redis, web)


async def run(daemons: DaemonSet, redis: RedisServer, web: Address) -> None:
    tunnel = Tunnel(daemons)
    cluster = f'[cluster]\nredis = "{redis.url}"\nlisten = "127.0.0.1:0"\nnode = '
    nodes: dict[str, tuple[Daemon, Address, Address]] = {}
    for name in ("a", "b"):
        await tunnel.start_proxy(more=f'{cluster}"{name}"')
        nodes[name] = tunnel.proxy, tunnel.at_tunnel, tunnel.at_http
    await nodes["a"][0].logged("node joined", node="b")
    # An agent with a proxy in front of it that leads to whichever node lives.
    _, at_b, _ = nodes["b"]
    _, at_a, visit_a = nodes["a"]
    leads_to = at_b

    async def lead(stream: trio.SocketStream) -> None:
        try:
            onward = await trio.open_tcp_stream(leads_to.host, leads_to.port)
        except OSError:
            await abort(stream)
            return
        await relay(stream, onward)

    async with serving(lead) as balancer:
        tunnel.at_tunnel = balancer
        await tunnel.start_agent({"web": f"http://{web}"})
        assert (await answered(visit_a)).body == b"hello\n"

        # Redis dies: the way that is known is gone on with, and it is filled again afterwards.
        redis.kill()
        await nodes["a"][0].logged("directory away")
        assert (await fetch(visit_a)).body == b"hello\n"
        since = len(nodes["a"][0].events)
        redis.start()
        await nodes["a"][0].logged("directory reached", since=since)
        assert (await answered(visit_a)).body == b"hello\n"

        # The node with the session dies: its device dials the other one, and is found there.
        leads_to = at_a
        nodes["b"][0].send_signal(signal.SIGKILL)
        await nodes["b"][0].wait()
        assert (await answered(visit_a)).body == b"hello\n"
        await nodes["a"][0].logged("node gone", node="b")
        assert (await fetch(visit_a)).body == b"hello\n"


class Load:
    """Visitors of one address, each with one request after the other."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.answers = 0
        self.failed: list[tuple[float, int, str]] = []
        """When a request began that failed, and how it was answered."""

    async def visit(self) -> None:
        while True:  # until it is cancelled
            began = trio.current_time()
            try:
                answer = await fetch(self.address)
            except Exception:
                self.failed.append((began, 0, "cut"))
                continue
            self.answers += 1
            if answer.status != 200:
                self.failed.append((began, answer.status, answer.reason or ""))

    async def more(self, count: int) -> None:
        """Return when there were so many more answers."""
        wanted = self.answers + count
        with trio.fail_after(PATIENCE):
            while self.answers < wanted:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)


@pytest.mark.long
async def test_a_killed_node_costs_a_device_with_two_sessions_what_was_in_flight(
    daemons: DaemonSet,
) -> None:
    """Visitors come to a third node, which reaches the device over a hop, now to another one."""
    async with open_doors("a", "b") as doors, serving(Origin().handle) as web:
        with run_redis() as redis:
            tunnel = Tunnel(daemons)
            nodes: dict[str, Daemon] = {}
            for name in ("c", "a", "b"):
                reached = f'agent_url = "{doors.url(name)}"' if name != "c" else ""
                cluster = f'redis = "{redis.url}"\nlisten = "127.0.0.1:0"\nnode = "{name}"'
                await tunnel.start_proxy(more=f"[cluster]\n{cluster}\n{reached}")
                nodes[name] = tunnel.proxy
                if name == "c":
                    visited = tunnel.at_http
                doors.leads_to[name] = tunnel.at_tunnel
            for name in "ab":
                await nodes["c"].logged("node joined", node=name)
            await nodes["b"].logged("node joined", node="a")
            agent = await tunnel.start_agent({"web": f"http://{web}"})
            await agent.logged("session started", node="a")
            assert (await answered(visited)).body == b"hello\n"
            load = Load(visited)
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(load.visit)
                await load.more(50)
                assert load.failed == []
                # The newest place comes first: that is the second session's.
                doors.leads_to.pop("a")
                nodes["a"].send_signal(signal.SIGKILL)
                await nodes["a"].wait()
                killed = trio.current_time()
                await load.more(50)
                await load.more(20)
                nursery.cancel_scope.cancel()
            assert [one for one in load.failed if one[0] > killed] == []
            assert {reason for _, _, reason in load.failed} <= {"cut", "tunnel-lost"}


@pytest.mark.long
@pytest.mark.timeout(300, func_only=True)
async def test_an_upgraded_node_costs_a_device_with_two_sessions_nothing(
    daemons: DaemonSet,
) -> None:
    """Visitors come to both nodes. The agent's session with the one goes to its new program."""
    async with open_doors("a", "b") as doors, serving(Origin().handle) as web:
        with run_redis() as redis:
            tunnel, nodes, loads = Tunnel(daemons), {}, []
            for name in ("a", "b"):
                cluster = f'redis = "{redis.url}"\nlisten = "127.0.0.1:0"\nnode = "{name}"'
                reached = f'agent_url = "{doors.url(name)}"'
                await tunnel.start_proxy(more=f"[cluster]\n{cluster}\n{reached}\n")
                nodes[name] = tunnel.proxy
                loads.append(Load(tunnel.at_http))
                doors.leads_to[name] = tunnel.at_tunnel
            await nodes["a"].logged("node joined", node="b")
            agent = await tunnel.start_agent({"web": f"http://{web}"})
            for name in nodes:
                await agent.logged("session started", node=name)
            async with trio.open_nursery() as nursery:
                for load in loads:
                    nursery.start_soon(load.visit)
                    await load.more(20)
                since = len(agent.events)
                pid = await upgraded(nodes["a"].pid)
                try:
                    await nodes["a"].logged("stopped")
                    await agent.logged("session started", since=since, node="a")
                    for load in loads:
                        await load.more(50)
                        assert load.failed == []
                finally:
                    await end(pid)
                nursery.cancel_scope.cancel()


async def upgraded(pid: int) -> int:
    """Replace the program of this process; returns the process of the next one."""
    program = Path(sys.executable).with_name("tunnelmux-proxy")
    with trio.fail_after(2 * PATIENCE):
        done = await trio.run_process([program, "upgrade", str(pid)], capture_stdout=True)
    return int(done.stdout)


async def end(pid: int) -> None:
    """End a process that is not our child."""
    with suppress(ProcessLookupError), trio.fail_after(PATIENCE):
        os.kill(pid, signal.SIGTERM)
        while True:
            os.kill(pid, 0)
            await trio.sleep(0.02)
