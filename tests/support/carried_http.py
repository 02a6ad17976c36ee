"""A proxy, an agent, and a visitor whose requests the pump carries to a target the test plays."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from support.http_rig import Peer
from support.proxies import proxy_config, running
from tunnelmux.agent import run_agent
from tunnelmux.config import (
    AgentConfig,
    AgentLimitsConfig,
    Device,
    HttpIngress,
    Ingress,
    LimitsConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.endpoints import dial
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy import RunningProxy
from tunnelmux.transports.handshake import Headers
from tunnelmux.wire import RELAY_FIELD

__all__ = ["OK", "WAYS", "Target", "dial_like_older_agents", "get", "rig"]

WAYS = ["kept", "direct"]
"""How a visitor can come to be carried: after a first request that h11 read, or at once, without a
task, because a request to that host was carried before."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Target:
    """A device's web server that the test plays: each connection is a Peer."""

    way = "kept"

    trust: ssl.SSLContext | None = None
    """What visitors trust, when they come in over TLS."""

    visitor: Peer

    def __init__(self, proxy: RunningProxy, incoming: object) -> None:
        self.proxy = proxy
        self.visitors: list[trio.SocketStream] = []
        self._incoming = incoming

    async def connection(self) -> Peer:
        with trio.fail_after(20):
            return await self._incoming.receive()  # type: ignore[attr-defined,no-any-return]

    async def first_exchange(self) -> None:
        """The one that h11 reads; after it, the pump has the connection, or the one of a new
        visitor."""
        await self.visitor.send(b"GET /first HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n")
        peer = await self.connection()
        assert (await peer.read_head()).startswith(b"GET /first ")
        await peer.send(OK + b"ok")
        assert b"Tunnelmux" not in await self.visitor.read_head()
        assert await self.visitor.read_exactly(2) == b"ok"
        await peer.stream.aclose()
        if self.way == "direct":
            peer = await self.carried_exchange()
            await self.visitor.stream.aclose()
            assert await peer.read_all() == b""
            await peer.stream.aclose()
            self.visitor = await self.new_visitor()

    async def new_visitor(self) -> Peer:
        address = self.proxy.http_address
        assert address is not None
        stream = await trio.open_tcp_stream(*address)
        self.visitors.append(stream)
        if self.trust is None:
            return Peer(stream)
        return Peer(trio.SSLStream(stream, self.trust, server_hostname="dev1.localhost"))

    async def carried_exchange(self) -> Peer:
        """One that h11 reads and the pump serves: what follows is scanned."""
        peer, _ = await self.ask(get("/carried"))
        await peer.send(OK + b"ok")
        assert await self.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        return peer

    async def ask(self, data: bytes) -> tuple[Peer, bytes]:
        """Send a request; the connection it arrives on, and its head."""
        await self.visitor.send(data)
        peer = await self.connection()
        return peer, await peer.read_head()


def dial_like_older_agents(
    url: str, *, headers: Headers = (), **more: Any
) -> AbstractAsyncContextManager[trio.abc.Stream]:
    """`dial` for an agent that does not announce which services take raw connections."""
    headers = [(name, value) for name, value in headers if name != RELAY_FIELD]
    return dial(url, headers=headers, **more)


def get(path: str, extra: str = "", host: str = "dev1.localhost") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode()


@asynccontextmanager
async def rig(
    limits: IngressLimits | None = None,
    *,
    host: str | None = None,
    parent_cookies: bool = False,
    tls: tuple[Path, ssl.SSLContext] | None = None,
    trusted_fields: list[str] | None = None,
    proxies_keep_logins: bool = False,
    keeps_idle: bool = False,
    announces: bool = False,
) -> AsyncIterator[Target]:
    """A proxy, an agent with one web service, and one visitor's connection.

    With *tls*, a folder with cert.pem and key.pem and what trusts it, visitors come in over TLS.
    Without *announces*, the agent is one that does not say at its connect which services take raw
    connections: so the first request of its session is h11's at both ends.
    With *keeps_idle*, connections to the target are kept between visitors.
    With *trusted_fields*, they are a trusted proxy, which may say these as well."""
    limits = limits or IngressLimits()
    if not keeps_idle:  # so that the end of a visitor is the end of what it used
        limits = replace(limits, max_idle_targets=0)
    ingress = LimitsConfig(ingress=limits)
    config = msgspec.structs.replace(proxy_config(), limits=ingress)
    http = HttpIngress(
        listen="127.0.0.1:0",
        parent_cookies=parent_cookies,
        trusted_proxies=[] if trusted_fields is None else ["127.0.0.1"],
        trusted_fields=trusted_fields or [],
        proxies_keep_logins=proxies_keep_logins,
    )
    if tls is not None:
        http = msgspec.structs.replace(
            http, tls_certificate=tls[0] / "cert.pem", tls_key=tls[0] / "key.pem"
        )
    config = msgspec.structs.replace(config, ingress=Ingress(http=http))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    arrived, incoming = trio.open_memory_channel[Peer](100)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await arrived.send(Peer(stream))
            await trio.sleep_forever()

    agent = AgentConfig(
        proxy=ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("token-of-dev1")),
        device=Device(name="dev1"),
        services=[ServiceConfig(name="web", target=f"http://127.0.0.1:{port}", host=host)],
        limits=AgentLimitsConfig(ingress=ingress.ingress),
    )
    async with running(config) as proxy, trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, listeners)
        url = f"ws://{proxy.tunnel_address}/tunnel/connect"
        endpoint = ProxyEndpoint(url=url, token=Secret("token-of-dev1"))
        ours = partial(run_agent, dial=dial if announces else dial_like_older_agents)
        await nursery.start(ours, msgspec.structs.replace(agent, proxy=endpoint))
        assert await proxy.store.wait_for_device("dev1", trio.current_time() + 30)
        target = Target(proxy, incoming)
        target.trust = tls[1] if tls is not None else None
        target.visitor = await target.new_visitor()
        try:
            with trio.fail_after(30):
                yield target
        finally:
            for visitor in target.visitors:
                visitor.socket.close()
        nursery.cancel_scope.cancel()
