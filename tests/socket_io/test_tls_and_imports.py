"""TLS on both ends of the Socket.IO side, and what stays out of a daemon that has none of it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import trio
import trustme

from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import handle_connection, known_agent
from tunnelmux.config import ProxyConfig, SocketIOListener
from tunnelmux.errors import ConnectError
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.commands.socketio_agents import AgentServer, agent_settings
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.sessions import MemoryStore
from tunnelmux.socketio import connect_socketio, parse_socketio_url
from tunnelmux.transports import client_context

AUTH = {"proxyId": PROXY_ID, "apiKey": API_KEY}


@pytest.fixture
def authority(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    return tmp_path


@pytest.mark.parametrize("transports", ["auto", "polling", "websocket"])
async def test_both_ends_under_tls(authority, transports):
    listener = SocketIOListener(
        listen="127.0.0.1:0",
        tls_certificate=authority / "cert.pem",
        tls_key=authority / "key.pem",
        agents=[known_agent()],
    )
    settings = agent_settings(ProxyConfig(socketio=listener))
    server = AgentServer(Dispatcher(MemoryStore(), DeviceRegister(())), settings)
    server.configure(settings, listener.agents)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        handle = partial(handle_connection, server)
        await nursery.start(partial(trio.serve_listeners, handle, listeners))
        port = listeners[0].socket.getsockname()[1]
        url = parse_socketio_url(f"https://127.0.0.1:{port}", namespace="/proxy")
        own = client_context(authority / "ca.pem")
        async with connect_socketio(
            url, auth=AUTH, transports=transports, ssl_context=own
        ) as socket:
            assert server.connected == [PROXY_ID]
            await socket.emit("command_result", {"commandId": "c", "result": {}})
            assert (await socket.receive()).args == [{"success": True, "commandId": "c"}]
        with pytest.raises(ConnectError, match="certificate"):
            async with connect_socketio(url, auth=AUTH, ssl_context=client_context()):
                pass
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("module", ["tunnelmux.agent", "tunnelmux.proxy", "tunnelmux.cli.agent"])
def test_its_libraries_are_not_imported_where_nobody_asks_for_them(module):
    code = f"import sys, {module}; print([m for m in ('socketio', 'engineio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
