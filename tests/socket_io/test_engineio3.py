"""Engine.IO 3: agents on Socket.IO 2 at our proxy where that is allowed, ours at such a server."""

from __future__ import annotations

import json

import pytest
import trio
from structlog.testing import capture_logs

from support.socketio_peers import API_KEY, OLD, PROXY_ID, main_server, sample_agent
from support.socketio_peers import sample_agent_command as build
from support.socketio_proxy import agent_side, limits_with, request
from tunnelmux.commands import Output, Started
from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.socketio import SocketOver, connect_socketio, parse_socketio_url

pytestmark = pytest.mark.timeout(60, func_only=True)

QUERY = {"proxyId": PROXY_ID, "apiKey": API_KEY}
WAYS = ["polling", "websocket", "auto"]


@pytest.fixture(scope="session", params=OLD)
def old_agent(request):
    """Each sample agent on an old library, once it can be started."""
    build(request.param)
    return str(request.param)


def options_of(language, transports):
    """What makes the library go that way; "auto" is what it does by itself."""
    return {} if transports == "auto" else {"transports": [transports]}


def settle_of(language):
    """What the server waits for a client to join its namespace: the Go agent stays in "/"."""
    return 0.2 if language == "go3" else 30.0


# -- agents of Socket.IO 2 with us ----------------------------------------------------------


@pytest.mark.slow  # it lives for some heartbeats
@pytest.mark.parametrize("transports", WAYS)
async def test_an_old_agent_runs_commands_where_it_is_allowed(old_agent, transports):
    options = options_of(old_agent, transports)
    limits = limits_with(keepalive_interval=0.1)
    async with (
        agent_side(allow_eio3=True, limits=limits, settle=settle_of(old_agent)) as side,
        sample_agent(old_agent, side.port, options=options) as agent,
    ):
        await agent.expect("connected")
        await side.connected(PROXY_ID)
        command = request(command="echo grüße 😀; echo no >&2; exit 3")
        events, end = await side.run(PROXY_ID, command)
        started, *output = events
        assert isinstance(started, Started)
        assert output == [Output("stdout", "grüße 😀\n".encode()), Output("stderr", b"no\n")]
        assert (end.exit_code, end.reason) == (3, None)
        assert (await agent.expect("received"))["data"] == {"success": True, "commandId": "c1"}
        await side.heard_of(PROXY_ID, 3)  # its pings, each of which comes after a pong
        result = await side.result(PROXY_ID, request("c2", "echo again"))
        assert result == {"stdout": "again\n", "stderr": "", "exitCode": 0}


@pytest.mark.slow
async def test_an_old_agent_sends_much_and_its_end_is_noticed(old_agent):
    # Where it polls, nothing but its silence tells of its end.
    limits = limits_with(keepalive_interval=0.3, keepalive_timeout=5.0)
    async with (
        agent_side(allow_eio3=True, limits=limits, settle=settle_of(old_agent)) as side,
        sample_agent(old_agent, side.port) as agent,
    ):
        await agent.expect("connected")
        await side.connected(PROXY_ID)
        text = "head -c 500000 /dev/zero | tr '\\0' x"
        result = await side.result(PROXY_ID, request(command=text))
        assert result["stdout"] == "x" * 500_000
        agent.process.kill()
        await side.connected()


@pytest.mark.parametrize("old", ["node2", "python4"])
async def test_an_old_agent_in_the_namespace_it_is_in_by_itself(old):
    build(old)
    async with (
        agent_side(allow_eio3=True, settle=0.2) as side,
        sample_agent(old, side.port, namespace="/") as agent,
    ):
        await agent.expect("connected")
        await side.connected(PROXY_ID)
        result = await side.result(PROXY_ID, request(command="echo hi"))
        assert result["stdout"] == "hi\n"


async def test_an_old_agent_with_a_wrong_key_is_refused(old_agent):
    async with agent_side(allow_eio3=True, settle=settle_of(old_agent)) as side:
        async with sample_agent(old_agent, side.port, api_key="wrong") as agent:
            await agent.expect("refused")
        assert side.server.connected == []


async def test_an_old_agent_is_refused_with_the_fix_where_it_is_not_allowed():
    """The Go library shows the body of an answer to a WebSocket."""
    build("go3")
    with capture_logs() as logs:
        async with agent_side() as side, sample_agent("go3", side.port) as client:
            refused = [await client.expect("refused") for _ in range(2)]
            assert side.server.connected == []
    assert [told["transport"] for told in refused] == ["polling", "websocket"]
    answer = json.loads(refused[1]["message"])
    assert answer["code"] == 5
    assert answer["message"].startswith(
        "Unsupported protocol version: this server speaks Engine.IO 4"
    )
    (entry, *_) = [entry for entry in logs if entry["event"] == "client refused"]
    assert entry["cause"] == "it speaks Engine.IO 3"
    assert "allow_eio3 = true" in entry["fix"]


# -- our agent at a server of Socket.IO 2 ---------------------------------------------------


@pytest.fixture
def npm():
    build("node2")


def connected(port, transports="auto", *, query=QUERY, version=3, namespace="/proxy"):
    url = parse_socketio_url(f"http://127.0.0.1:{port}", namespace=namespace)
    return connect_socketio(url, query=query, transports=transports, version=version)


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize("transports", WAYS)
async def test_events_acknowledgements_and_binary_go_both_ways(transports):
    async with (
        main_server(version=2) as (server, port),
        connected(port, transports) as socket,
    ):
        told = await server.expect("connected")
        assert told["proxyId"] == PROXY_ID
        if transports == "auto":
            await server.expect("upgraded")
        result = {"commandId": "c1", "result": {"stdout": "ä😀\x1e\n" * 1000, "exitCode": 0}}
        await socket.emit("command_result", result)
        assert (await server.expect("result"))["data"] == result
        assert (await socket.receive()).args == [{"success": True}]
        await server.do("execute", data={"commandId": "c1", "command": "ls 😀 ä"})
        event = await socket.receive()
        assert event.name == "execute_command"
        assert event.args == [{"commandId": "c1", "command": "ls 😀 ä"}]
        await socket.emit("binary", {"a": b"\x00\xff" * 5000, "b": [b"", b"x"]}, 7)
        assert (await socket.receive()).args == [{"a": b"\x00\xff" * 5000, "b": [b"", b"x"]}, 7]
        async with trio.open_nursery() as nursery:

            async def receive():
                await socket.receive()

            nursery.start_soon(receive)
            (answer,) = await socket.call("ask", {"x": 1}, timeout=5)
            assert answer == {"question": {"x": 1}, "bytes": b"ok"}
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize("transports", WAYS)
async def test_messages_keep_their_order_through_the_upgrade(transports):
    async with (
        main_server(version=2) as (_, port),
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


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_we_ping(transports):
    async with (
        main_server(version=2, pingInterval=100) as (server, port),
        connected(port, transports),
    ):
        for _ in range(3):
            await server.expect("heartbeat")
        assert [told for told in server.told() if told["event"] == "disconnected"] == []


@pytest.mark.usefixtures("npm")
@pytest.mark.slow  # it waits out the silence
@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_silence_of_an_old_server_is_noticed(transports):
    async with (
        main_server(version=2, pingInterval=100, pingTimeout=700) as (server, port),
        connected(port, transports) as socket,
    ):
        await server.expect("connected")
        server.process.send_signal(19)  # SIGSTOP: the connection stays, nobody is behind it
        with trio.fail_after(30), pytest.raises(SocketOver, match="nothing came for"):
            await socket.receive()


@pytest.mark.usefixtures("npm")
async def test_a_wrong_key_and_the_wrong_version_are_told():
    async with main_server(version=2) as (_, port):
        with pytest.raises(ConnectRefused, match="unauthorized"):
            async with connected(port, query={**QUERY, "apiKey": "wrong"}):
                pass
        for transports in ("polling", "websocket"):
            with pytest.raises(ConnectError, match="engine_io"):
                async with connected(port, transports, version=4):
                    pass
    async with main_server() as (_, port):
        with pytest.raises(ConnectError, match=r"engine_io|Unsupported protocol version"):
            async with connected(port, version=3):
                pass


@pytest.mark.usefixtures("npm")
@pytest.mark.parametrize("transports", ["polling", "websocket"])
async def test_the_server_is_told_of_the_end_and_tells_of_its_own(transports):
    async with main_server(version=2) as (server, port):
        async with connected(port, transports):
            await server.expect("connected")
        await server.expect("disconnected")
        async with connected(port, transports) as socket:
            await server.expect("connected")
            await server.do("leave")
            with trio.fail_after(20), pytest.raises(SocketOver):
                await socket.receive()


# -- ours with ours -------------------------------------------------------------------------


@pytest.mark.parametrize("transports", WAYS)
@pytest.mark.parametrize("namespace", ["/proxy", "/"])
async def test_both_ends_in_version_3(transports, namespace):
    async with (
        agent_side(allow_eio3=True, settle=0.2) as side,
        connected(side.port, transports, namespace=namespace) as socket,
    ):
        await side.connected(PROXY_ID)
        await socket.emit("command_result", {"commandId": "c", "result": {}})
        with trio.fail_after(20):
            assert (await socket.receive()).args == [{"success": True, "commandId": "c"}]


async def test_what_is_said_in_the_root_before_it_settled_is_not_lost():
    async with (
        agent_side(allow_eio3=True, settle=30.0) as side,
        connected(side.port, "websocket", namespace="/") as socket,
    ):
        await socket.emit("command_result", {"commandId": "c", "result": {}})
        with trio.fail_after(20):
            assert (await socket.receive()).args == [{"success": True, "commandId": "c"}]


async def test_a_namespace_that_is_none_is_refused():
    async with agent_side(allow_eio3=True) as side:
        with pytest.raises(ConnectRefused, match="Invalid namespace"):
            async with connected(side.port, namespace="/admin"):
                pass
