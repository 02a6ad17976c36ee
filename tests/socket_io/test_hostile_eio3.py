"""In Engine.IO 3, as in version 4: whatever comes is refused in words, within bounds, and alone."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest
import trio

from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import agent_side, limits_with
from support.socketio_wire import exchange, fake_server, opened, websocket
from tunnelmux.errors import ConnectError
from tunnelmux.socketio import EngineSettings, SocketOver, connect_socketio, parse_socketio_url

QUERY = urlencode({"proxyId": PROXY_ID, "apiKey": API_KEY})
JOIN = f"0/proxy?{QUERY}"


def payload(*packets):
    return "".join(f"{len(packet)}:{packet}" for packet in packets)


async def session(port):
    return f"EIO=3&transport=polling&sid={await opened(port, 3)}"


async def joined(port):
    """The query of a polling session whose agent was let in."""
    query = await session(port)
    assert await exchange(port, "POST", query, payload(f"4{JOIN}")) == (200, "ok")
    answers = ""
    while "40/proxy" not in answers:
        answers += (await exchange(port, "GET", query))[1]
    return query


PAYLOADS = [
    b"",
    b"40",
    b"0:",
    b"1:7",
    b"1:x",
    b"2:4",
    b"99999999999:4",
    b"1:4",
    b"6:4[1,2]",
    b"1:\xff",
    b"3:0{}",
    b"12:40/proxy,[1]",
    b"13:42/proxy,[1]",
    b"5:b4!!!",
    b"2:b2",
    b"\x00\x01\xff7",
    b"\x00\x09\x09\x09\xff4",
    b"\x01\x02\xff\x04a",
    b"\x01\x01\xff\x02",
    b"\x01" * 100,
    b"d=2:40",
    payload("4" + "[" * 50_000).encode(),
    payload("40/proxy?" + "&".join(["a=1"] * 100)).encode(),
    payload("40/admin").encode(),
    payload(*["2"] * 5000).encode(),
    ("3:4😀" * 100).encode(),
    ("2:4😀" * 100).encode(),
]


@pytest.mark.parametrize("body", PAYLOADS, ids=[repr(body[:20]) for body in PAYLOADS])
async def test_what_a_stranger_posts_ends_its_session_alone(body):
    limits = limits_with(handshake_timeout=0.3)
    async with agent_side(allow_eio3=True, limits=limits) as side, side.agent():
        status, _ = await exchange(side.port, "POST", await session(side.port), body)
        assert status in (200, 400)
        with trio.fail_after(20):
            while side.server.session_count > 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert side.server.connected == [PROXY_ID]


MESSAGES = ["7", "4", "0{}", "5", "b2", "b4", "42/other,[]", "42/proxy,{}", b"", b"\x02", b"\x04a"]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
async def test_what_an_agent_sends_against_the_rules_ends_its_connection(message):
    async with (
        agent_side(allow_eio3=True) as side,
        websocket(side.port, "EIO=3&transport=websocket") as (send, receive),
    ):
        assert (await receive()).startswith("0{")
        assert await receive() == "40"
        await send(f"4{JOIN}")
        assert (await receive()).startswith("40/proxy")
        await side.connected(PROXY_ID)
        await send(message)
        await side.connected()


async def test_a_stranger_may_send_little():
    limits = limits_with(max_head_bytes=2000)
    async with agent_side(allow_eio3=True, limits=limits) as side:
        query = await session(side.port)
        assert (await exchange(side.port, "POST", query, "4" * 3000))[0] == 413
        async with websocket(side.port, "EIO=3&transport=websocket") as (send, receive):
            assert (await receive()).startswith("0{")
            assert await receive() == "40"
            await send("4" * 3000)
            assert await receive() == 1009


async def test_a_payload_has_so_many_packets_and_no_more():
    limits = limits_with(socketio_max_packets=3)
    async with agent_side(allow_eio3=True, limits=limits) as side:
        query = await joined(side.port)
        assert await exchange(side.port, "POST", query, payload(*"666")) == (200, "ok")
        assert (await exchange(side.port, "POST", query, payload(*"6666")))[0] == 400
        await side.connected()


async def test_an_agent_that_pings_all_the_time_gets_one_pong_at_a_time():
    async with agent_side(allow_eio3=True) as side:
        query = await joined(side.port)
        for _ in range(3):
            assert await exchange(side.port, "POST", query, payload(*["2"] * 1000)) == (200, "ok")
        assert await exchange(side.port, "GET", query) == (200, "1:3")
        assert await exchange(side.port, "POST", query, payload("2")) == (200, "ok")
        assert await exchange(side.port, "GET", query) == (200, "1:3")


async def test_an_agent_that_does_not_ping_is_let_go():
    limits = limits_with(keepalive_interval=0.4, keepalive_timeout=0.4)
    async with (
        agent_side(allow_eio3=True, limits=limits) as side,
        websocket(side.port, "EIO=3&transport=websocket") as (send, receive),
    ):
        assert (await receive()).startswith("0{")
        await send(f"4{JOIN}")
        with trio.fail_after(30):
            while not side.server.connected:  # noqa: ASYNC110
                await trio.sleep(0.001)
        await side.connected()


async def test_a_client_that_is_slow_to_join_its_namespace_is_served_there():
    """A slow device or a long line: it was taken for one that stays in "/", and heard nothing."""
    async with (
        agent_side(allow_eio3=True, settle=0.05) as side,
        websocket(side.port, f"EIO=3&transport=websocket&{QUERY}") as (send, receive),
    ):
        assert (await receive()).startswith("0{")
        assert await receive() == "40"
        await side.connected(PROXY_ID)
        await send("40/admin")
        assert await receive() == '44/admin,"Invalid namespace"'
        await send(f"4{JOIN}")
        assert await receive() == "40/proxy,"
        await send('42/proxy,["command_result",{"commandId":"c","result":{}}]')
        assert (await receive()).startswith('42/proxy,["command_result_received",')
        assert side.server.connected == [PROXY_ID]


async def test_who_is_in_the_root_and_proves_nothing_is_refused():
    async with agent_side(allow_eio3=True, settle=0.05) as side:
        query = await session(side.port)
        assert await exchange(side.port, "GET", query) == (200, "2:40")
        _, answer = await exchange(side.port, "GET", query)
        assert "the proxyId is unknown or the apiKey is wrong" in answer
        with trio.fail_after(20):
            while side.server.session_count:  # noqa: ASYNC110
                await trio.sleep(0.01)


# -- servers --------------------------------------------------------------------------------


def hello(**changes):
    content = {"sid": "s", "upgrades": [], "pingInterval": 100, "pingTimeout": 100} | changes
    return payload(f"0{json.dumps(content)}").encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"1:1",
        b"3:0[]",
        b"\xff",
        hello()[3:],
        hello(sid=5),
        hello(pingInterval=0),
        hello(pingInterval=10**9),
        hello() + b"4:40",
        hello() + b'14:44"not today"',
        hello() + b"5:4<no>",
    ],
)
async def test_a_server_that_does_not_let_us_in(body):
    async with fake_server(body, b"1:7") as port:
        settings = EngineSettings(handshake_timeout=0.3)
        with pytest.raises(ConnectError):
            async with connect_socketio(url_of(port), version=3, settings=settings):
                pass


def url_of(port):
    return parse_socketio_url(f"http://127.0.0.1:{port}", namespace="/proxy")


async def test_a_server_that_never_answers_our_pings_is_given_up():
    async with (
        fake_server(hello() + payload("40", "40/proxy").encode()) as port,
        connect_socketio(url_of(port), version=3) as socket,
    ):
        with trio.fail_after(20), pytest.raises(SocketOver, match="nothing came for"):
            await socket.receive()
