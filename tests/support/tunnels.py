"""A proxy and its agents as processes, configured with files as an operator would."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio
import trio_websocket

from support.daemons import Daemon, DaemonSet
from support.visitor import Answer, fetch
from tunnelmux.config import Address

__all__ = ["Tunnel"]

GRACE = 2.0
"""Seconds of drain, where a test does not say otherwise: what it left open must not hold it up."""


class Tunnel:
    """One proxy with its agents; `start_proxy` first."""

    proxy: Daemon
    at_tunnel: Address
    at_http: Address

    def __init__(self, daemons: DaemonSet) -> None:
        self.daemons = daemons
        self.agents: dict[str, Daemon] = {}
        self.tokens: dict[str, str] = {}
        """Those of the devices; another proxy may know the same."""

    def token(self, device: str) -> str:
        """The device's token, which no process may ever write."""
        if device not in self.tokens:
            self.tokens[device] = secrets.token_hex(16)
            self.daemons.secrets.add(self.tokens[device])
        return self.tokens[device]

    # -- the proxy --------------------------------------------------------------------------

    def proxy_file(
        self,
        *,
        devices: Sequence[str] = ("dev1", "dev2"),
        tcp: Sequence[tuple[str, str, str]] = (),
        tunnel: str = "127.0.0.1:0",
        http: str = "127.0.0.1:0",
        in_http: str = "",
        more: str = "",
    ) -> str:
        """proxy.toml; *tcp* has (listen, device, service), *in_http* goes into [ingress.http],
        *more* to the end."""
        lines = [
            f'[tunnel]\nlisten = "{tunnel}"',
            f'[ingress.http]\nlisten = "{http}"\n{in_http}',
            *(
                f'[[ingress.tcp]]\nlisten = "{listen}"\ndevice = "{device}"\nservice = "{service}"'
                for listen, device, service in tcp
            ),
            *(f'[[devices]]\nname = "{name}"\ntoken = "{self.token(name)}"' for name in devices),
            more if "[drain]" in more else f"[drain]\ngrace = {GRACE}\n{more}",
        ]
        return "\n".join(lines) + "\n"

    async def start_proxy(
        self,
        *,
        devices: Sequence[str] = ("dev1", "dev2"),
        tcp: Sequence[tuple[str, str, str]] = (),
        more: str = "",
    ) -> None:
        """Start it on ports of the system's choosing, and wait until it listens."""
        configuration = self.proxy_file(devices=devices, tcp=tcp, more=more)
        self.proxy = await self.daemons.start("proxy", configuration)
        self.at_tunnel = await self.proxy.listening("tunnel.listen")
        self.at_http = await self.proxy.listening("ingress.http.listen")

    async def at_tcp(self, index: int = 0) -> Address:
        """Where the TCP ingress with that index listens."""
        return await self.proxy.listening(f"ingress.tcp[{index}].listen")

    # -- agents -----------------------------------------------------------------------------

    def agent_file(
        self,
        services: Mapping[str, str],
        *,
        device: str = "dev1",
        token: str | None = None,
        more: str = "",
    ) -> str:
        """agent.toml; *services* are targets by name, *more* goes to the end."""
        lines = [
            f'[proxy]\nurl = "ws://{self.at_tunnel}/tunnel/connect"',
            f'token = "{token or self.token(device)}"',
            f'[device]\nname = "{device}"',
            *(
                f'[[services]]\nname = "{name}"\ntarget = "{target}"'
                for name, target in services.items()
            ),
            more if "[drain]" in more else f"[drain]\ngrace = {GRACE}\n{more}",
        ]
        return "\n".join(lines) + "\n"

    async def start_agent(
        self, services: Mapping[str, str], *, device: str = "dev1", more: str = ""
    ) -> Daemon:
        """Start the device's agent, and wait until both sides have its session."""
        since = len(self.proxy.events)
        configuration = self.agent_file(services, device=device, more=more)
        agent = self.agents[device] = await self.daemons.start("agent", configuration)
        await agent.logged("session started")
        await self.proxy.logged("session started", since=since, device=device)
        return agent

    @asynccontextmanager
    async def dial(self, device: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
        """The device's WebSocket to the proxy, without an agent behind it."""
        # Not open_websocket: it leaves its socket open when the other side cuts the connection.
        async with await self.visit(self.at_tunnel) as stream, trio.open_nursery() as nursery:
            yield await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                str(self.at_tunnel),
                "/tunnel/connect",
                subprotocols=["tunnelmux.v1"],
                extra_headers=[(b"Authorization", b"Bearer " + self.token(device).encode("ascii"))],
            )
            nursery.cancel_scope.cancel()

    # -- visitors ---------------------------------------------------------------------------

    async def fetch(self, path: str = "/", **options: object) -> Answer:
        """One request of `support.visitor.fetch` through the HTTP ingress."""
        return await fetch(self.at_http, path, **options)  # type: ignore[arg-type]

    async def still_works(self, device: str = "dev1") -> None:
        """See that the device's sessions is up and its page comes through."""
        with trio.fail_after(30):
            answer = await self.fetch(device=device)
        assert (answer.status, answer.body) == (200, b"hello\n")

    async def visit(self, address: Address | None = None) -> trio.SocketStream:
        """A connection of a visitor, to the HTTP ingress or to *address*."""
        where = address or self.at_http
        return await trio.open_tcp_stream(where.host, where.port)
