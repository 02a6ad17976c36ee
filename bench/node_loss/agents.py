"""Thousands of agents in one process: `python -m bench.node_loss.agents SETTINGS`, a JSON file.

Each is `tunnelmux.agent.run_agent` with a session over TLS, its own back-off and its own pings. Not
as on a device: many share a process and its pump; each dials from a loopback address of its own,
and its service is on that address too, served by one listener for all, which answers with the
device's name; and the load balancer that `proxy.url` would name is a function here (`Balancer`).
The process yields to others (nice): a node does not share its processor with its devices.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import math
import os
import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from bench.failures.devices import answer
from bench.fleet import device_name, device_token
from tunnelmux.agent import run_agent, tunnels
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.endpoints import dial
from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.observability import configure_logs
from tunnelmux.pump.data_pump import DataPump, open_pump

BALANCER = "wss://balancer.invalid/tunnel/connect"
"""What agents have as `proxy.url`."""

FIRST_ADDRESS = int(ipaddress.IPv4Address("127.16.0.0"))


NICENESS = 10
"""Of these processes (nice(1)): they get what processor time the nodes leave."""


class Settings(msgspec.Struct):
    """One process of agents."""

    first: int
    count: int
    sessions: int
    start_within: float
    """Seconds over which the agents start: devices do not boot in one instant."""
    pin: str
    nodes: list[str]
    """The URLs that the balancer leads to."""
    keeps_logs: bool


_address: ContextVar[str] = ContextVar("_address")


def address_of(number: int) -> str:
    """The loopback address of that device."""
    return str(ipaddress.IPv4Address(FIRST_ADDRESS + number))


class Sockets(trio.abc.SocketFactory):
    """Sockets of a device dial from its address: a proxy limits new connections by address."""

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> trio.socket.SocketType:
        made = socket.socket(family, type, proto)
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((_address.get(), 0))
        return trio.socket.from_stdlib_socket(made)


IP_BIND_ADDRESS_NO_PORT = 24
"""The port is chosen when it connects (ip(7)); the socket module of 3.11 has no name for it."""


LEFT_OUT = 10.0
"""Seconds for which the balancer does not try a node that could not be reached: what nginx has for
`fail_timeout`."""


class Balancer:
    """It leads to each node in turn, and to the next one where one cannot be reached."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._tried_from = dict.fromkeys(nodes, -math.inf)
        self._turn = random.randrange(len(nodes))

    @asynccontextmanager
    async def dial(self, url: str, **settings: Any) -> AsyncIterator[trio.abc.Stream]:
        """As `endpoints.dial`."""
        if url != BALANCER:
            async with dial(url, **settings) as transport:
                yield transport
            return
        async with AsyncExitStack() as stack:
            yield await self._first(stack, settings)

    async def _first(self, stack: AsyncExitStack, settings: dict[str, Any]) -> trio.abc.Stream:
        *others, last = self._in_turn()
        for node in others:
            try:
                return await stack.enter_async_context(dial(node, **settings))
            except ConnectRefused:
                raise
            except ConnectError:
                self._tried_from[node] = trio.current_time() + LEFT_OUT
        return await stack.enter_async_context(dial(last, **settings))

    def _in_turn(self) -> list[str]:
        """The nodes to try; all of them when none is left."""
        self._turn += 1
        now, nodes = trio.current_time(), list(self._tried_from)
        order = [nodes[(self._turn + n) % len(nodes)] for n in range(len(nodes))]
        return [node for node in order if self._tried_from[node] <= now] or order


async def main(settings: Settings) -> None:
    trio.socket.set_custom_socket_factory(Sockets())
    balancer = Balancer(settings.nodes)
    listener = trio.SocketListener(_listening())
    port = listener.socket.getsockname()[1]
    async with open_pump() as pump, trio.open_nursery() as nursery:
        # A pump for each agent would wake and look about apart from the others, which a process
        # of one agent does not do.
        tunnels.open_pump = partial(_lend, pump)  # type: ignore[attr-defined]
        nursery.start_soon(partial(trio.serve_listeners, _serve, [listener]))
        for number in range(settings.first, settings.first + settings.count):
            nursery.start_soon(_run, settings, balancer, number, port)


@asynccontextmanager
async def _lend(pump: DataPump | None) -> AsyncIterator[DataPump | None]:
    """In the place of `open_pump`."""
    yield pump


def _listening() -> trio.socket.SocketType:
    listening = socket.create_server(("0.0.0.0", 0), backlog=4096)  # noqa: S104  one for 127/8
    listening.setblocking(False)
    return trio.socket.from_stdlib_socket(listening)


async def _serve(stream: trio.SocketStream) -> None:
    here = ipaddress.IPv4Address(stream.socket.getsockname()[0])
    await answer(device_name(int(here) - FIRST_ADDRESS).encode(), stream)


async def _run(settings: Settings, balancer: Balancer, number: int, port: int) -> None:
    await trio.sleep(random.uniform(0, settings.start_within))
    _address.set(address_of(number))
    token = Secret(device_token(number))
    config = AgentConfig(
        proxy=ProxyEndpoint(
            url=BALANCER,
            token=token,
            pin=settings.pin,
            sessions=settings.sessions,
            http_proxy=Secret(""),
        ),
        device=Device(name=device_name(number)),
        services=[ServiceConfig(name="web", target=f"http://{address_of(number)}:{port}")],
    )
    await run_agent(config, dial=balancer.dial)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    given = parser.parse_args()
    settings = msgspec.json.decode(given.settings.read_bytes(), type=Settings)
    configure_logs("info" if settings.keeps_logs else "error", "json")
    os.nice(NICENESS)
    gc.set_threshold(100_000, 50, 1000)  # its time grows with all that the process has
    trio.run(main, settings)
