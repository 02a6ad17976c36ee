"""Nodes as processes, and what visitors see when one of them, or Redis, is killed."""

from __future__ import annotations

import signal

import pytest
import trio

from support.daemons import Daemon, DaemonSet
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
