"""Nodes as processes: what readers of events hear of devices when a node is killed, or hangs."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.daemons import Daemon, DaemonSet
from support.origin import serving
from support.redis_server import run_redis
from support.tunnels import Tunnel
from tunnelmux.backend import ProxyClient
from tunnelmux.config import Address
from tunnelmux.relay import abort, relay
from tunnelmux.sessions import SessionEvent

PATIENCE = 30.0
DEVICES = ("dev1", "dev2", "dev3")


class Balancer:
    """Leads agents to one node, or to none."""

    leads_to: Address | None = None

    async def lead(self, stream: trio.SocketStream) -> None:
        if self.leads_to is None:
            await abort(stream)
            return
        await relay(stream, await trio.open_tcp_stream(self.leads_to.host, self.leads_to.port))


class Heard:
    """The events at one node, as they come."""

    def __init__(self, events: AsyncIterator[tuple[str, SessionEvent | None]]) -> None:
        self._events = events
        self.all: list[tuple[str, str, str]] = []

    async def more(self, kind: str, node: str) -> list[SessionEvent]:
        """The next events of all devices, when each had this one at that node."""
        found: list[SessionEvent] = []
        with trio.fail_after(PATIENCE):
            while {(e.type, e.device_id, e.proxy_node_id) for e in found} != {
                (kind, device, node) for device in DEVICES
            }:
                _, event = await anext(self._events)
                assert event is not None, "a gap"
                self.all.append((event.type, event.device_id, event.proxy_node_id))
                found.append(event)
        return found


@asynccontextmanager
async def installed(
    daemons: DaemonSet, workers: int = 1
) -> AsyncIterator[tuple[dict[str, Daemon], dict[str, Address], Balancer, Heard]]:
    """Nodes `a` and `b` with their addresses for agents; all devices are at `b`. Events are read at
    `a`."""
    balancer = Balancer()
    tunnel = Tunnel(daemons)
    nodes: dict[str, Daemon] = {}
    at_tunnel: dict[str, Address] = {}
    with run_redis() as redis:
        for name in ("a", "b"):
            more = f"""
                [internal]
                listen = "127.0.0.1:0"
                [proxy]
                workers = {workers}
                [cluster]
                redis = "{redis.url}"
                listen = "127.0.0.1:0"
                node = "{name}"
            """
            await tunnel.start_proxy(devices=DEVICES, more=more)
            nodes[name], at_tunnel[name] = tunnel.proxy, tunnel.at_tunnel
        await nodes["a"].logged("node joined", node="b")
        internal = await nodes["a"].listening("internal.listen")
        balancer.leads_to = at_tunnel["b"]
        async with (
            serving(balancer.lead) as address,
            ProxyClient(f"http://{internal}").events() as events,
        ):
            heard = Heard(events)
            tunnel.at_tunnel = address
            for device in DEVICES:
                await tunnel.start_agent({"web": "http://127.0.0.1:9"}, device=device)
            assert all(event.token_prefix for event in await heard.more("connected", "b"))
            yield nodes, at_tunnel, balancer, heard


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("workers", [1, 2])
async def test_devices_of_a_killed_node_are_lost_and_connect_elsewhere(
    daemons: DaemonSet, workers: int
) -> None:
    async with installed(daemons, workers) as (nodes, at_tunnel, balancer, heard):
        balancer.leads_to = None
        nodes["b"].send_signal(signal.SIGKILL)
        for event in await heard.more("lost", "b"):
            assert event.reason.startswith("node b, which had it, was last heard from ")
        balancer.leads_to = at_tunnel["a"]
        await heard.more("connected", "a")
        assert sorted(heard.all) == [
            *(("connected", device, node) for device in DEVICES for node in "ab"),
            *(("lost", device, "b") for device in DEVICES),
        ]


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("workers", [1, 2])
async def test_devices_of_a_node_that_hangs_are_lost_and_connected_when_it_goes_on(
    daemons: DaemonSet, workers: int
) -> None:
    """Of a node of several workers, the parent hangs."""
    async with installed(daemons, workers) as (nodes, _, _, heard):
        nodes["b"].send_signal(signal.SIGSTOP)
        try:
            await heard.more("lost", "b")
        finally:
            nodes["b"].send_signal(signal.SIGCONT)
        assert all(event.token_prefix for event in await heard.more("connected", "b"))
        assert sorted(heard.all) == [
            *(("connected", device, "b") for device in DEVICES for _ in range(2)),
            *(("lost", device, "b") for device in DEVICES),
        ]
