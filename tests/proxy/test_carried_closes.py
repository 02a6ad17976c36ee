"""Visitors that say `Connection: close`: served by the pump like the others, and told goodbye."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from support.carried_http import OK, WAYS, Target, get, rig
from support.http_rig import Peer
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort

CLOSE = "Connection: close\r\n"
GOODBYE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
OFFERING = OK.replace(b"OK\r\n", b"OK\r\nConnection: Upgrade, close\r\nUpgrade: h2,h2c\r\n")
KEEPING = OK.replace(b"OK\r\n", b"OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n")


async def begin(target: Target, way: str) -> None:
    """Make the next request one that the pump carries, in this way, or leave it to h11."""
    if way != "h11":
        target.way = way
        await target.first_exchange()


@pytest.mark.parametrize("way", [*WAYS, "h11"])
@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK + b"ok", b"200 OK", b"ok"),
        (GOODBYE + b"ok", b"200 OK", b"ok"),
        (b"HTTP/1.1 200 OK\r\nconnection:close\r\nContent-Length:2\r\n\r\nok", b"200 OK", b"ok"),
        (KEEPING + b"ok", b"200 OK", b"ok"),
        (OFFERING + b"ok", b"200 OK", b"ok"),
        (b"HTTP/1.0 404 No\r\nContent-Length: 2\r\n\r\nok", b"404 No", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"204 No Content", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"304 Not Modified", b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"ok", b"200 OK", b"ok"),
    ],
)
async def test_the_answer_says_close_once_and_the_connection_ends(
    answer: bytes, status: bytes, body: bytes, way: str
) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, asked = await target.ask(get("/1", CLOSE))
        assert asked.startswith(b"GET /1 HTTP/1.1\r\n")
        assert asked.lower().count(b"connection:") == (way == "h11"), "it is the next hop's matter"
        assert (b"X-Forwarded-For: 127.0.0.1\r\n" in asked) and asked.count(b"\r\nHost:") == 1
        await peer.send(answer)
        head = await target.visitor.read_head()
        if head.startswith(b"HTTP/1.1 103 "):
            head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert head.lower().count(b"connection:") == 1
        assert b"Connection: close\r\n" in head
        assert b"Keep-Alive" not in head
        assert b"Upgrade" not in head
        assert await target.visitor.read_all() == body
        assert await peer.read_all() == b""


@pytest.mark.parametrize("way", [*WAYS, "h11"])
@pytest.mark.parametrize(
    ("head", "body", "sent"),
    [
        (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"Server: old", b"until the end", None),
    ],
)
async def test_answers_without_a_length(
    head: bytes, body: bytes, sent: bytes | None, way: str
) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, _ = await target.ask(get("/", CLOSE))
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
        await peer.stream.aclose()
        got = await target.visitor.read_head()
        assert got.lower().count(b"connection:") == 1
        assert b"Connection: close\r\n" in got
        rest = await target.visitor.read_all()
        if sent is not None:
            assert rest == sent
        else:  # h11's way may put a frame around it
            assert body in rest


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_an_answer_to_head_has_no_body(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, _ = await target.ask(get("/", CLOSE).replace(b"GET", b"HEAD"))
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        assert b"Content-Length: 5000\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b""


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_the_last_request_of_a_kept_connection(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        first, _ = await target.ask(get("/1", "" if way != "h11" else "TE: trailers\r\n"))
        await first.send(OK + b"ok")
        assert (await target.visitor.read_head()).count(b"Connection") == 0
        assert await target.visitor.read_exactly(2) == b"ok"
        await target.visitor.send(get("/2", CLOSE))
        peer = first if way != "h11" else await target.connection()
        assert b"GET /2 " in await peer.read_head()
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"
        assert await peer.read_all() == b""


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_nothing_behind_it_is_sent_on_and_the_answer_arrives_whole(way: str) -> None:
    """More than the kernel holds, so that a close would become a reset that costs the answer."""
    size = 2_000_000
    late = get("/late") * 20_000
    async with rig() as target:
        await begin(target, way)
        await target.visitor.send(get("/1", CLOSE) + get("/2") + get("/3", host="dev2.localhost"))
        peer = await target.connection()
        assert (await peer.read_head()).startswith(b"GET /1 ")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.visitor.send, late)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            nursery.start_soon(peer.send, b"x" * size)
            await target.visitor.read_head()
            assert await target.visitor.read_all() == b"x" * size
        assert await peer.read_all() == b""
        with trio.move_on_after(0.05):
            await target.connection()
            pytest.fail("a request behind the last one was sent on")


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_keeps_sending_is_cut_in_the_end(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, _ = await target.ask(get("/1", CLOSE))
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"
        junk = bytes(65_536)
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while sent < 200_000_000:
                await target.visitor.send(junk)
                sent += len(junk)


@pytest.mark.parametrize("way", [*WAYS, "h11"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_request_with_a_body(chunked: bool, way: str) -> None:
    body = b"y" * 300_000
    framing = b"Content-Length: %d" % len(body)
    if chunked:
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        framing = b"Transfer-Encoding: chunked"
    head = b"POST /up HTTP/1.1\r\nConnection: close\r\nHost: dev1.localhost\r\n%b\r\n\r\n" % framing
    async with rig() as target, trio.open_nursery() as nursery:
        await begin(target, way)
        nursery.start_soon(target.visitor.send, head + body)
        peer = await target.connection()
        assert framing in await peer.read_head()
        if chunked:
            got = await peer.read_until(b"0\r\n\r\n")
            assert got.count(b"y") == 300_000
        else:
            assert await peer.read_exactly(len(body)) == body
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_a_visitor_that_has_said_all_still_gets_its_answer(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        await target.visitor.send(get("/1", CLOSE))
        await target.visitor.end()
        peer = await target.connection()
        await peer.read_head()
        await peer.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"
        assert await peer.read_all() == b""


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_a_visitor_that_breaks_off_is_a_reset_for_the_target(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, _ = await target.ask(get("/", CLOSE))
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await target.visitor.read_until(b"half")
        await abort(target.visitor.stream)
        with pytest.raises(trio.BrokenResourceError):
            await peer.read_all()


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_an_answer_that_is_cut_is_no_end(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, _ = await target.ask(get("/", CLOSE))
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await target.visitor.read_until(b"half")
        await peer.stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await target.visitor.read_all()


@pytest.mark.parametrize("way", WAYS)
async def test_a_target_that_closed_is_asked_once_more(way: str) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, _ = await target.ask(get("/safe", CLOSE))
        await abort(peer.stream)
        again = await target.connection()
        assert (await again.read_head()).startswith(b"GET /safe ")
        await again.send(OK + b"ok")
        assert b"Connection: close\r\n" in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"ok"


@pytest.mark.parametrize("way", [*WAYS, "h11"])
async def test_a_target_without_an_answer_is_a_504_that_closes(way: str) -> None:
    limits = IngressLimits(response_timeout=0.1, connect_timeout=0.2)
    async with rig(limits) as target:
        await begin(target, way)
        await target.ask(get("/", CLOSE))
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b"Connection: close\r\n" in head
        await target.visitor.read_all()


@pytest.mark.parametrize("way", [*WAYS, "h11"])
@pytest.mark.parametrize("extra", ["", "Connection: Keep-Alive\r\n", CLOSE])
async def test_a_visitor_that_speaks_http_1_0_gets_an_answer_and_an_end(
    extra: str, way: str
) -> None:
    async with rig() as target:
        await begin(target, way)
        peer, asked = await target.ask(get("/", extra).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert asked.startswith(b"GET / HTTP/1.1\r\n")
        await peer.send(OK + b"ok")
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close\r\n" in head
        assert await target.visitor.read_all() == b"ok"


@pytest.mark.parametrize("way", WAYS)
async def test_the_log_tells_of_it_like_of_any_carried_request(way: str) -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await begin(target, way)
            peer, _ = await target.ask(get("/1", CLOSE))
            await peer.send(OK + b"ok")
            await target.visitor.read_until(b"ok")
            assert await target.visitor.read_all() == b""
            await target.visitor.stream.aclose()
            assert await peer.read_all() == b""
    [line] = [line for line in logs if line.get("path") == "/1"]
    assert (line["event"], line["method"], line["status"]) == ("request", "GET", 200)
    assert line["bytes_out"] == 2


async def test_each_of_many_connections_gets_its_own_answer() -> None:
    async with rig() as target:
        await target.first_exchange()
        address = target.proxy.http_address
        assert address is not None

        async def visit(number: int) -> None:
            async with await trio.open_tcp_stream(*address) as stream:
                visitor = Peer(stream)
                await visitor.send(get(f"/{number}", CLOSE))
                assert b"Connection: close\r\n" in await visitor.read_head()
                assert await visitor.read_all() == b"%06d" % number

        async def serve() -> None:
            for _ in range(50):
                peer = await target.connection()
                number = int((await peer.read_head()).split()[1][1:])
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n%06d" % number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(50):
                nursery.start_soon(visit, number)
