"""forward/raw and forward/ws: the connection itself becomes the way to the device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
import trio
import trio.testing
import trio_websocket
from structlog.testing import capture_logs

from support.http_rig import Peer
from support.internal import SECRET, Bench, Caller, running_bench
from support.streams import next_bytes
from tunnelmux.errors import SessionClosed
from tunnelmux.limits import IngressLimits, InternalLimits

TOKEN = "token-of-dev1"
AUTH = f"Authorization: Bearer {SECRET}\r\n"
RAW = f"/internal/forward/raw?token={TOKEN}"


async def open_raw(bench: Bench, fields: str = "", target: str = RAW) -> tuple[Caller, bytes]:
    caller = await bench.caller()
    await caller.send(f"POST {target} HTTP/1.1\r\nHost: a\r\n{AUTH}{fields}\r\n".encode())
    return caller, await caller.read_head()


@pytest.mark.parametrize("fields", ["", "Content-Length: 0\r\n"])
async def test_without_an_upgrade_200_and_then_raw_bytes_both_ways(fields: str) -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller, head = await open_raw(bench, fields)
        assert head == (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
            b"Connection: close\r\n\r\n"
        )
        device = await agent.stream()
        await caller.send(b"\x00\xff any bytes")
        assert await device.read_exactly(12) == b"\x00\xff any bytes"
        await device.send(b"HTTP/1.1 200 OK\r\n\r\nlive")
        assert await caller.read_until(b"live") == b"HTTP/1.1 200 OK\r\n\r\nlive"
        await caller.end()  # a half-close goes through, and the other half goes on
        assert await device.read_all() == b""
        await device.send(b"still")
        await device.end()
        assert await caller.read_all() == b"still"


async def test_with_an_upgrade_101_and_bytes_behind_the_head_are_not_lost() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller = await bench.caller()
        await caller.send(
            f"POST {RAW} HTTP/1.1\r\nHost: a\r\n{AUTH}Connection: Upgrade\r\n"
            "Upgrade: tunnelmux-raw\r\n\r\nearly".encode()
        )
        device = await agent.stream()
        assert await device.read_exactly(5) == b"early"
        assert await caller.read_head() == (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: tunnelmux-raw\r\n\r\n"
        )


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_declared_body_is_what_is_sent_and_its_end_the_end(chunked: bool) -> None:
    content = b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"
    async with running_bench() as bench, bench.agent() as agent:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
        caller, head = await open_raw(bench, f"{framing}\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content) if chunked else content
        await caller.send(body)
        device = await agent.stream()
        assert await device.read_all() == content
        await device.send(b"one part after another")
        await device.end()
        assert await caller.read_all() == b"one part after another"


async def test_a_caller_that_waits_for_leave_to_send_its_body_gets_it() -> None:
    async with running_bench() as bench, bench.agent():
        caller, head = await open_raw(bench, "Content-Length: 5\r\nExpect: 100-continue\r\n")
        assert head == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await caller.read_head()).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("fields", ["", "Content-Length: 3\r\n"])
async def test_a_stream_that_breaks_is_a_cut_and_not_an_end(fields: str) -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller, _ = await open_raw(bench, fields)
        device = await agent.session.accept_stream()
        await device.send_all(b"half of it")
        assert await caller.read_until(b"it") == b"half of it"
        device.reset()
        with pytest.raises(trio.BrokenResourceError):
            await caller.read_all()


async def test_a_session_that_is_replaced_cuts_its_raw_streams() -> None:
    async with running_bench() as bench, bench.agent():
        caller, _ = await open_raw(bench)
        async with bench.agent():
            with pytest.raises(trio.BrokenResourceError):
                await caller.read_all()


async def test_a_caller_that_leaves_takes_its_stream_with_it() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller, _ = await open_raw(bench)
        device = await agent.session.accept_stream()
        caller.stream.reset()  # type: ignore[attr-defined]
        with pytest.raises(trio.BrokenResourceError):
            await device.receive_some()


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/internal/forward/raw", 400, "MISSING_SESSION_TOKEN"),
        ("/internal/forward/raw?token=nobodys", 502, "TUNNEL_DISCONNECTED"),
    ],
)
async def test_a_refusal_of_raw_is_json(target: str, status: int, code: str) -> None:
    async with running_bench() as bench:
        reply = await bench.ask("POST", target)
        assert (reply.status, reply.code) == (status, code)
        assert sorted(reply.json) == ["error"]


async def test_the_token_may_stand_in_a_field_instead_of_the_query() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        field = f"Tunnelmux-Session-Token: {TOKEN}\r\n"
        _, head = await open_raw(bench, field, "/internal/forward/raw")
        assert head.startswith(b"HTTP/1.1 200 ")
        await agent.stream()


async def test_raw_and_ws_count_as_forwards() -> None:
    async with (
        running_bench(limits=InternalLimits(max_forwards_per_session=1)) as bench,
        bench.agent() as agent,
    ):
        caller, _ = await open_raw(bench)
        reply = await bench.ask("POST", RAW)
        assert (reply.status, reply.code) == (503, "TOO_MANY_FORWARDS")
        device = await agent.stream()
        await device.end()
        await caller.end()
        await caller.read_all()
        await trio.testing.wait_all_tasks_blocked()
        _, head = await open_raw(bench)
        assert head.startswith(b"HTTP/1.1 200 ")


async def test_what_a_raw_stream_carried_is_logged_without_the_token() -> None:
    with capture_logs() as logs:
        async with running_bench() as bench, bench.agent(token="abcdefghijklmnopqrstuvwxyz") as ag:
            target = "/internal/forward/raw?token=abcdefghijklmnopqrstuvwxyz"
            caller, _ = await open_raw(bench, "", target)
            device = await ag.stream()
            await caller.send(b"12345")
            await caller.end()
            await device.read_all()
            await device.send(b"123")
            await device.end()
            await caller.read_all()
    [line] = [line for line in logs if line["event"] == "raw forward ended"]
    assert (line["bytes_in"], line["bytes_out"], line["outcome"]) == (5, 3, "finished")
    assert line["token"] == "abcdef…"
    assert "ghijk" not in repr(logs)


# -- the library -------------------------------------------------------------------------------


async def test_the_library_opens_a_stream() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        stream = await bench.client.open_stream(TOKEN)
        device = await agent.stream()
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await device.read_all() == b"hello"
        await device.send(b"goodbye")
        await device.end()
        assert await stream.receive_some(4) == b"good"
        assert await next_bytes(stream, 3) == b"bye"
        assert await stream.receive_some() == b""
        with pytest.raises(SessionClosed):
            await bench.client.open_stream("nobodys-token")


# -- WebSocket ---------------------------------------------------------------------------------


@asynccontextmanager
async def device_websocket(peer: Peer) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """The device's side of a WebSocket on a stream whose head was not read yet."""
    async with trio.open_nursery() as nursery:
        request = await trio_websocket.wrap_server_stream(nursery, peer.stream)  # type: ignore[arg-type]
        chosen = request.proposed_subprotocols[:1]
        websocket = await request.accept(subprotocol=chosen[0] if chosen else None)
        yield websocket
        nursery.cancel_scope.cancel()


async def test_a_websocket_goes_through_frame_by_frame() -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:

        async def echo() -> None:
            async with device_websocket(await agent.stream()) as websocket:
                assert websocket.path == "/ws/devices?id=1"
                while True:
                    try:
                        await websocket.send_message(await websocket.get_message())
                    except trio_websocket.ConnectionClosed:
                        return

        nursery.start_soon(echo)
        async with bench.client.open_websocket(
            TOKEN, "/ws/devices?id=1", subprotocols=["chat"]
        ) as websocket:
            assert websocket.subprotocol == "chat"
            for message in ("text, as it is: ü", b"\x00\x01 and bytes", "x" * 200_000):
                await websocket.send_message(message)
                assert await websocket.get_message() == message
            await websocket.ping()
            await websocket.aclose(1000, "enough")
            assert websocket.closed.code == 1000


async def test_the_device_learns_no_secret_and_no_token() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller = await bench.caller()
        target = f"/internal/forward/ws?token={TOKEN}&path={quote('/ws?a=1')}"
        await caller.send(
            f"GET {target} HTTP/1.1\r\nHost: proxy:3801\r\n{AUTH}Connection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n"
            f"Tunnelmux-Session-Token: {TOKEN}\r\nTunnelmux-Service: web\r\nCookie: c=1\r\n\r\n"
            "".encode()
        )
        device = await agent.stream()
        head = await device.read_head()
        assert head == (
            b"GET /ws?a=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: a\r\nTunnelmux-Service: web\r\nCookie: c=1\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        await device.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        await device.end()
        reply = await caller.read_reply()
        assert (reply.status, reply.body) == (404, b"no")  # the device's own answer


async def test_what_is_no_websocket_upgrade_is_told_so() -> None:
    async with running_bench() as bench, bench.agent():
        reply = await bench.ask("GET", f"/internal/forward/ws?token={TOKEN}")
        assert (reply.status, reply.code) == (426, "UPGRADE_REQUIRED")
        assert reply.headers["upgrade"] == "websocket"


UPGRADE = AUTH + "Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "MISSING_SESSION_TOKEN"),
        ("?token=nobodys", 502, "TUNNEL_DISCONNECTED"),
        (f"?token={TOKEN}&path=relative", 400, "INVALID_REQUEST"),
    ],
)
async def test_a_refusal_of_ws_is_json(query: str, status: int, code: str) -> None:
    async with running_bench() as bench, bench.agent():
        reply = await bench.ask("GET", f"/internal/forward/ws{query}", headers=UPGRADE)
        assert (reply.status, reply.code) == (status, code)
        assert sorted(reply.json) == ["error"]


async def test_a_device_that_does_not_answer_the_upgrade_is_json_too(
    autojump_clock: object,
) -> None:
    async with running_bench() as bench, bench.agent() as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, b"")
        reply = await bench.ask("GET", f"/internal/forward/ws?token={TOKEN}", headers=UPGRADE)
        assert (reply.status, reply.code) == (502, "TUNNEL_READ_ERROR")
        reply = await bench.ask("GET", f"/internal/forward/ws?token={TOKEN}", headers=UPGRADE)
        assert (reply.status, reply.code) == (504, "TIMEOUT")


async def test_a_service_that_may_take_longer_is_waited_for_so_long(
    autojump_clock: object,
) -> None:
    """Its own `response_timeout`, also where it is the default one; others have the usual time."""
    limits = IngressLimits(response_timeout=60)
    took: dict[str, float] = {}
    timeouts: dict[str | None, float] = {"slow": 300, None: 300, "quick": 5}
    async with (
        running_bench(http_limits=limits) as bench,
        bench.agent(timeouts=timeouts),
    ):
        for service in ("web", "slow", "", "quick"):
            fields = f"Tunnelmux-Service: {service}\r\n" if service else ""
            began = trio.current_time()
            target = f"/internal/forward/ws?token={TOKEN}"
            reply = await bench.ask("GET", target, headers=UPGRADE + fields)
            assert (reply.status, reply.code) == (504, "TIMEOUT")
            took[service] = trio.current_time() - began
    assert took["web"] >= 60
    assert took["slow"] == took[""] == pytest.approx(took["web"] + 240)
    assert took["quick"] == pytest.approx(took["web"])  # the agent ends it before
