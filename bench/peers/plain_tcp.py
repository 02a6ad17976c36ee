"""Both ends of a tunnel whose yamux runs on plain TCP, as an embedder would put them together.

The daemons speak WebSocket only: that is where a device shows its token. Here nobody is asked for
one, so that what the WebSocket costs can be seen. All else is the daemons' own code.

    python -m bench.peers.plain_tcp proxy TUNNEL_PORT SERVICE=PORT...
    python -m bench.peers.plain_tcp agent TUNNEL_PORT SERVICE=PORT...
"""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from bench.processes import HOST
from tunnelmux.agent.app import run_agent
from tunnelmux.config import Address, AgentConfig, Device, ProxyEndpoint, Secret, ServiceConfig
from tunnelmux.endpoints import dial
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import open_session
from tunnelmux.observability import configure_logs
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.proxy.visitors.ingress_tcp import TcpIngressServer
from tunnelmux.proxy.visitors.listeners import ListenerPlan, ListenerSet
from tunnelmux.pump.data_pump import DataPump, open_pump
from tunnelmux.sessions import LocalHandle, MemoryStore

DEVICE = "bench"
TOKEN = "never-looked-at-0123456789abcdef"  # noqa: S105  nobody is asked for it


async def run_proxy(port: int, services: Mapping[str, int]) -> None:
    """Sessions on `port`, and a TCP port for each service of the one device, until cancelled."""
    store = MemoryStore()
    device = KnownDevice(name=DEVICE, token_sha256=b"")
    ingress = TcpIngressServer(store, DeviceRegister([device]))
    # All visitors here come from one address, a thousand of them at once.
    ingress.configure(IngressLimits(max_streams_per_visitor=1024, reserved_streams=16))
    async with open_pump() as pump, trio.open_nursery() as nursery:
        assert pump is not None  # the bench runs on Linux
        plans = {
            service: ListenerPlan(
                key=service,
                address=Address(HOST, public),
                handler=partial(ingress.handle, DEVICE, service),
                nursery=nursery,
                take=partial(ingress.take, nursery, DEVICE, service),
            )
            for service, public in services.items()
        }
        plans["tunnel"] = ListenerPlan(
            key="tunnel",
            address=Address(HOST, port),
            handler=partial(hold, store, pump),
            nursery=nursery,
        )
        nursery.start_soon(ingress.visits.run)
        problems = await ListenerSet(nursery, pump).apply(plans)
        if problems:
            raise SystemExit("\n".join(map(str, problems)))


async def hold(store: MemoryStore, pump: DataPump, stream: trio.abc.Stream, remote: str) -> None:
    """Register one session until it is over."""
    async with open_session(stream, is_client=False, pump=pump) as session:
        handle = LocalHandle(session, token=TOKEN, device=DEVICE, remote_address=remote)
        await store.register(TOKEN, handle)
        try:
            await session.wait_closed()
        finally:
            await store.unregister(TOKEN, handle)


async def run_device(port: int, services: Mapping[str, int]) -> None:
    """An agent whose tunnel is plain TCP, until cancelled."""

    @asynccontextmanager
    async def dial_plain(*_args: object, **_settings: object) -> AsyncIterator[trio.abc.Stream]:
        async with dial(f"tcp://{HOST}:{port}") as stream:
            yield stream

    await run_agent(
        AgentConfig(
            proxy=ProxyEndpoint(url=f"ws://{HOST}:{port}/", token=Secret(TOKEN)),
            device=Device(name=DEVICE),
            services=[
                ServiceConfig(name=service, target=f"tcp://{HOST}:{target}")
                for service, target in services.items()
            ],
        ),
        dial=dial_plain,
    )


def main(role: str, port: str, *services: str) -> None:
    configure_logs("info", "json")
    gc.collect()
    gc.freeze()  # as the daemons do
    pairs = {name: int(where) for name, _, where in (text.partition("=") for text in services)}
    trio.run({"proxy": run_proxy, "agent": run_device}[role], int(port), pairs)


if __name__ == "__main__":
    main(*sys.argv[1:])
