"""The proxy's Socket.IO side on a loopback port, without the rest of a proxy."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from support.socketio_peers import API_KEY, PROXY_ID
from tunnelmux.commands import CommandRequest, Event, Exited, collect
from tunnelmux.config import LimitsConfig, ProxyConfig, Secret, SocketIOAgent, SocketIOListener
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.commands.socketio_agents import AgentServer, agent_settings
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.sessions import MemoryStore
from tunnelmux.socketio import Socket, connect_socketio, parse_socketio_url
from tunnelmux.transports import bound_addresses

__all__ = ["AgentSide", "agent_side", "handle_connection", "known_agent", "request"]


def known_agent(name: str = PROXY_ID, group: str | None = None) -> SocketIOAgent:
    """An agent that may connect with the tests' key."""
    return SocketIOAgent(proxy_id=name, api_key=Secret(API_KEY), group=group)


def request(command_id: str = "c1", command: str = "echo hello", **more: object) -> CommandRequest:
    """A command as the seed gives it."""
    content = {
        "commandId": command_id,
        "host": "192.0.2.7",
        "username": "root",
        "password": "pw",
        "command": command,
        "timeout": 30_000,
    }
    return CommandRequest.from_json(content | more)


class AgentSide:
    """A listener for agents, and the dispatcher that finds them."""

    def __init__(self, server: AgentServer, dispatcher: Dispatcher, port: int) -> None:
        self.server = server
        self.dispatcher = dispatcher
        self.port = port

    async def connected(self, *names: str) -> None:
        """Return when exactly these agents are connected."""
        with trio.fail_after(30):
            while self.server.connected != sorted(names):  # noqa: ASYNC110  nobody tells
                await trio.sleep(0.01)

    async def heard_of(self, name: str, times: int) -> None:
        """Return when packets of this one agent came at so many times from now on; all the while
        it is connected."""
        [session] = self.server._sessions.values()
        with trio.fail_after(30):
            for _ in range(times):
                last = session.engine.heard
                while session.engine.heard == last:  # noqa: ASYNC110  nobody tells
                    await trio.sleep(0.01)
        assert self.server.connected == [name]
        assert list(self.server._sessions.values()) == [session]

    async def run(self, name: str, command: CommandRequest) -> tuple[list[Event], Exited]:
        """Run a command on an agent or a group: its events, and its end."""
        events: list[Event] = []

        async def emit(event: Event) -> None:
            events.append(event)

        with trio.fail_after(30):
            end = await self.dispatcher.run(name, command, asked_by="test", emit=emit)
        return events, end

    async def result(self, name: str, command: CommandRequest) -> dict[str, object]:
        """The seed's result object of a command."""
        events, end = await self.run(name, command)

        async def again() -> AsyncIterator[Event]:
            for event in [*events, end]:
                yield event

        return (await collect(again())).to_json()

    @asynccontextmanager
    async def agent(
        self, name: str = PROXY_ID, *, transports: str = "websocket", **auth: object
    ) -> AsyncIterator[Socket]:
        """An agent by our own client, that does what the test does."""
        url = parse_socketio_url(f"http://127.0.0.1:{self.port}", namespace="/proxy")
        content = {"proxyId": name, "apiKey": API_KEY, **auth}
        async with connect_socketio(url, auth=content, transports=transports) as socket:  # type: ignore[arg-type]
            yield socket


@asynccontextmanager
async def agent_side(
    *agents: SocketIOAgent,
    limits: LimitsConfig | None = None,
    path: str = "/socket.io/",
    port: int = 0,
    allow_eio3: bool = False,
    settle: float = 30.0,
    trusted_proxies: tuple[str, ...] = (),
) -> AsyncIterator[AgentSide]:
    """The proxy's side for the length of the block; by default PROXY_ID may connect. Clients of
    Socket.IO 2 that stay in "/" are served after `settle` seconds."""
    config = ProxyConfig(
        socketio=SocketIOListener(
            listen="127.0.0.1:0",
            path=path,
            allow_eio3=allow_eio3,
            trusted_proxies=list(trusted_proxies),
            agents=list(agents or [known_agent()]),
        ),
        limits=limits or LimitsConfig(),
    )
    assert config.socketio is not None
    dispatcher = Dispatcher(MemoryStore(), DeviceRegister(()))
    settings = dataclasses.replace(agent_settings(config), settle=settle, goodbye=0.2)
    server = AgentServer(dispatcher, settings)
    server.configure(settings, config.socketio.agents)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        handle = partial(handle_connection, server)
        await nursery.start(partial(trio.serve_listeners, handle, listeners))
        try:
            yield AgentSide(server, dispatcher, bound_addresses(listeners)[0][1])
        finally:
            with trio.move_on_after(3, shield=True):
                await server.aclose()
            nursery.cancel_scope.cancel()


async def handle_connection(server: AgentServer, stream: trio.SocketStream) -> None:
    """Serve a connection as the proxy's listener does."""
    host, port = stream.socket.getpeername()[:2]
    place = server.admission.enter(f"{host}:{port}")
    if place is not None:
        await server.handle(stream, f"{host}:{port}", place)


def limits_with(**changes: object) -> LimitsConfig:
    """The proxy's limits with some of them changed, wherever they stand."""
    config = LimitsConfig()
    parts = {}
    for name in ("session", "ingress", "internal", "socketio"):
        part = getattr(config, name)
        own = {key: changes.pop(key) for key in list(changes) if hasattr(part, key)}
        parts[name] = dataclasses.replace(part, **own)
    assert not changes, f"no such limits: {sorted(changes)}"
    return LimitsConfig(**parts)
