"""An agent that was let in takes no more than its share, nor does a server of its agent."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from support.daemons import DaemonSet
from support.http_rig import Peer
from support.socketio_peers import API_KEY, PROXY_ID
from support.socketio_proxy import agent_side, known_agent, limits_with
from support.socketio_wire import exchange, fake_server, joined, websocket
from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.socketio import EngineSettings, connect_socketio, parse_socketio_url
from tunnelmux.socketio.engine_client import _Client
from tunnelmux.socketio.engine_packets import (
    MOST_VALUES,
    OPEN,
    PING,
    BadPacket,
    EnginePacket,
    Version3,
    Version4,
)
from tunnelmux.socketio.packets import Assembler


async def kept_post(port: int, query: str) -> Peer:
    """A connection by which one request of this session came, and which stays open."""
    peer = Peer(await trio.open_tcp_stream("127.0.0.1", port))
    head = f"POST /socket.io/?{query} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n6"
    await peer.send(head.encode())
    assert (await peer.read_head()).startswith(b"HTTP/1.1 200 ")
    assert await peer.read_exactly(2) == b"ok"
    return peer


async def test_the_connections_of_one_agent_leave_room_for_those_of_others() -> None:
    limits = limits_with(socketio_max_sessions=4, max_handshakes=8)
    async with agent_side(known_agent(), known_agent("other"), limits=limits) as side:
        query = await joined(side.port)
        kept = [await kept_post(side.port, query) for _ in range(40)]
        with trio.fail_after(30):
            async with side.agent("other"):
                await side.connected(PROXY_ID, "other")
            # The oldest ones were cut, and the newest serve its session.
            assert await kept[0].read_all() == b""
            assert await exchange(side.port, "POST", query, "6") == (200, "ok")
        for peer in kept:
            await trio.aclose_forcefully(peer.stream)


async def test_an_agent_makes_one_upgrade_at_a_time() -> None:
    async with agent_side() as side:
        query = await joined(side.port)
        upgrade = query.replace("polling", "websocket")
        async with websocket(side.port, upgrade) as (send, receive):
            async with websocket(side.port, upgrade) as (_, refused):
                assert await refused() == 400
            await send("2probe")
            assert await receive() == "3probe"
            await send("5")
            await send("2")
        await side.connected()


async def test_upgrades_that_are_given_up_leave_nothing_in_the_queue() -> None:
    async with agent_side() as side:
        query = await joined(side.port)
        [session] = side.server._sessions.values()
        for _ in range(20):
            async with websocket(side.port, query.replace("polling", "websocket")) as (
                send,
                receive,
            ):
                await send("2probe")
                assert await receive() == "3probe"
                await send("2again")
                assert await receive() is not None  # it is closed
        assert not session.engine.outgoing._packets
        assert await exchange(side.port, "POST", query, "6") == (200, "ok")


MANY = "[" + "{}," * MOST_VALUES + "{}]"
HIDDEN = '["\\\\",' + "[]," * MOST_VALUES + '"\\"",0]'
STRINGS = "[" + '"",' * MOST_VALUES + "0]"
ONE_TEXT = json.dumps(["x", '{"a":[1,2]},\\\n' * MOST_VALUES])


@pytest.mark.parametrize("text", [MANY, HIDDEN, STRINGS], ids=["objects", "hidden", "strings"])
def test_a_packet_has_so_many_values_and_no_more(text: str) -> None:
    """They would take the memory and the time of all."""
    for codec in (Version4(), Version3()):
        with pytest.raises(BadPacket, match="more than 100000 values"):
            codec.decode_packet(f"0{text}")
    with pytest.raises(BadPacket, match="more than 100000 values"):
        Version4().decode_payload(f"6\x1e4{text}".encode(), 10)
    for version in (3, 4):
        for namespace in ("", "/proxy,", '/"[,'):
            with pytest.raises(BadPacket, match="more than 100000 values"):
                Assembler(10**9, version).feed(f"2{namespace}{text}")


def test_one_long_text_is_one_value() -> None:
    packet = Assembler(10**9, 4).feed(f"2{ONE_TEXT}")
    assert packet is not None
    assert packet.data == json.loads(ONE_TEXT)


async def test_a_server_that_takes_nothing_gets_one_ping_however_often_it_wants_one(
    autojump_clock: MockClock,
) -> None:
    url = parse_socketio_url("http://main", namespace="/")
    client = _Client(url, "/", {}, Version3(), None, EngineSettings())
    content = {"sid": "s", "upgrades": [], "pingInterval": 0.001, "pingTimeout": 20_000}
    client._shake_hands(EnginePacket(OPEN, content))
    with trio.move_on_after(10):
        await client._ping()
    assert [packet.kind for packet in client.engine.outgoing._packets] == [PING]


async def test_a_sid_that_would_fill_every_request_is_none() -> None:
    content = {"sid": "s" * 5000, "upgrades": [], "pingInterval": 100, "pingTimeout": 100}
    async with fake_server(f"0{json.dumps(content)}".encode()) as port:
        url = parse_socketio_url(f"http://127.0.0.1:{port}", namespace="/proxy")
        with pytest.raises(ConnectError, match="its sid has more than 1024 characters"):
            async with connect_socketio(url, auth={"apiKey": API_KEY}):
                pass


async def test_what_an_agent_or_a_stranger_sends_wrongly_does_not_fill_the_log() -> None:
    with capture_logs() as logs:
        async with agent_side(allow_eio3=False) as side:
            for _ in range(40):
                assert (await exchange(side.port, query="EIO=3&transport=polling"))[0] == 400
            async with side.agent() as socket:
                for number in range(100):
                    await socket.emit("command_result", {})
                    await socket.emit("command_result", {"commandId": f"c{number}", "result": {}})
                with trio.fail_after(30):
                    for _ in range(200):
                        assert (await socket.receive()).name == "command_result_received"
    count = Counter(line["event"] for line in logs)
    for event in ("client refused", "malformed result", "a result came too late"):
        assert 30 <= count[event] <= 35, event
    assert count["lines left out"] >= 3


async def test_agents_with_a_wrong_key_do_not_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 3)
    with capture_logs() as logs:
        async with agent_side() as side:
            for _ in range(8):
                with pytest.raises(ConnectRefused, match="unauthorized"):
                    async with side.agent(apiKey="wrong-key"):
                        pass
            async with side.agent():
                await side.connected(PROXY_ID)
    assert "wrong-key" not in str(logs)
    assert [line["event"] for line in logs].count("agent refused") == 3
    [line] = [line for line in logs if line["event"] == "lines left out"]
    assert (line["of"], line["source"]) == ("agent refused", "127.0.0.1")


async def test_an_agent_that_connects_again_and_again_does_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 3)
    with capture_logs() as logs:
        async with agent_side() as side:
            for _ in range(8):
                async with side.agent():
                    await side.connected(PROXY_ID)
                await side.connected()
    events = Counter(line["event"] for line in logs)
    assert (events["agent connected"], events["agent disconnected"]) == (3, 3)
    assert events["lines left out"] == 1


@pytest.mark.slow
async def test_sixteen_megabytes_of_objects_take_a_proxy_no_more_memory_than_of_text(
    daemons: DaemonSet,
) -> None:
    """Asserted on resident memory (VmHWM); they took 400 MB."""
    daemons.secrets.add(API_KEY)
    proxy = await daemons.start(
        "proxy",
        '[tunnel]\nlisten = "127.0.0.1:0"\n[socketio]\nlisten = "127.0.0.1:0"\n'
        f'[[socketio.agents]]\nproxy_id = "{PROXY_ID}"\napi_key = "{API_KEY}"\n',
    )
    at = await proxy.listening("socketio.listen")
    sizes = []
    for content in ('"' + "x" * 15_000_000 + '"', "[" + "{}," * 5_000_000 + "{}]"):
        query = await joined(at.port)
        await exchange(at.port, "POST", query, f'42/proxy,["x",{content}]')
        sizes.append(proxy.peak_memory)
    assert sizes[1] - sizes[0] < 100_000_000
