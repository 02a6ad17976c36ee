"""GET /internal/visits and POST /internal/visits/{id}/close, as a back end sees them."""

from __future__ import annotations

import re

import pytest
import trio
from structlog.testing import capture_logs

from support.http_rig import Peer
from support.internal import SECRET, Bench, running_bench
from tunnelmux.backend import ApiCallFailed

AUTHORIZED = f"Authorization: Bearer {SECRET}\r\n"
COMMAND = {"devices": "dev1", "host": "h", "username": "u", "password": "p", "command": "sleep"}


async def raw_forward(bench: Bench, token: str = "token-of-dev1") -> Peer:
    caller = await bench.caller()
    await caller.send(
        f"POST /internal/forward/raw?token={token} HTTP/1.1\r\nHost: p\r\n"
        f"{AUTHORIZED}Connection: Upgrade\r\nUpgrade: tunnel\r\n\r\n".encode()
    )
    assert (await caller.read_head()).startswith(b"HTTP/1.1 101")
    return caller


async def test_a_raw_forward_is_a_visit_with_its_bytes_until_it_ends() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller = await raw_forward(bench)
        stream = await agent.stream()
        await caller.send(b"x" * 100)
        await stream.read_exactly(100)
        await stream.send(b"y" * 30)
        await caller.read_exactly(30)
        content = (await bench.ask("GET", "/internal/visits")).json
        [visit] = content["visits"]
        assert content["total"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", visit.pop("since"))
        assert re.fullmatch(r"[0-9a-f]{8}-\d+", visit.pop("id"))
        assert visit == {
            "way": "raw",
            "device": "dev1",
            "visitor": "192.0.2.9:40000",
            "scheme": "raw",
            "stream": 2,
            "bytesIn": 100,
            "bytesOut": 30,
        }
        await caller.end()
        await stream.end()
        await caller.read_all()
        await trio.testing.wait_all_tasks_blocked()
        assert await bench.client.list_visits() == []


async def test_a_visit_that_is_closed_is_a_reset_at_both_ends_and_one_line_says_why() -> None:
    async with running_bench() as bench, bench.agent() as agent, bench.agent("dev2") as other:
        caller = await raw_forward(bench)
        stream = await agent.stream()
        await raw_forward(bench, "token-of-dev2")
        kept = await other.stream()
        [visit] = await bench.client.list_visits("dev1")
        with capture_logs() as logs:
            await bench.client.close_visit(visit.id)
            for end in (caller, stream):
                with pytest.raises(trio.BrokenResourceError):
                    await end.read_all()
            await trio.testing.wait_all_tasks_blocked()
        [line] = [line for line in logs if line["event"] == "raw forward ended"]
        assert line["cut"] == "closed through the internal API"
        assert [visit.device for visit in await bench.client.list_visits()] == ["dev2"]
        with pytest.raises(ApiCallFailed, match="no live visit"):
            await bench.client.close_visit(visit.id)
        await kept.send(b"goes on")


@pytest.mark.parametrize("visit_id", ["17", "x-1", "deadbeef-1", "-", "deadbeef-" + "9" * 50])
async def test_a_visit_that_is_not_there_is_not_found(visit_id: str) -> None:
    async with running_bench() as bench:
        reply = await bench.ask("POST", f"/internal/visits/{visit_id}/close")
        assert (reply.status, reply.code) == (404, "NOT_FOUND")


async def test_a_command_is_a_visit_and_ends_as_lost_when_that_is_cut() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller = await bench.caller()
        replies: list[dict[str, object]] = []

        async def run() -> None:
            headers = AUTHORIZED + "Accept: application/json\r\n"
            reply = await caller.ask("POST", "/internal/exec", COMMAND, headers=headers)
            replies.extend(reply.json["results"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            stream = await agent.stream()
            await stream.read_head()
            [visit] = await bench.client.list_visits()
            assert (visit.way, visit.device, visit.visitor) == ("exec", "dev1", "192.0.2.9:40000")
            await bench.client.close_visit(visit.id)
        [result] = replies
        assert "closed through the internal API" in str(result)
        assert "'reason': 'lost'" in str(result)


async def test_a_websocket_of_a_back_end_is_a_visit_and_can_be_closed() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        caller = await bench.caller()
        await caller.send(
            b"GET /internal/forward/ws?token=token-of-dev1 HTTP/1.1\r\nHost: p\r\n"
            + AUTHORIZED.encode()
            + b"Tunnelmux-Service: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        stream = await agent.stream()
        await stream.read_head()
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\nhello"
        )
        await caller.read_head()
        await caller.read_exactly(5)
        await caller.send(b"1234567")
        await stream.read_exactly(7)
        [visit] = await bench.client.list_visits()
        assert (visit.way, visit.service, visit.bytes_in, visit.bytes_out) == ("ws", "chat", 7, 5)
        await bench.client.close_visit(visit.id)
        with pytest.raises(trio.BrokenResourceError):
            await caller.read_all()


async def test_the_list_is_as_long_as_was_asked_for() -> None:
    async with running_bench() as bench, bench.agent() as agent:
        for _ in range(3):
            await raw_forward(bench)
            await agent.stream()
        content = (await bench.ask("GET", "/internal/visits?limit=2")).json
        assert (len(content["visits"]), content["total"]) == (2, 3)
        assert len(await bench.client.list_visits(limit=1)) == 1
        assert await bench.client.list_visits("dev9") == []
        for text in ("0", "x", "-1", "10001", "9" * 40):
            reply = await bench.ask("GET", f"/internal/visits?limit={text}")
            assert (reply.status, reply.code) == (400, "INVALID_REQUEST")
