"""Agents that were gone before their handshake was read: the proxy did not run for a while, and the
device has connected elsewhere or again."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from support.agents import TunnelBench
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.transports.tcp import reset_socket

REQUEST = (
    b"GET /tunnel/connect HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer token-of-dev1\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

pytestmark = pytest.mark.skipif(
    not hasattr(select, "POLLRDHUP"), reason="only Linux tells it without reading"
)


def connection() -> tuple[socket.socket, trio.SocketStream]:
    """An agent's end of a TCP connection, and the proxy's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = socket.create_connection(listener.getsockname())
        proxys, _ = listener.accept()
    return agent, trio.SocketStream(trio.socket.from_stdlib_socket(proxys))


def wait_for_end(proxys: trio.SocketStream) -> None:
    poll = select.poll()
    poll.register(proxys.socket.fileno(), select.POLLRDHUP)
    assert poll.poll(30_000), "the end of the connection did not come"


async def handle(bench: TunnelBench, proxys: trio.SocketStream) -> MutableMapping[str, Any]:
    """Have the proxy take up this connection: the one line that it logs."""
    place = bench.server.admission.enter("192.0.2.8:50001")
    assert place is not None
    with capture_logs() as logs, trio.fail_after(30):
        async with proxys:
            await bench.server.handle(proxys, "192.0.2.8:50001", place)
    [line] = logs
    return line


@pytest.mark.parametrize("leave", [socket.socket.close, reset_socket])
async def test_an_agent_that_left_before_it_was_heard_replaces_no_session(
    nursery: trio.Nursery, leave: Callable[[socket.socket], None]
) -> None:
    bench = TunnelBench(nursery)
    async with bench.dial():
        live = await bench.arrived()
        agent, proxys = connection()
        agent.sendall(REQUEST)
        leave(agent)
        wait_for_end(proxys)
        line = await handle(bench, proxys)
        assert await bench.store.find_device("dev1") is live
        assert not live.is_closed
        assert line["event"] == "tunnel handshake failed"
        assert "it was gone before this proxy came to it" in line["cause"]


async def test_an_agent_that_leaves_during_its_handshake_replaces_no_session(
    nursery: trio.Nursery,
) -> None:
    agent, proxys = connection()

    class Leaving(DeviceRegister):
        def identify(self, token: str) -> KnownDevice | None:
            if is_second:
                agent.close()
                wait_for_end(proxys)
            return super().identify(token)

    is_second = False
    bench = TunnelBench(nursery, register=Leaving)
    async with bench.dial():
        live = await bench.arrived()
        is_second = True
        agent.sendall(REQUEST)
        line = await handle(bench, proxys)
        assert await bench.store.find_device("dev1") is live
        assert not live.is_closed
        assert line["reason"] == "its agent was gone before the session began"
