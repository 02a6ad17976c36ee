"""Our client against npm's socket.io server, over polling, over a WebSocket and upgraded."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from support.socketio_peers import API_KEY, PROXY_ID, main_server
from tunnelmux.errors import ConnectRefused
from tunnelmux.socketio import MessageTooLarge, SocketOver, connect_socketio, parse_socketio_url

pytestmark = [pytest.mark.usefixtures("npm_peers"), pytest.mark.timeout(60, func_only=True)]

QUERY = {"proxyId": PROXY_ID, "apiKey": API_KEY}
# Whichever of our two last packets it looks at first.
GOODBYES = {"client namespace disconnect", "transport close"}
WAYS = ["polling", "websocket", "auto"]


@asynccontextmanager
async def connected(port, transports="auto", *, query=QUERY, **more):
    url = parse_socketio_url(f"http://127.0.0.1:{port}", namespace="/proxy")
    async with connect_socketio(
        url, query=query, auth=query, transports=transports, **more
    ) as socket:
        yield socket


@pytest.mark.parametrize("transports", WAYS)
async def test_events_acknowledgements_and_binary_go_both_ways(transports):
    async with main_server() as (server, port), connected(port, transports) as socket:
        told = await server.expect("connected")
        assert told["auth"] == QUERY
        if transports == "auto":
            await server.expect("upgraded")
        await server.do("execute", data={"commandId": "c1", "command": "ls"})
        event = await socket.receive()
        assert (event.name, event.args) == (
            "execute_command",
            [{"commandId": "c1", "command": "ls"}],
        )
        result = {"commandId": "c1", "result": {"stdout": "ä\x1e\n" * 1000, "exitCode": 0}}
        await socket.emit("command_result", result)
        assert (await server.expect("result"))["data"] == result
        event = await socket.receive()
        assert (event.name, event.args) == ("command_result_received", [{"success": True}])

        await socket.emit("binary", {"a": b"\x00\xff" * 5000, "b": [b"", b"x"]}, 7)
        event = await socket.receive()
        assert event.args == [{"a": b"\x00\xff" * 5000, "b": [b"", b"x"]}, 7]
        async with trio.open_nursery() as nursery:

            async def receive():
                await socket.receive()

            nursery.start_soon(receive)
            (answer,) = await socket.call("ask", {"x": 1}, timeout=5)
            assert answer == {"question": {"x": 1}, "bytes": b"ok"}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("transports", WAYS)
async def test_messages_keep_their_order_through_the_upgrade(transports):
    async with (
        main_server() as (_, port),
        connected(port, transports) as socket,
        trio.open_nursery() as nursery,
    ):

        async def send():
            for number in range(300):
                await socket.emit("binary", number, bytes([number % 256]) * 100)

        nursery.start_soon(send)
        for number in range(300):
            event = await socket.receive()
            assert event.args == [number, bytes([number % 256]) * 100]


@pytest.mark.parametrize("transports", ["auto"])
async def test_a_wrong_key_is_refused(transports):
    async with main_server() as (_, port):
        with pytest.raises(ConnectRefused, match="unauthorized"):
            async with connected(port, transports, query={**QUERY, "apiKey": "wrong"}):
                pass


@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_pings_are_answered(transports):
    async with (
        main_server(pingInterval=100) as (server, port),
        connected(port, transports),
    ):
        for _ in range(3):
            await server.expect("heartbeat")
        assert [told for told in server.told() if told["event"] == "disconnected"] == []


@pytest.mark.slow  # it waits out the silence
@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_silence_of_a_server_is_noticed(transports):
    async with (
        main_server(pingInterval=100, pingTimeout=700) as (server, port),
        connected(port, transports) as socket,
    ):
        await server.expect("connected")
        server.process.send_signal(19)  # SIGSTOP: the connection stays, nobody is behind it
        with trio.fail_after(30), pytest.raises(SocketOver, match="nothing came for"):
            await socket.receive()


@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_the_server_is_told_of_the_end(transports):
    async with main_server() as (server, port):
        async with connected(port, transports):
            await server.expect("connected")
        assert (await server.expect("disconnected"))["reason"] in GOODBYES


@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_a_server_that_throws_us_out_is_noticed(transports):
    async with main_server() as (server, port), connected(port, transports) as socket:
        await server.expect("connected")
        await server.do("leave")
        with trio.fail_after(20), pytest.raises(SocketOver, match="left the namespace"):
            await socket.receive()


async def test_what_the_server_would_not_take_is_not_sent():
    async with main_server(maxHttpBufferSize=10_000) as (_, port), connected(port) as socket:
        with pytest.raises(MessageTooLarge):
            await socket.emit("binary", "x" * 10_000)
        await socket.emit("binary", "x" * 9_000)
        assert (await socket.receive()).args == ["x" * 9_000]
