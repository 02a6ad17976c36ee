"""A proxy that follows a registry, and agents with a registry's tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from tunnelmux.agent import run_agent
from tunnelmux.agent.app import RunningAgent
from tunnelmux.config import (
    AgentConfig,
    Device,
    DeviceConfig,
    HttpIngress,
    Ingress,
    ProxyConfig,
    ProxyEndpoint,
    RegistrySource,
    Secret,
    ServiceConfig,
    TunnelListener,
)
from tunnelmux.config.access import AccessConfig, ServiceAccess
from tunnelmux.mux import Session, open_session
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.transports import connect_websocket
from tunnelmux.wire import INSTANCE_FIELD, SERVICES_FIELD

__all__ = [
    "BOUND",
    "agent_at",
    "agent_config",
    "agent_with",
    "config_for",
    "following",
    "within_bound",
]

BOUND = 20.0
"""Seconds from a change in the registry to its effect on every proxy, on the busiest machine; on a
quiet one it is 2."""


def config_for(
    url: str,
    *,
    name: str = "p1",
    devices: tuple[DeviceConfig, ...] = (),
    public: tuple[str, ...] = (),
) -> ProxyConfig:
    """Devices in *public* may be visited by everybody."""
    return ProxyConfig(
        tunnel=TunnelListener(listen="127.0.0.1:0"),
        ingress=Ingress(http=HttpIngress(listen="127.0.0.1:0")),
        access=AccessConfig(
            rules=[ServiceAccess(device=device, let_in=["public"]) for device in public]
        ),
        devices=list(devices),
        registry=RegistrySource(url=Secret(url), name=name, migrate=False),
    )


@asynccontextmanager
async def following(config: ProxyConfig, *, loaded: bool = True) -> AsyncIterator[RunningProxy]:
    """The proxy for the length of the block, which begins when it has read the registry."""
    async with trio.open_nursery() as nursery:
        proxy = await nursery.start(partial(run_proxy, config))
        if loaded:
            # On a busy machine that takes longer than the proxy waits before it listens.
            await proxy.registered.wait_loaded(50)
        yield proxy
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def agent_with(
    proxy: RunningProxy, token: Secret, *, services: str = "", instance: str = "one"
) -> AsyncIterator[Session]:
    """An agent's session, made with this token."""
    headers = [
        (b"Authorization", f"Bearer {token.reveal()}".encode()),
        (b"User-Agent", b"tunnelmux/9.9"),
        (SERVICES_FIELD, services.encode()),
        (INSTANCE_FIELD, instance.encode()),
    ]
    url = f"ws://{proxy.tunnel_address}/tunnel/connect"
    async with (
        connect_websocket(url, headers=headers) as websocket,
        open_session(websocket, is_client=True) as session,
    ):
        yield session


def agent_config(
    proxy: RunningProxy, target: str = "http://127.0.0.1:1", **token: Any
) -> AgentConfig:
    """Of an agent with one service, `web`."""
    return AgentConfig(
        device=Device(name="cam1"),
        proxy=ProxyEndpoint(url=f"ws://{proxy.tunnel_address}/tunnel/connect", **token),
        services=[ServiceConfig(name="web", target=target)],
    )


@asynccontextmanager
async def agent_at(config: AgentConfig, **more: Any) -> AsyncIterator[RunningAgent]:
    """A real agent that is connected, for the length of the block."""
    async with trio.open_nursery() as nursery:
        agent = await nursery.start(partial(run_agent, config, **more))
        with trio.fail_after(20):
            await agent.wait_connected()
        yield agent
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def within_bound() -> AsyncIterator[None]:
    """Fails when the block takes longer than a change may take to have its effect."""
    with trio.fail_after(BOUND):
        yield
