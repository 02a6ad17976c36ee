"""A main server that is reached through an HTTP proxy, by a name that only that one knows."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trustme

from support.http_proxy import connect_proxy
from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import handle_connection, known_agent
from tunnelmux.agent import run_agent
from tunnelmux.config import (
    AgentConfig,
    Device,
    MainServer,
    ProxyConfig,
    Secret,
    SocketIOListener,
)
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.commands.socketio_agents import AgentServer, agent_settings
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.sessions import MemoryStore

NAME = "main.example.test"


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_main_server_is_reached_through_an_http_proxy(tmp_path, transports, scheme):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = {}
    if scheme == "https":
        authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(tmp_path / "c.pem")
        files = {"tls_certificate": tmp_path / "c.pem", "tls_key": tmp_path / "c.pem"}
    listener = SocketIOListener(listen="127.0.0.1:0", agents=[known_agent()], **files)
    settings = agent_settings(ProxyConfig(socketio=listener))
    server = AgentServer(Dispatcher(MemoryStore(), DeviceRegister(())), settings)
    server.configure(settings, listener.agents)

    async def handle(stream):
        await handle_connection(server, stream)

    async with trio.open_nursery() as nursery, connect_proxy(names={NAME: "127.0.0.1"}) as http:
        await nursery.start(server.run)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(partial(trio.serve_listeners, handle, listeners))
        port = listeners[0].socket.getsockname()[1]
        main = MainServer(
            url=f"{scheme}://{NAME}:{port}",
            proxy_id=PROXY_ID,
            api_key=Secret(API_KEY),
            transports=transports,
            ca_file=tmp_path / "ca.pem" if scheme == "https" else None,
            http_proxy=Secret(f"http://user:s3cret@127.0.0.1:{http.port}"),
        )
        config = AgentConfig(socketio=main, device=Device(name="dev1"))
        agent = await nursery.start(run_agent, config)
        with trio.fail_after(20):
            await agent.main_server.wait_connected()
        assert server.connected == [PROXY_ID]
        assert set(http.asked) == {f"{NAME}:{port}"}
        assert all("Proxy-Authorization: Basic " in head for head in http.heads)
        nursery.cancel_scope.cancel()
