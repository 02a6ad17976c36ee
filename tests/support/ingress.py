"""The proxy's ingress on a real store and real sessions, with hand-driven agents behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from support.http_rig import Peer
from support.resettable import resettable_pair
from support.sessions import session_pair
from tunnelmux.config import HttpIngress
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux import Session
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.proxy.visitors.ingress_http import HttpIngressServer
from tunnelmux.proxy.visitors.ingress_tcp import TcpIngressServer
from tunnelmux.sessions import LocalHandle, MemoryStore

__all__ = ["Site", "running_site"]


class Site:
    """Ingress servers for the devices dev1 and dev2 (and dev3, disabled), all offline at first."""

    def __init__(self, nursery: trio.Nursery, limits: IngressLimits, trusted: list[str]) -> None:
        known = [
            KnownDevice(name=name, token_sha256=name.encode() * 8, enabled=name != "dev3")
            for name in ("dev1", "dev2", "dev3")
        ]
        self.store = MemoryStore()
        self.http = HttpIngressServer(self.store, DeviceRegister(known))
        self.tcp = TcpIngressServer(self.store, DeviceRegister(known))
        self.http.configure(HttpIngress(listen="127.0.0.1:0", trusted_proxies=trusted), limits)
        self.tcp.configure(limits)
        self._nursery = nursery

    def visit(self, remote: str = "203.0.113.7:50000") -> Peer:
        """A new visitor of the HTTP ingress."""
        front, inner = resettable_pair()
        self._nursery.start_soon(self.http.handle, inner, remote)
        return Peer(front)

    def dial(
        self, service: str = "ssh", device: str = "dev1", remote: str = "203.0.113.7:50000"
    ) -> Peer:
        """A new visitor of the TCP ingress for a service."""
        front, inner = resettable_pair()
        self._nursery.start_soon(self.tcp.handle, device, service, inner, remote)
        return Peer(front)

    @asynccontextmanager
    async def agent(
        self, device: str = "dev1", limits: Limits | None = None
    ) -> AsyncIterator[Agent]:
        """The device's agent, online for the length of the block."""
        async with session_pair(limits=limits) as (client, server):
            handle = LocalHandle(server, token=f"token-{device}", device=device)
            await self.store.register(handle.token, handle)
            try:
                yield Agent(client)
            finally:
                await self.store.unregister(handle.token, handle)


class Agent:
    """An agent's session, its streams served by the test itself."""

    def __init__(self, session: Session) -> None:
        self.session = session

    async def stream(self) -> Peer:
        """The next stream that the proxy opens."""
        return Peer(await self.session.accept_stream())

    async def serve(self, answer: bytes) -> bytes:
        """Give this answer to the next request; answers the request's head."""
        stream = await self.stream()
        head = await stream.read_head()
        await stream.send(answer)
        await stream.end()
        return head


@asynccontextmanager
async def running_site(
    *, limits: IngressLimits | None = None, trusted: list[str] | None = None
) -> AsyncIterator[Site]:
    """A site; what still runs when the block is left is cancelled."""
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            yield Site(nursery, limits or IngressLimits(), trusted or [])
            nursery.cancel_scope.cancel()
