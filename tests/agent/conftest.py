"""An agent, a proxy that the test drives, and targets on the loopback interface."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import trio

from support.fake_proxy import FakeProxy, fake_proxy
from tunnelmux.agent import RunningAgent, run_agent
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig

Target = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    async with fake_proxy() as running:
        yield running


@pytest.fixture
async def start_target(nursery: trio.Nursery) -> Callable[[Target], Awaitable[int]]:
    """`await start_target(handler)` is the port of a local program that does `handler`."""

    async def start(handler: Target) -> int:
        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await handler(stream)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve, listeners)
        return int(listeners[0].socket.getsockname()[1])

    return start


@pytest.fixture
def make_config(proxy: FakeProxy) -> Callable[..., AgentConfig]:
    """An agent's configuration for the proxy of this test; keywords replace its parts."""

    def make(*services: ServiceConfig, **changes: object) -> AgentConfig:
        config = AgentConfig(
            proxy=ProxyEndpoint(url=proxy.url, token=Secret("dev1-token")),
            device=Device(name="dev1"),
            services=list(services) or [ServiceConfig(name="nothing", target="tcp://127.0.0.1:1")],
        )
        return msgspec.structs.replace(config, **changes)

    return make


@pytest.fixture
def start_agent(nursery: trio.Nursery) -> Callable[[AgentConfig], Awaitable[RunningAgent]]:
    async def start(config: AgentConfig) -> RunningAgent:
        agent: RunningAgent = await nursery.start(run_agent, config)
        return agent

    return start
