"""Another main server in the configuration of a running agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import handle_connection, known_agent
from tunnelmux.agent import run_agent
from tunnelmux.config import (
    AgentConfig,
    Device,
    ExecConfig,
    MainServer,
    ProxyConfig,
    Secret,
    SocketIOListener,
)
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.commands.socketio_agents import AgentServer, agent_settings
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.sessions import MemoryStore


@asynccontextmanager
async def main_server() -> AsyncIterator[tuple[AgentServer, int]]:
    listener = SocketIOListener(listen="127.0.0.1:0", agents=[known_agent()])
    settings = agent_settings(ProxyConfig(socketio=listener))
    server = AgentServer(Dispatcher(MemoryStore(), DeviceRegister(())), settings)
    server.configure(settings, listener.agents)

    async def handle(stream: trio.SocketStream) -> None:
        await handle_connection(server, stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(trio.serve_listeners, handle, listeners))
        yield server, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def until_connected(server: AgentServer, names: list[str]) -> None:
    with trio.fail_after(20):
        while server.connected != names:  # noqa: ASYNC110  no event says so
            await trio.sleep(0.01)


async def test_a_reload_changes_the_main_server_and_leaves_an_unchanged_one_alone() -> None:
    def config(port: int, **more: object) -> AgentConfig:
        main = MainServer(
            url=f"http://127.0.0.1:{port}", proxy_id=PROXY_ID, api_key=Secret(API_KEY)
        )
        return AgentConfig(socketio=main, device=Device(name="dev1"), **more)

    async with (
        main_server() as (first, port),
        main_server() as (second, other),
        trio.open_nursery() as nursery,
    ):
        agent = await nursery.start(run_agent, config(port))
        await until_connected(first, [PROXY_ID])
        client = agent.main_server
        with trio.fail_after(20):
            await client.wait_connected()
        await agent.reload(config(port, exec=ExecConfig(hosts=["10.0.0.1"])))
        assert agent.main_server is client
        assert client.is_connected
        await agent.reload(config(other))
        await until_connected(second, [PROXY_ID])
        await until_connected(first, [])
        with trio.fail_after(20):
            await agent.drain(1.0)
        await until_connected(second, [])
