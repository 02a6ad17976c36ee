"""Whatever a peer sends or does not send, it is refused in words, within bounds, and alone."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, suppress
from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import agent_side, known_agent, limits_with
from support.socketio_wire import AUTH, exchange, fake_server, joined, opened, websocket
from tunnelmux.errors import ConnectError
from tunnelmux.limits import SocketIOLimits
from tunnelmux.socketio import EngineSettings, SocketOver, connect_socketio, parse_socketio_url

QUERY = "EIO=4&transport=polling"


# -- requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "query", "status", "code"),
    [
        ("GET", "EIO=3&transport=polling", 400, 5),
        ("GET", "transport=polling", 400, 5),
        ("GET", "EIO=4&transport=smoke", 400, 0),
        ("GET", "EIO=4&transport=websocket", 400, 0),
        ("POST", "EIO=4&transport=polling", 400, 2),
        ("GET", "EIO=4&transport=polling&sid=nobody", 400, 1),
        ("POST", "EIO=4&transport=polling&sid=nobody", 400, 1),
        ("GET", "&".join(f"a{n}=1" for n in range(100)), 400, 3),
    ],
)
async def test_requests_that_are_none(method, query, status, code):
    async with agent_side() as side:
        got, body = await exchange(side.port, method, query, "" if method == "POST" else None)
        assert (got, json.loads(body)["code"]) == (status, code)


async def test_another_path_and_another_method():
    async with agent_side() as side:
        assert (await exchange(side.port, path="/"))[0] == 404
        sid = await opened(side.port)
        query = f"EIO=4&transport=polling&sid={sid}"
        assert (await exchange(side.port, "DELETE", query))[0] == 400


PAYLOADS = [
    b"",
    b"7",
    b"x",
    b"4",
    b"4[1,2]",
    b"\xff\xfe",
    b"0{}",
    b"40/proxy,[1]",
    b"40/proxy,{",
    b"42/proxy,[]",
    b"42/proxy,[1]",
    b'42/proxy,["a"]',
    b"43/proxy,[]",
    b'451-/proxy,["a",{"_placeholder":true,"num":0}]',
    b'459999999999-/proxy,["a"]',
    b"bAAAA",
    b"b!",
    b"d=4",
    b"4" + b"[" * 50_000,
    b"4\xc2\xb2",
    b"45" + b"9" * 200 + b'-["a"]',
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=[repr(body[:20]) for body in PAYLOADS])
async def test_what_a_stranger_posts_ends_its_session_alone(payload):
    limits = limits_with(handshake_timeout=0.3)
    async with agent_side(limits=limits) as side, side.agent():
        sid = await opened(side.port)
        query = f"EIO=4&transport=polling&sid={sid}"
        status, _ = await exchange(side.port, "POST", query, payload)
        assert status in (200, 400)
        with trio.fail_after(20):
            while side.server.session_count > 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert side.server.connected == [PROXY_ID]


JOINED_MESSAGES = [
    "7",
    "2",
    "4",
    "42/other,[]",
    "42/proxy,{}",
    '42/proxy,["a"',
    '451-/proxy,["a",{"_placeholder":true,"num":5}]',
    '4599-/proxy,["a"]',
    "40/proxy,",
    b"attachment",
    "45",
    "5",
]


@pytest.mark.parametrize("message", JOINED_MESSAGES, ids=repr)
async def test_what_an_agent_sends_against_the_rules_ends_its_connection(message):
    async with agent_side() as side, websocket(side.port) as (send, receive):
        assert (await receive()).startswith("0{")
        await send(f"40/proxy,{AUTH}")
        assert (await receive()).startswith("40/proxy,")
        await side.connected(PROXY_ID)
        await send(message)
        if message in ('4599-/proxy,["a"]', '451-/proxy,["a",{"_placeholder":true,"num":5}]'):
            await send("4text instead of an attachment")
        if message == "2":  # a ping is the server's, and means nothing
            await send("41/proxy,")
        await side.connected()


# -- limits ---------------------------------------------------------------------------------


async def test_a_stranger_may_send_little():
    async with agent_side(limits=limits_with(max_head_bytes=2000)) as side:
        query = f"EIO=4&transport=polling&sid={await opened(side.port)}"
        assert (await exchange(side.port, "POST", query, "4" * 3000))[0] == 413
        async with websocket(side.port) as (send, receive):
            await receive()
            await send("4" * 3000)
            assert await receive() == 1009


async def test_an_agent_may_send_as_much_as_the_limit_says():
    limits = limits_with(max_head_bytes=2000, socketio_max_payload=10_000)
    async with agent_side(limits=limits) as side:
        query = await joined(side.port)
        event = f'42/proxy,["a","{"x" * 5000}"]'
        assert await exchange(side.port, "POST", query, event) == (200, "ok")
        assert (await exchange(side.port, "POST", query, event * 3))[0] == 413
        async with websocket(side.port) as (send, receive):
            await receive()
            await send(f"40/proxy,{AUTH}")
            assert (await receive()).startswith("40/proxy,")
            await send(event)
            await send(f'42/proxy,["a","{"x" * 11_000}"]')
            assert await receive() == 1009


async def test_a_payload_has_so_many_packets_and_no_more():
    async with agent_side(limits=limits_with(socketio_max_packets=3)) as side:
        query = await joined(side.port)
        assert await exchange(side.port, "POST", query, "\x1e".join(["6"] * 3)) == (200, "ok")
        assert (await exchange(side.port, "POST", query, "\x1e".join(["6"] * 4)))[0] == 400
        await side.connected()


async def test_there_are_so_many_sessions_and_no_more():
    limits = limits_with(socketio_max_sessions=1)
    async with agent_side(limits=limits) as side, side.agent():
        await side.connected(PROXY_ID)
        assert (await exchange(side.port, query="EIO=4&transport=polling"))[0] == 503
        async with websocket(side.port) as (_, receive):
            assert await receive() == 503


async def test_clients_that_have_not_joined_take_no_agents_place():
    async with agent_side(limits=limits_with(socketio_max_sessions=1)) as side:
        for _ in range(2):
            await opened(side.port)
        async with side.agent():
            await side.connected(PROXY_ID)


async def test_of_too_many_strangers_the_oldest_gives_way():
    async with agent_side(limits=limits_with(max_handshakes=2)) as side, side.agent():
        await side.connected(PROXY_ID)
        sids = [await opened(side.port) for _ in range(4)]
        assert side.server.session_count <= 4
        queries = [f"EIO=4&transport=polling&sid={sid}" for sid in sids]
        for query in queries[:2]:
            assert (await exchange(side.port, "POST", query, "40/proxy,"))[0] == 400
        for query in queries[2:]:
            assert (await exchange(side.port, "POST", query, "40/proxy,"))[0] == 200
        assert side.server.connected == [PROXY_ID]


async def test_one_address_has_so_many_connections_that_say_nothing():
    limits = limits_with(max_arrivals_per_address=2)
    async with agent_side(limits=limits) as side, side.agent():
        streams = [await trio.open_tcp_stream("127.0.0.1", side.port) for _ in range(5)]
        with trio.fail_after(20):
            assert await streams[0].receive_some() == b""  # the first made room for the fifth
        await side.connected(PROXY_ID)
        assert len(side.server.admission) == 4
        for stream in streams:
            await stream.aclose()


async def test_who_connects_and_says_nothing_is_soon_let_go():
    async with agent_side(limits=limits_with(first_byte_timeout=0.05)) as side:
        stream = await trio.open_tcp_stream("127.0.0.1", side.port)
        with trio.fail_after(20):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_agents_get_in_beside_an_address_that_takes_all_places_it_gets():
    """Some of its connections say nothing, and its clients join nothing: all are dialled again."""
    limits = limits_with(max_handshakes=8, max_arrivals_per_address=4)
    with capture_logs() as logs:
        async with agent_side(limits=limits) as side, trio.open_nursery() as nursery:

            async def stay():
                while True:
                    with suppress(OSError, trio.BrokenResourceError):
                        async with await trio.open_tcp_stream(
                            "127.0.0.1", side.port, local_address="127.0.0.2"
                        ) as stream:
                            await stream.receive_some()

            async def shake_hands():
                while True:
                    with suppress(OSError, trio.BrokenResourceError, IndexError):
                        await exchange(side.port, query=QUERY, source="127.0.0.2")

            for _ in range(16):
                nursery.start_soon(stay)
                nursery.start_soon(shake_hands)
            while side.server.session_count < 4 or len(side.server.admission) < 8:  # noqa: ASYNC110
                await trio.sleep(0.01)
            for transports in ("polling", "auto", "websocket"):
                with trio.fail_after(20):
                    async with side.agent(transports=transports):
                        await side.connected(PROXY_ID)
            nursery.cancel_scope.cancel()
    gave_way = [line for line in logs if line["event"] == "connections gave way"]
    assert {line["address"] for line in gave_way} == {"127.0.0.2"}
    assert len(gave_way) <= 4  # not one for each


async def test_agents_that_were_let_in_need_no_place():
    agents = [known_agent(f"agent-{number}") for number in range(6)]
    limits = limits_with(max_arrivals_per_address=1)
    async with agent_side(*agents, limits=limits) as side, AsyncExitStack() as stack:
        for number, agent in enumerate(agents):
            way = ("polling", "websocket")[number % 2]
            await stack.enter_async_context(side.agent(agent.proxy_id, transports=way))
        await side.connected(*(agent.proxy_id for agent in agents))
        with trio.fail_after(20):
            while len(side.server.admission):  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_who_never_says_who_it_is_is_let_go():
    async with agent_side(limits=limits_with(handshake_timeout=0.1)) as side:
        await opened(side.port)
        async with websocket(side.port) as (_, receive):
            await receive()
            assert await receive() == 1000
        with trio.fail_after(20):
            while side.server.session_count:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_an_agent_that_answers_no_ping_is_let_go():
    limits = limits_with(keepalive_interval=0.4, keepalive_timeout=0.4)
    async with agent_side(limits=limits) as side, websocket(side.port) as (send, receive):
        await receive()
        await send(f"40/proxy,{AUTH}")
        await side.connected(PROXY_ID)
        assert (await receive()).startswith("40/proxy,")
        assert await receive() == "2"
        await side.connected()


async def test_two_polls_at_once_end_the_session():
    async with agent_side() as side:
        query = await joined(side.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(exchange, side.port, query=query))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (await exchange(side.port, query=query))[0] == 400
        await side.connected()


async def test_a_client_that_leaves_within_a_poll_is_gone():
    async with agent_side() as side:
        query = await joined(side.port)
        [session] = side.server._sessions.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(exchange, side.port, query=query))
            with trio.fail_after(30):
                while not session._polling:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        await side.connected()


async def test_a_probe_that_is_none_leaves_polling_as_it_was():
    async with agent_side() as side:
        query = await joined(side.port)
        upgrade = query.replace("polling", "websocket")
        async with websocket(side.port, upgrade) as (send, receive):
            await send("2wrong")
            assert await receive() == 1000
        assert await exchange(side.port, "POST", query, '42/proxy,["a"]') == (200, "ok")
        assert side.server.connected == [PROXY_ID]


async def test_an_agent_that_does_not_read_stops_its_senders():
    async with agent_side(limits=limits_with(socketio_send_queue=10_000)) as side:
        await joined(side.port)
        connection = side.server.connection_of(PROXY_ID)
        sent = 0
        with trio.move_on_after(0.2) as waiting:
            while True:
                await connection.socket.emit("noise", "x" * 1000)
                sent += 1
        assert waiting.cancelled_caught
        assert sent == 10


# -- servers --------------------------------------------------------------------------------


def hello(**changes):
    content = {"sid": "s", "upgrades": [], "pingInterval": 100, "pingTimeout": 100} | changes
    return b"0" + json.dumps(content).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"1",
        b"0[]",
        b"\xff",
        hello(sid=5),
        hello(upgrades="no"),
        hello(pingInterval=0),
        hello(pingTimeout="x"),
        hello(pingInterval=10**9),
        hello() + b"\x1e6",
    ],
)
async def test_a_server_that_does_not_speak_socket_io_is_no_server(body):
    async with fake_server(body) as port:
        with pytest.raises(ConnectError):
            async with connect_socketio(url_of(port)):
                pass


def url_of(port):
    return parse_socketio_url(f"http://127.0.0.1:{port}", namespace="/proxy")


@pytest.mark.parametrize("body", [b"4", b"7", b"40/proxy,[]", b"41", b"44/proxy,5", hello()])
async def test_a_server_that_does_not_let_us_join(body):
    async with fake_server(hello(), body) as port:
        with pytest.raises(ConnectError):
            async with connect_socketio(url_of(port)):
                pass


async def test_a_server_that_sends_too_much_or_nothing():
    small = EngineSettings(socketio=SocketIOLimits(socketio_max_payload=1000))
    async with fake_server(b"x" * 2000) as port:
        with pytest.raises(ConnectError, match="more than 1000 bytes"):
            async with connect_socketio(url_of(port), settings=small):
                pass
    async with fake_server() as port:
        with pytest.raises(ConnectError, match=r"within 0\.1 s"):
            async with connect_socketio(
                url_of(port), settings=EngineSettings(handshake_timeout=0.1)
            ):
                pass


async def test_a_refusal_is_told_with_the_servers_words():
    async with fake_server(b'{"code":4,"message":"Forbidden\\u0007"}', status="403 No") as port:
        with pytest.raises(ConnectError, match=r"403 \(Forbidden\)"):
            async with connect_socketio(url_of(port)):
                pass


async def test_no_key_is_in_an_error():
    async with fake_server(b"no", status="500 No") as port:
        with pytest.raises(ConnectError) as caught:
            async with connect_socketio(url_of(port), query={"apiKey": API_KEY}):
                pass
        assert API_KEY not in repr(caught.value)


async def test_cancelling_anywhere_leaves_nothing_behind():
    """Every checkpoint of a connection, a command and its end is cancelled once."""
    async with agent_side() as side:
        for number in range(25):
            with trio.move_on_after(number * 0.0015):
                async with side.agent(transports="auto") as agent:
                    await agent.emit("command_result", {"commandId": "c", "result": {}})
                    with trio.move_on_after(0.02), pytest.raises(SocketOver):
                        while True:
                            await agent.receive()
        with trio.fail_after(20):
            while side.server.connected:  # noqa: ASYNC110
                await trio.sleep(0.01)
