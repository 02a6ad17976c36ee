"""GET /internal/requests: what a caller gets, how many there may be, what it misses."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from support.counted_bytes import CountedBytes, Work
from support.internal import SECRET, running_bench
from tunnelmux.limits import InternalLimits
from tunnelmux.proxy.internal.event_stream import HELLO, STILL_HERE, EventSplitter
from tunnelmux.sessions import RequestFilter, RequestSeen

ASK = (
    f"GET /internal/requests HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode()
)


async def test_a_caller_sees_calls_of_others_without_queries() -> None:
    async with running_bench() as bench, bench.agent(token="token-1") as agent:
        watching = bench.client.requests(RequestFilter(device="dev1"))
        async with watching as requests, trio.open_nursery() as nursery:
            nursery.start_soon(bench.client.forward_http, "token-1", "GET", "/x?secret=1")
            await agent.serve(b"HTTP/1.1 204 No Content\r\n\r\n")
            seen = await anext(requests)
    assert isinstance(seen, RequestSeen)
    assert (seen.way, seen.device, seen.method, seen.path) == ("call", "dev1", "GET", "/x")
    assert (seen.status, seen.visitor) == (204, "192.0.2.9:40000")


async def test_there_are_so_many_readers_and_no_more() -> None:
    async with running_bench(limits=InternalLimits(max_feed_readers=1)) as bench:
        async with bench.client.requests(RequestFilter()):
            answer = await bench.ask("GET", "/internal/requests")
            assert (answer.status, answer.code) == (503, "TOO_MANY_READERS")
        answer = await bench.ask("GET", "/internal/requests?status=no")
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")


async def test_readers_of_one_tenant_take_three_quarters_of_the_places_at_most() -> None:
    async with (
        running_bench(limits=InternalLimits(max_feed_readers=4)) as bench,
        AsyncExitStack() as s,
    ):
        for number in range(3):
            wanted = RequestFilter(device=f"dev{number}--evil")
            await s.enter_async_context(bench.client.requests(wanted))
        answer = await bench.ask("GET", "/internal/requests?device=dev4--evil")
        assert (answer.status, answer.code) == (503, "TOO_MANY_READERS")
        assert "of this tenant" in answer.json["error"]["message"]
        await s.enter_async_context(bench.client.requests(RequestFilter(device="dev1--good")))


async def test_a_reader_that_is_too_slow_is_told_how_many_it_missed() -> None:
    limits = InternalLimits(feed_backlog=2)
    async with running_bench(limits=limits) as bench:
        caller = await bench.caller(capacity=2000)
        await caller.send(ASK)
        await caller.read_head()
        feed = bench.dispatcher.visits.feed
        for number in range(100):
            feed.tell("http", {"device": "dev1", "path": f"/{number}", "problem": "x" * 500})
            await trio.testing.wait_all_tasks_blocked()
        text = b""
        while b'"/99"' not in text:
            text += await caller.read_chunk()
    assert text.count(b"event: request") < 20
    lost = sum(
        json.loads(line.partition(b": ")[2])["count"]
        for line in text.split(b"\n")
        if line.startswith(b'data: {"count"')
    )
    assert lost + text.count(b"event: request") == 100


async def test_silence_is_broken_by_comments(autojump_clock: MockClock) -> None:
    async with running_bench() as bench:
        caller = await bench.caller()
        await caller.send(ASK)
        await caller.read_head()
        text = b""
        while b": still here\n\n" not in text:
            text += await caller.read_chunk()


async def test_a_raw_forward_that_names_its_request_is_seen_as_one() -> None:
    """As tunnelmux-api does it; what else goes through is `raw`."""
    async with running_bench() as bench, bench.agent(token="token-1") as agent:
        async with bench.client.requests(RequestFilter(device="dev1")) as requests:
            for named in ("GET /x?secret=1", ""):
                stream = await bench.client.open_stream("token-1", service="web", request=named)
                device = await agent.stream()
                await stream.send_all(b"GET /x?secret=1 HTTP/1.1\r\n\r\n")
                await stream.send_eof()
                await device.read_all()
                await device.end()
                await stream.aclose()
                seen = await anext(requests)
                assert isinstance(seen, RequestSeen)
                assert (seen.device, seen.service) == ("dev1", "web")
                if named:
                    assert (seen.way, seen.method, seen.path) == ("api", "GET", "/x")
                else:
                    assert (seen.way, seen.method, seen.path) == ("raw", "", "")
        for odd in ("get /x", "GET x", "GET /a b", "GET"):
            fields = f"Authorization: Bearer {SECRET}\r\nTunnelmux-Request: {odd}\r\n"
            answer = await bench.ask("POST", "/internal/forward/raw?token=token-1", headers=fields)
            assert (answer.status, answer.code) == (400, "INVALID_REQUEST"), odd


@pytest.mark.parametrize(
    ("answer", "status", "reason", "upgraded"),
    [
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, "", False),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nA: b\r\n\r\n"], 413, "", False),
        (
            [b"HTTP/1.1 502 X\r\nA: b\r\nTunnelmux-Reason: target-down\r\n", b"\r\nbody"],
            *(502, "target-down", False),
        ),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x82\x00"], 101, "", True),
        ([bytes([byte]) for byte in b"HTTP/1.0 404 Not Found\r\n\r\nno"], 404, "", False),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], 0, "", False),
        ([b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000, b"\r\n\r\n"], 0, "", False),
        ([], 0, "", False),
    ],
    ids=["plain", "interim", "refused", "upgraded", "dripped", "no-http", "endless", "silent"],
)
async def test_a_named_request_has_the_status_of_its_answer(
    answer: list[bytes], status: int, reason: str, upgraded: bool
) -> None:
    async with (
        running_bench() as bench,
        bench.agent(token="token-1") as agent,
        bench.client.requests(RequestFilter(device="dev1")) as requests,
    ):
        stream = await bench.client.open_stream("token-1", service="web", request="GET /x")
        device = await agent.stream()
        await stream.send_all(b"GET /x HTTP/1.1\r\n\r\n")
        await stream.send_eof()
        await device.read_all()
        for piece in answer:
            await device.send(piece)
        await device.end()
        came = b""
        while data := await stream.receive_some():
            came += data
        assert came == b"".join(answer)
        seen = await anext(requests)
    assert isinstance(seen, RequestSeen)
    assert (seen.status, seen.reason, seen.upgraded) == (status, reason, upgraded)
    assert seen.bytes_out == len(came)


async def test_one_that_is_cut_is_a_reset_to_the_device() -> None:
    async with running_bench() as bench, bench.agent(token="token-1") as agent:
        stream = await bench.client.open_stream("token-1", service="web", request="POST /x")
        device = await agent.stream()
        await stream.send_all(b"POST /x HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
        assert await device.read_exactly(4) == b"POST"
        [visit] = bench.dispatcher.visits.of_device("dev1")
        visit.cut("its device was removed")
        with pytest.raises(trio.BrokenResourceError):
            await device.read_all()


def test_events_of_another_worker_are_looked_at_once_in_any_pieces() -> None:
    event = b'event: request\ndata: "' + b"x" * 5000 + b'"\n\n'
    raw = HELLO + event + STILL_HERE + event
    work, splitter = Work(), EventSplitter()
    told = [
        one for at in range(len(raw)) for one in splitter.feed(CountedBytes(raw[at : at + 1], work))
    ]
    assert told == [event, event]
    assert work.bytes <= 2 * len(raw)
    assert EventSplitter().feed(raw) == [event, event]
