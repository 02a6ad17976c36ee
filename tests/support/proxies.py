"""A whole proxy on loopback ports, and agents that dial it."""

from __future__ import annotations

import itertools
import random
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from tunnelmux.config import (
    DeviceConfig,
    HttpIngress,
    Ingress,
    ProxyConfig,
    Secret,
    TcpIngress,
    TunnelListener,
)
from tunnelmux.config.access import AccessConfig
from tunnelmux.mux import Session, open_session
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.transports import connect_websocket
from tunnelmux.wire import RELAY_FIELD


def proxy_config(
    *,
    tunnel: str = "127.0.0.1:0",
    http: str | None = "127.0.0.1:0",
    tcp: tuple[str, ...] = (),
    public: bool = False,
    devices: tuple[DeviceConfig, ...] = (
        DeviceConfig(name="dev1", token=Secret("token-of-dev1")),
        DeviceConfig(name="dev2", token=Secret("token-of-dev2")),
    ),
) -> ProxyConfig:
    """A configuration with two devices, on ports of the system's choosing."""
    return ProxyConfig(
        tunnel=TunnelListener(listen=tunnel),
        ingress=Ingress(
            http=HttpIngress(listen=http) if http else None,
            tcp=[TcpIngress(listen=listen, device="dev1", service="ssh") for listen in tcp],
        ),
        access=AccessConfig(let_in=["public"] if public else []),
        devices=list(devices),
    )


@asynccontextmanager
async def running(config: ProxyConfig) -> AsyncIterator[RunningProxy]:
    """The proxy for the length of the block, if it was not drained before."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(run_proxy, config))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def agent_of(
    proxy: RunningProxy, device: str = "dev1", *, relayed: bytes | None = None
) -> AsyncIterator[Session]:
    """An agent's session with the proxy, registered there. *relayed* is what it says of services
    that take raw connections."""
    headers = [(b"Authorization", f"Bearer token-of-{device}".encode())]
    if relayed is not None:
        headers.append((RELAY_FIELD, relayed))
    async with (
        connect_websocket(
            f"ws://{proxy.tunnel_address}/tunnel/connect",
            headers=headers,
        ) as websocket,
        open_session(websocket, is_client=True) as session,
    ):
        assert await proxy.store.wait_for_device(device, trio.current_time() + 30) is not None
        yield session


_LOWEST, _PORTS = 10_000, 20_000
# Below those that Linux gives to connections (32768 and up): none of them can take one meanwhile.

_numbers = itertools.count(random.randrange(_PORTS))

_held: deque[socket.socket] = deque()
_MOST_HELD = 64  # the longest ago are given up: no test is as long as that


def free_port() -> int:
    """A loopback port for a server of a test: no other test and no other program gets it.

    It stays bound here, which keeps all from it but a server that asks for it with SO_REUSEADDR, as
    servers do. Connections to it are refused until there is one.
    """
    while True:
        holder = socket.socket()
        port = _LOWEST + next(_numbers) % _PORTS
        try:
            # Without SO_REUSEADDR: else it would be bound beside the holder of another process.
            holder.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _held.append(holder)
        if len(_held) > _MOST_HELD:
            _held.popleft().close()
        return port
