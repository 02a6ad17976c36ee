"""One request and its response, as the visitor and the target see them."""

from __future__ import annotations

import pytest
import trio

from support.http_rig import running_rig
from tunnelmux.http.connection import DRAIN_BYTES, DRAIN_TIMEOUT
from tunnelmux.limits import IngressLimits

GET = b"GET /page HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n"


async def test_a_request_and_its_response() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        assert await target.read_head() == (
            b"GET /page HTTP/1.1\r\nHost: dev1.localhost\r\nConnection: close\r\n\r\n"
        )
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Own: yes\r\n\r\nhello")
        assert await rig.visitor.read_head() == (
            b"HTTP/1.1 200 OK\r\nX-Own: yes\r\nContent-Length: 5\r\n\r\n"
        )
        assert await rig.visitor.read_exactly(5) == b"hello"
    (exchange,) = rig.exchanges
    assert (exchange.status, exchange.bytes_in, exchange.bytes_out) == (200, 0, 5)
    assert exchange.problem is None


async def test_each_request_of_a_connection_is_routed_by_its_own_head() -> None:
    async with running_rig() as rig:
        for number in range(3):
            await rig.visitor.send(b"GET /%d HTTP/1.1\r\nHost: dev%d\r\n\r\n" % (number, number))
            target = await rig.target()
            assert b"Host: dev%d\r\n" % number in await target.read_head()
            await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
            await rig.visitor.read_head()
            assert await rig.visitor.read_exactly(1) == b"%d" % number
    assert [request.host for request in rig.requests] == [b"dev0", b"dev1", b"dev2"]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(
            b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nGET"
            b"GET /2 HTTP/1.1\r\nHost: b\r\n\r\n"
        )
        for path, answer in ((b"/1", b"one"), (b"/2", b"two")):
            target = await rig.target()
            assert path in await target.read_head()
            await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + answer)
            await rig.visitor.read_head()
            assert await rig.visitor.read_exactly(3) == answer


async def test_a_pipelined_request_waits_while_the_first_is_answered() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await rig.visitor.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        assert len(rig.requests) == 1
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert b" 204 " in await rig.visitor.read_head()
        target = await rig.target()
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert b" 204 " in await rig.visitor.read_head()


# Bodies


async def test_upload_streams_piece_by_piece() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"PUT /f HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab")
        target = await rig.target()
        assert b"Content-Length: 6\r\n" in await target.read_head()
        assert await target.read_exactly(2) == b"ab"
        await rig.visitor.send(b"cd")
        assert await target.read_exactly(2) == b"cd"
        await rig.visitor.send(b"ef")
        assert await target.read_exactly(2) == b"ef"
        await target.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        assert b" 201 " in await rig.visitor.read_head()
    assert rig.exchanges[0].bytes_in == 6


async def test_chunked_upload_with_trailers() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        )
        target = await rig.target()
        head = await target.read_head()
        assert b"Transfer-Encoding: chunked\r\n" in head
        assert b"Trailer: X-Sum\r\n" in head
        await rig.visitor.send(b"3;ext=1\r\nabc\r\n")
        assert await target.read_chunk() == b"abc"
        await rig.visitor.send(b"0\r\nX-Sum: 1\r\nContent-Length: 9\r\nHost: evil\r\n\r\n")
        assert await target.read_chunk() == b""
        assert await target.read_until(b"\r\n\r\n") == b"X-Sum: 1\r\n\r\n"
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        head = await rig.visitor.read_head()
        assert b"Connection: close" not in head


async def test_server_sent_events_arrive_one_by_one() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        assert b"Transfer-Encoding: chunked\r\n" in await rig.visitor.read_head()
        for number in range(3):
            await target.send(b"data: %d\n\n" % number)
            assert await rig.visitor.read_chunk() == b"data: %d\n\n" % number
        await target.end()
        assert await rig.visitor.read_chunk() == b""


async def test_chunked_response_with_trailers() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(
            b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers, deflate\r\nConnection: TE\r\n\r\n"
        )
        target = await rig.target()
        head = await target.read_head()
        assert b"TE: trailers\r\n" in head
        assert b"Connection: TE, close\r\n" in head
        await target.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n"
            b"5\r\nhello\r\n0\r\ngrpc-status: 0\r\nTransfer-Encoding: gzip\r\n\r\n"
        )
        assert b"Trailer: grpc-status\r\n" in await rig.visitor.read_head()
        assert await rig.visitor.read_chunk() == b"hello"
        assert await rig.visitor.read_chunk() == b""
        assert await rig.visitor.read_until(b"\r\n\r\n") == b"grpc-status: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n"),
    ],
)
async def test_responses_without_a_body_end_with_their_head(method: bytes, head: bytes) -> None:
    async with running_rig() as rig:
        for _ in range(2):
            await rig.visitor.send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
            target = await rig.target()
            await target.read_head()
            await target.send(head + b"\r\n")
            answer = await rig.visitor.read_head()
            assert answer.split(b"\r\n")[0] == head.split(b"\r\n")[0]
            assert b"Transfer-Encoding" not in answer
            # A length is told where it says what a GET would have had, and never with a 204.
            told = b"Content-Length" in head and b" 204 " not in head
            assert (b"Content-Length: 1000\r\n" in answer) == told


async def test_length_beside_chunked_in_a_response_is_dropped() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\n"
        )
        assert b"Content-Length" not in await rig.visitor.read_head()
        assert await rig.visitor.read_chunk() == b"hello"
        assert await rig.visitor.read_chunk() == b""


# HTTP/1.0


async def test_old_visitor_gets_a_body_that_ends_with_the_connection() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"GET / HTTP/1.0\r\n\r\n")
        target = await rig.target()
        await target.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
        )
        head = await rig.visitor.read_head()
        assert b"Transfer-Encoding" not in head
        assert b"Connection: close\r\n" in head
        assert await rig.visitor.read_all() == b"hello"


async def test_visitor_that_half_closes_still_gets_its_answer() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"GET / HTTP/1.0\r\n\r\n")
        await rig.visitor.end()
        target = await rig.target()
        await target.read_head()
        await trio.testing.wait_all_tasks_blocked()
        await target.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        await target.end()
        await rig.visitor.read_head()
        assert await rig.visitor.read_all() == b"all of it"
    assert not rig.target_ends[0].was_reset


async def test_old_target_whose_body_ends_with_its_connection() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(b"HTTP/1.0 200 OK\r\n\r\nhello")
        await target.end()
        assert b"Transfer-Encoding: chunked\r\n" in await rig.visitor.read_head()
        assert await rig.visitor.read_chunk() == b"hello"
        assert await rig.visitor.read_chunk() == b""


# Interim responses


async def test_100_continue_comes_from_the_target() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        target = await rig.target()
        assert b"Expect: 100-continue\r\n" in await target.read_head()
        await trio.testing.wait_all_tasks_blocked()
        await target.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await rig.visitor.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await rig.visitor.send(b"body")
        assert await target.read_exactly(4) == b"body"
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        head = await rig.visitor.read_head()
        assert b"Connection: close" not in head


async def test_final_answer_instead_of_100_continue() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        head = await rig.visitor.read_head()
        assert b" 417 " in head
        assert b"Connection: close\r\n" in head
        await rig.visitor.end()
        assert await rig.visitor.read_all() == b""


async def test_early_hints_and_others_pass_before_the_response() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )
        assert await rig.visitor.read_head() == (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
        )
        assert await rig.visitor.read_head() == b"HTTP/1.1 102 Processing\r\n\r\n"
        assert b" 200 " in await rig.visitor.read_head()


async def test_old_visitor_is_spared_interim_responses_and_cannot_expect() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(
            b"POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\nx"
        )
        target = await rig.target()
        assert b"Expect" not in await target.read_head()
        await target.send(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )
        assert b" 200 " in await rig.visitor.read_head()


# Early and failing ends


async def test_answer_before_the_end_of_the_upload(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig(capacity=100_000) as rig:
        await rig.visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\nxx")
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nstop")
        head = await rig.visitor.read_head()
        assert b" 413 " in head
        assert b"Connection: close\r\n" in head
        assert await rig.visitor.read_exactly(4) == b"stop"
        # The visitor goes on sending; it is read and dropped, so that no reset eats the answer.
        await rig.visitor.send(bytes(500_000))
        await rig.visitor.end()
        assert await rig.visitor.read_all() == b""
    assert not rig.front.was_reset
    assert rig.target_ends[0].was_reset


async def test_visitor_that_never_stops_sending_is_cut_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(capacity=100_000) as rig:
        await rig.visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\nxx")
        target = await rig.target()
        await target.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nstop")
        await rig.visitor.read_head()
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await rig.visitor.send(bytes(1000))
                await trio.sleep(0.1)
        assert trio.current_time() - start == pytest.approx(DRAIN_TIMEOUT, abs=0.2)


async def test_what_is_dropped_after_an_early_answer_is_bounded() -> None:
    async with running_rig(capacity=100_000) as rig:
        await rig.visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 99000000\r\n\r\n")
        target = await rig.target()
        await target.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nstop")
        await rig.visitor.read_head()
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while True:
                # Counted before it is sent: a part of the last block may have been read.
                sent += 100_000
                await rig.visitor.send(bytes(100_000))
        assert DRAIN_BYTES <= sent <= DRAIN_BYTES + 400_000


async def test_answer_of_a_target_that_stopped_reading() -> None:
    async with running_rig(capacity=1000) as rig:
        await rig.visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n")
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        assert b" 403 " in await rig.visitor.read_head()
        assert await rig.visitor.read_exactly(2) == b"no"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", b"without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", b"within the head"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"did not answer in HTTP"),
        (b"ICY 200 OK\r\nicy-name: x\r\n\r\n", b"passes as it is through a TCP service"),
        (b"HTTP/1.1 200 OK\r\nX (y): z\r\n\r\n", b"passes as it is through a TCP service"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", b"did not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"conflicting"),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", b"no colon"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b"without being asked"),
        (b"HTTP/1.1 099 Low\r\n\r\n", b"status"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, b"larger than 65536 bytes"),
    ],
)
async def test_target_that_breaks_before_answering_is_a_502(answer: bytes, said: bytes) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.read_head()
        if answer:
            await target.send(answer)
        await target.end()
        head = await rig.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Tunnelmux-Reason: target-broke\r\n" in head
        assert said in await rig.visitor.read_until(b'"reason":"target-broke"}\n')
        # The visitor's connection is fine and goes on.
        await rig.visitor.send(GET)
        await (await rig.target()).send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert b" 204 " in await rig.visitor.read_head()
    assert rig.exchanges[0].reason == "target-broke"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"Content-Length: 10\r\n", b"hello"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n"),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_cut_response_never_looks_complete(head: bytes, piece: bytes, version: bytes) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
        target = await rig.target()
        await target.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + piece)
        await rig.visitor.read_head()
        await target.end()
        with pytest.raises(trio.BrokenResourceError):
            await rig.visitor.read_all()
    assert rig.exchanges[0].problem is not None


async def test_malformed_chunk_of_a_target_before_any_content_is_a_502() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert b"Tunnelmux-Reason: target-broke\r\n" in await rig.visitor.read_head()


async def test_reset_of_the_target_within_an_unbounded_body_is_a_cut() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"GET / HTTP/1.0\r\n\r\n")
        target = await rig.target()
        await target.send(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        await rig.visitor.read_head()
        assert await rig.visitor.read_exactly(4) == b"half"
        rig.target_ends[0].reset()
        with pytest.raises(trio.BrokenResourceError):
            await rig.visitor.read_all()


async def test_visitor_that_leaves_takes_the_request_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.read_head()
        rig.front.reset()
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()
    assert rig.exchanges[0].status == 0
    assert "the visitor is gone" in (rig.exchanges[0].problem or "")


async def test_visitor_that_leaves_within_a_quiet_response(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        await rig.visitor.end()
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        await rig.visitor.read_head()
        await trio.sleep(20)
        rig.front.reset()
        await trio.sleep(6)
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()


@pytest.mark.parametrize(
    "rest",
    [b"5\r\nhelloXX", b"zz\r\n", b"5\nhello\r\n", b"1" + b"0" * 16 + b"\r\n", b"5;" + b"x" * 300],
)
async def test_malformed_chunk_of_a_visitor_is_a_400_and_resets_the_target(rest: bytes) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        target = await rig.target()
        await target.read_head()
        await rig.visitor.send(rest)
        head = await rig.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Connection: close\r\n" in head
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()
        await rig.visitor.end()


async def test_upload_that_ends_too_early_is_a_400_and_resets_the_target() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        await rig.visitor.end()
        target = await rig.target()
        assert b" 400 " in await rig.visitor.read_head()
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()


# Time


async def test_target_that_never_answers_is_a_504(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig(response_timeout=60) as rig:
        start = trio.current_time()
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.read_head()
        head = await rig.visitor.read_head()
        assert trio.current_time() - start == pytest.approx(60)
        assert head.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert b"Tunnelmux-Reason: target-timeout\r\n" in head
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()


async def test_slow_upload_does_not_run_into_the_response_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(limits=IngressLimits(body_stall=601), response_timeout=60) as rig:
        await rig.visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        target = await rig.target()
        for piece in (b"a", b"b", b"c"):
            await trio.sleep(600)
            await rig.visitor.send(piece)
        await trio.sleep(50)
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert b" 204 " in await rig.visitor.read_head()


async def test_awaited_100_that_never_comes_is_a_504(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(response_timeout=60) as rig:
        await rig.visitor.send(
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        await rig.target()
        assert b" 504 " in await rig.visitor.read_head()
        await rig.visitor.end()


async def test_a_response_may_pause_for_hours(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await trio.sleep(7200)
        await target.send(b"b")
        await rig.visitor.read_head()
        assert await rig.visitor.read_exactly(2) == b"ab"


# Memory


async def test_a_slow_visitor_slows_the_target_down(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig(capacity=1000) as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with trio.move_on_after(60) as blocked:
            await target.send(bytes(100_000))
        assert blocked.cancelled_caught
        got = 0
        with trio.move_on_after(1):
            await rig.visitor.read_head()
            while True:
                got += len(await rig.visitor.stream.receive_some())
        assert got <= 3000
        rig.front.reset()


async def test_a_slow_target_slows_the_visitor_down(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig(capacity=1000, response_timeout=600) as rig:
        await rig.visitor.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        await rig.target()
        with trio.move_on_after(60) as blocked:
            await rig.visitor.send(bytes(100_000))
        assert blocked.cancelled_caught
        assert rig.exchanges == []
        # A target that takes nothing for the response's time has had its time.
        assert b" 504 " in await rig.visitor.read_head()
        rig.front.reset()


async def test_both_directions_flow_at_the_same_time() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await rig.visitor.read_head()
        for word in (b"one", b"two", b"three"):
            await rig.visitor.send(b"%x\r\n%s\r\n" % (len(word), word))
            assert await target.read_chunk() == word
            await target.send(b"%x\r\n%s\r\n" % (len(word), word[::-1]))
            assert await rig.visitor.read_chunk() == word[::-1]
        await rig.visitor.send(b"0\r\n\r\n")
        assert await target.read_chunk() == b""
        await target.send(b"0\r\n\r\n")
        assert await rig.visitor.read_chunk() == b""
        await rig.visitor.end()


# Cancellation and draining


async def test_cancelled_exchange_cuts_both_sides() -> None:
    with trio.CancelScope() as scope:
        async with running_rig() as rig:
            await rig.visitor.send(GET)
            target = await rig.target()
            await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            await rig.visitor.read_head()
            scope.cancel()
    assert rig.front.was_reset
    assert rig.target_ends[0].was_reset
    assert rig.exchanges[0].bytes_out == 5


async def test_draining_closes_an_idle_connection_at_once() -> None:
    async with running_rig() as rig:
        await trio.testing.wait_all_tasks_blocked()
        rig.server.finish_soon()
        assert await rig.visitor.read_all() == b""


async def test_draining_lets_the_running_request_finish() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        rig.server.finish_soon()
        await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        assert b"Connection: close\r\n" in await rig.visitor.read_head()
        assert await rig.visitor.read_all() == b"hello"


async def test_idle_connection_is_closed_after_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(limits=IngressLimits(idle_timeout=30)) as rig:
        await rig.visitor.send(GET)
        target = await rig.target()
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await rig.visitor.read_head()
        start = trio.current_time()
        assert await rig.visitor.read_all() == b""
        assert trio.current_time() - start == pytest.approx(30)


async def test_a_body_that_moves_no_byte_is_a_408_and_the_target_sees_a_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(limits=IngressLimits(body_stall=30), response_timeout=1000) as rig:
        await rig.visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        target = await rig.target()
        await target.read_head()
        for _ in range(3):
            await trio.sleep(25)
            await rig.visitor.send(b"x")
        start = trio.current_time()
        head = await rig.visitor.read_head()
        assert trio.current_time() - start == pytest.approx(30)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Tunnelmux-Reason: body-stalled\r\n" in head
        await rig.visitor.end()
        with pytest.raises(trio.BrokenResourceError):
            await target.read_all()
    (exchange,) = rig.exchanges
    assert (exchange.status, exchange.reason, exchange.bytes_in) == (408, "body-stalled", 3)


async def test_a_visitor_that_waits_for_a_100_has_the_time_of_the_target(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(limits=IngressLimits(body_stall=30), response_timeout=60) as rig:
        await rig.visitor.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        target = await rig.target()
        await target.read_head()
        await trio.sleep(45)
        await target.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await rig.visitor.read_head()
        await rig.visitor.send(b"yes")
        assert await target.read_exactly(3) == b"yes"
        await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert (await rig.visitor.read_head()).startswith(b"HTTP/1.1 204")
        await rig.visitor.end()
