"""The demo's cast: the page and the TCP service, a proxy, and an agent that joins them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from tunnelmux.agent import run_agent
from tunnelmux.cli.demo.origin import serve_echo, serve_page
from tunnelmux.cli.demo.ports import HOST, free_port
from tunnelmux.config import (
    Address,
    AgentConfig,
    Device,
    DeviceConfig,
    HttpIngress,
    Ingress,
    ProxyConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
    TcpIngress,
    TunnelListener,
)
from tunnelmux.errors import ConfigError, TunnelmuxError
from tunnelmux.proxy import RunningProxy, run_proxy
from tunnelmux.wire import TUNNEL_PATH

__all__ = ["DEVICE", "PREFERRED", "Ports", "Serve", "Stage", "running_stage"]

Serve = Callable[..., Awaitable[object]]
"""A server for `nursery.start`, which returns the addresses it listens on."""

DEVICE = "demo"
_CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the proxy; 0 is one of the system's choosing."""

    http: int
    tunnel: int
    tcp: int


PREFERRED = Ports(http=8080, tunnel=3800, tcp=7007)
"""Those in the documentation, so that its commands work as they stand."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything listens."""

    http: Address
    """Visitors with a browser come in here."""
    tunnel: Address
    """The agent dialled this."""
    tcp: Address
    """A TCP port of the proxy that leads to the device's echo service."""
    page: Address
    """The web page's own port, on the device."""
    echo: Address
    """The echo service's own port, on the device."""
    moved: dict[int, int]
    """Preferred ports that others have, and the ports used instead."""

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{DEVICE}.localhost:{self.http.port}/"

    def facts(self) -> dict[str, str]:
        """The same for programs."""
        return {
            "url": self.url,
            "http": str(self.http),
            "tunnel": str(self.tunnel),
            "tcp": str(self.tcp),
            "device": DEVICE,
        }


@asynccontextmanager
async def running_stage(
    say: Callable[[str], None],
    *,
    serve_page: Serve = serve_page,
    serve_echo: Serve = serve_echo,
    preferred: Ports = PREFERRED,
) -> AsyncIterator[Stage]:
    """All of it for the length of the block, with the agent connected.

    `say` is told each step. A preferred port that is taken is replaced by a free one. Raises
    TunnelmuxError when the agent does not connect.
    """
    async with trio.open_nursery() as nursery:
        page = Address(*(await nursery.start(serve_page))[0])
        say(f"a web page listens on {page}")
        echo = Address(*(await nursery.start(serve_echo))[0])
        say(f"a TCP echo service listens on {echo}")
        token = Secret(secrets.token_urlsafe(24))
        proxy = await _start_proxy(nursery, token, preferred)
        assert proxy.http_address is not None  # its configuration has that ingress
        say(
            f"the proxy listens on {proxy.tunnel_address} for agents, on "
            f"{proxy.http_address} for visitors"
        )
        started = trio.current_time()
        await nursery.start(
            partial(run_agent, _agent_config(proxy.tunnel_address, token, page, echo))
        )
        until = started + _CONNECT_TIMEOUT
        if await proxy.store.wait_for_device(DEVICE, until) is None:
            raise TunnelmuxError(
                f"the agent did not connect within {_CONNECT_TIMEOUT:g} s: run it with --verbose "
                "to see why"
            )
        say(f'the agent connected as "{DEVICE}" in {(trio.current_time() - started) * 1000:.0f} ms')
        yield _stage(proxy, page, echo, preferred)
        nursery.cancel_scope.cancel()


async def _start_proxy(nursery: trio.Nursery, token: Secret, preferred: Ports) -> RunningProxy:
    ports = Ports(*map(free_port, (preferred.http, preferred.tunnel, preferred.tcp)))
    try:
        proxy: RunningProxy = await nursery.start(partial(run_proxy, _proxy_config(ports, token)))
    except ConfigError:
        # Another program took one after we looked; a port that the system chooses is free.
        config = _proxy_config(Ports(0, 0, 0), token)
        proxy = await nursery.start(partial(run_proxy, config))
    return proxy


def _proxy_config(ports: Ports, token: Secret) -> ProxyConfig:
    return ProxyConfig(
        tunnel=TunnelListener(listen=f"{HOST}:{ports.tunnel}"),
        ingress=Ingress(
            http=HttpIngress(listen=f"{HOST}:{ports.http}"),
            tcp=[TcpIngress(listen=f"{HOST}:{ports.tcp}", device=DEVICE, service="echo")],
        ),
        devices=[DeviceConfig(name=DEVICE, token=token)],
    )


def _agent_config(tunnel: Address, token: Secret, page: Address, echo: Address) -> AgentConfig:
    return AgentConfig(
        proxy=ProxyEndpoint(url=f"ws://{tunnel}{TUNNEL_PATH}", token=token),
        device=Device(name=DEVICE),
        services=[
            ServiceConfig(name="web", target=f"http://{page}"),
            ServiceConfig(name="echo", target=f"tcp://{echo}"),
        ],
    )


def _stage(proxy: RunningProxy, page: Address, echo: Address, preferred: Ports) -> Stage:
    http, tunnel, (tcp,) = proxy.http_address, proxy.tunnel_address, proxy.tcp_addresses
    assert http is not None
    wanted = {preferred.http: http, preferred.tunnel: tunnel, preferred.tcp: tcp}
    return Stage(
        http=http,
        tunnel=tunnel,
        tcp=tcp,
        page=page,
        echo=echo,
        moved={port: got.port for port, got in wanted.items() if port and port != got.port},
    )
