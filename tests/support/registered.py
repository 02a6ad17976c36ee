"""A proxy that follows a registry, and agents with a registry's tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from tunnelmux.config import (
    DeviceConfig,
    HttpIngress,
    Ingress,
    ProxyConfig,
    RegistrySource,
    Secret,
    TunnelListener,
)
from tunnelmux.mux import Session, open_session
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.transports import connect_websocket
from tunnelmux.wire import INSTANCE_FIELD, SERVICES_FIELD

__all__ = ["agent_with", "config_for", "following", "within_bound"]

BOUND = 2.0
"""Seconds from a change in the registry to its effect on every proxy."""


def config_for(
    url: str, *, name: str = "p1", devices: tuple[DeviceConfig, ...] = ()
) -> ProxyConfig:
    return ProxyConfig(
        tunnel=TunnelListener(listen="127.0.0.1:0"),
        ingress=Ingress(http=HttpIngress(listen="127.0.0.1:0")),
        devices=list(devices),
        registry=RegistrySource(url=Secret(url), name=name, migrate=False),
    )


@asynccontextmanager
async def following(config: ProxyConfig) -> AsyncIterator[RunningProxy]:
    """The proxy for the length of the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(run_proxy, config))
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


@asynccontextmanager
async def within_bound() -> AsyncIterator[None]:
    """Fails when the block takes longer than a change may take to have its effect."""
    with trio.fail_after(BOUND):
        yield
