"""Two proxies of one cluster on loopback, with a Redis, and agents that dial one or the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import msgspec
import trio

from support.doors import Doors
from support.proxies import proxy_config
from support.redis_server import RedisServer
from support.visitor import Answer, fetch
from tunnelmux.agent import RunningAgent, run_agent
from tunnelmux.config import (
    Address,
    AgentConfig,
    BackoffConfig,
    Device,
    InternalListener,
    ProxyConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.proxy import RunningProxy, run_proxy

__all__ = ["Nodes", "running_nodes"]

PATIENCE = 30.0


class Nodes:
    """The proxies by name, each in a nursery of its own."""

    def __init__(
        self, redis: RedisServer, nursery: trio.Nursery, doors: Doors | None = None
    ) -> None:
        self.redis = redis
        self.doors = doors
        self.redis_urls: dict[str, str] = {}
        """Other ways to Redis, by node."""
        self.domains: dict[str, str] = {}
        """The failure domains of nodes, by name."""
        self.by_name: dict[str, RunningProxy] = {}
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}

    def __getitem__(self, name: str) -> RunningProxy:
        return self.by_name[name]

    def config(self, name: str, **more: object) -> ProxyConfig:
        cluster = ClusterConfig(
            redis=Secret(self.redis_urls.get(name, self.redis.url)),
            listen="127.0.0.1:0",
            node=name,
            agent_url=self.doors.url(name) if self.doors is not None else None,
            failure_domain=self.domains.get(name),
        )
        config = proxy_config(tcp=("127.0.0.1:0",))
        settings = {"internal": InternalListener(listen="127.0.0.1:0"), "cluster": cluster} | more
        return msgspec.structs.replace(config, **settings)

    async def start(self, name: str, **more: object) -> RunningProxy:
        """Start a node, and wait until all know each other."""
        scope = self._scopes[name] = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[RunningProxy]) -> None:
            with scope:
                await run_proxy(self.config(name, **more), task_status=task_status)

        self.by_name[name] = await self._nursery.start(run)
        if self.doors is not None:
            self.doors.leads_to[name] = self.by_name[name].tunnel_address
        await self.know_each_other()
        return self.by_name[name]

    def stop(self, name: str) -> None:
        """Cut a node off at once."""
        if self.doors is not None:
            self.doors.leads_to.pop(name, None)
        self._scopes.pop(name).cancel()
        del self.by_name[name]

    async def know_each_other(self) -> None:
        with trio.fail_after(PATIENCE):
            while any(self.known_to(name) != set(self.by_name) for name in self.by_name):  # noqa: ASYNC110
                await trio.sleep(0.02)

    def known_to(self, name: str) -> set[str]:
        membership = self.by_name[name].store.membership  # type: ignore[attr-defined]
        return set(membership.nodes) if membership is not None else set()

    @asynccontextmanager
    async def agent(
        self,
        name: str,
        targets: dict[str, str],
        device: str = "dev1",
        *,
        at: Address | None = None,
    ) -> AsyncIterator[None]:
        """The device's agent, connected to that node, by a load balancer *at* that address if one
        is given; all nodes can find it.
        """
        url = f"ws://{at or self.by_name[name].tunnel_address}/tunnel/connect"
        async with self.agent_at(url, targets, device):
            await self.holds(name, device)
            yield

    @asynccontextmanager
    async def agent_at(
        self, url: str, targets: dict[str, str], device: str = "dev1", sessions: int = 2
    ) -> AsyncIterator[RunningAgent]:
        """The device's agent, which dials this URL."""
        config = AgentConfig(
            proxy=ProxyEndpoint(url=url, token=Secret(f"token-of-{device}"), sessions=sessions),
            device=Device(name=device),
            services=[
                ServiceConfig(name=service, target=target) for service, target in targets.items()
            ],
            backoff=BackoffConfig(minimum=0.01, early=0.02, maximum=0.1),
        )
        async with trio.open_nursery() as nursery:
            yield await nursery.start(run_agent, config)
            nursery.cancel_scope.cancel()

    async def holds(self, name: str, device: str = "dev1") -> None:
        """Return when that node has the device's session, and the directory says so."""
        store = self.by_name[name].store
        with trio.fail_after(PATIENCE):
            while True:
                if store.own_device(device) and store.membership.generation_of(device):  # type: ignore[attr-defined]
                    return
                await trio.sleep(0.02)

    async def get(self, name: str, path: str = "/", **options: Any) -> Answer:
        """What a visitor of that node is answered; options as for `fetch`."""
        address = self.by_name[name].http_address
        assert address is not None
        return await fetch(address, path, **options)


@asynccontextmanager
async def running_nodes(
    redis: RedisServer,
    names: Sequence[str] = ("a", "b"),
    *,
    doors: Doors | None = None,
    domains: Mapping[str, str] = MappingProxyType({}),
    redis_urls: Mapping[str, str] = MappingProxyType({}),
    **more: Any,
) -> AsyncIterator[Nodes]:
    """These nodes for the length of the block, on an empty Redis."""
    redis.command("FLUSHALL")
    async with trio.open_nursery() as nursery:
        nodes = Nodes(redis, nursery, doors)
        nodes.domains |= domains
        nodes.redis_urls |= redis_urls
        for name in names:
            await nodes.start(name, **more)
        try:
            yield nodes
        finally:
            nursery.cancel_scope.cancel()
