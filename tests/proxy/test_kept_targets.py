"""Connections to targets that are kept between visitors: whose they may become, and when not."""

from __future__ import annotations

import pytest
import trio

from support.carried_http import OK, Target, get, rig
from support.http_rig import Peer
from tunnelmux.limits import IngressLimits

CLOSE = "Connection: close\r\n"
POST = b"POST /pay HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 2\r\n\r\nok"


async def visit(target: Target, path: str, extra: str = CLOSE) -> Peer:
    """A visitor of its own, whose request comes on a new connection; that connection."""
    target.visitor = await target.new_visitor()
    peer, _ = await target.ask(get(path, extra))
    await answered(target, peer)
    return peer


async def answered(target: Target, peer: Peer, answer: bytes = OK + b"ok") -> None:
    await peer.send(answer)
    assert b" 200 " in await target.visitor.read_head()
    assert await target.visitor.read_exactly(2) == b"ok"


async def begin(target: Target) -> None:
    target.way = "kept"
    await target.first_exchange()
    await target.visitor.stream.aclose()


@pytest.mark.parametrize("extra", [CLOSE, ""])
async def test_the_next_visitor_is_served_on_the_same_connection(extra: str) -> None:
    async with rig(keeps_idle=True) as target:
        await begin(target)
        peer = await visit(target, "/1", extra)
        for path in ("/2", "/3", "/4"):
            if not extra:
                await target.visitor.stream.aclose()
                await trio.testing.wait_all_tasks_blocked(0.02)
            target.visitor = await target.new_visitor()
            await target.visitor.send(get(path, extra))
            assert (await peer.read_head()).startswith(b"GET " + path.encode())
            await answered(target, peer)


async def test_no_more_are_kept_than_the_limit_says() -> None:
    async with rig(IngressLimits(max_idle_targets=1), keeps_idle=True) as target:
        await begin(target)
        visitors, peers = [], []
        for path in ("/1", "/2"):
            target.visitor = await target.new_visitor()
            peer, _ = await target.ask(get(path, CLOSE))
            visitors.append(target.visitor)
            peers.append(peer)
        for target.visitor, peer in zip(visitors, peers, strict=True):
            await answered(target, peer)
        assert await peers[0].read_all() == b"", "the older one gives way"
        target.visitor = await target.new_visitor()
        await target.visitor.send(get("/3", CLOSE))
        assert (await peers[1].read_head()).startswith(b"GET /3 ")


async def test_one_that_nobody_uses_is_ended() -> None:
    async with rig(IngressLimits(target_idle_time=0.05), keeps_idle=True) as target:
        await begin(target)
        peer = await visit(target, "/1")
        assert await peer.read_all() == b""


async def test_a_request_that_changes_something_gets_a_new_one() -> None:
    """One that is just being closed would have to be answered with a 502."""
    async with rig(keeps_idle=True) as target:
        await begin(target)
        await visit(target, "/1")
        target.visitor = await target.new_visitor()
        peer, head = await target.ask(POST)
        assert head.startswith(b"POST /pay ")
        assert await peer.read_exactly(2) == b"ok"
        await answered(target, peer)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"ok" + b"and more",
        OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n") + b"ok",
        OK.replace(b"1.1", b"1.0") + b"ok",
        OK.replace(b"OK\r\n", b"OK\r\nWWW-Authenticate: NTLM\r\n") + b"ok",
    ],
)
async def test_one_that_is_in_doubt_is_not_used_again(answer: bytes) -> None:
    async with rig(keeps_idle=True) as target:
        await begin(target)
        target.visitor = await target.new_visitor()
        peer, _ = await target.ask(get("/1", CLOSE))
        await answered(target, peer, answer)
        await visit(target, "/2")


@pytest.mark.parametrize("lines", [b"Content-Length: 40\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("odd", [b"", b"X-Odd : field\r\n"], ids=["scanned", "judged"])
@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_a_body_that_may_not_follow_answers_no_other_visitor(
    method: str, status: int, odd: bytes, lines: bytes
) -> None:
    """A faulty target sends the announced body after the head. What is in it may be a whole answer,
    which a visitor uploaded; the next visitor's request may be on the connection by then."""
    async with rig(keeps_idle=True) as target:
        await begin(target)
        target.visitor = await target.new_visitor()
        peer, _ = await target.ask(get("/1", CLOSE).replace(b"GET", method.encode(), 1))
        await peer.send(b"HTTP/1.1 %d X\r\n" % status + odd + lines + b"\r\n")
        assert b" %d " % status in await target.visitor.read_head()
        assert await target.visitor.read_all() == b""
        other = await visit(target, "/2")
        assert other is not peer


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_one_without_an_announced_body_is_used_again(method: str, answer: bytes) -> None:
    async with rig(keeps_idle=True) as target:
        await begin(target)
        target.visitor = await target.new_visitor()
        peer, _ = await target.ask(get("/1", CLOSE).replace(b"GET", method.encode(), 1))
        await peer.send(answer)
        await target.visitor.read_head()
        target.visitor = await target.new_visitor()
        await target.visitor.send(get("/2", CLOSE))
        assert (await peer.read_head()).startswith(b"GET /2 ")
        await answered(target, peer)


async def test_one_that_says_something_by_itself_is_ended() -> None:
    async with rig(keeps_idle=True) as target:
        await begin(target)
        peer = await visit(target, "/1")
        await peer.send(OK + b"no")
        with pytest.raises(trio.BrokenResourceError):
            await peer.read_all()
        await visit(target, "/2")


async def test_one_that_the_target_ended_is_not_used_again() -> None:
    async with rig(keeps_idle=True) as target:
        await begin(target)
        peer = await visit(target, "/1")
        await peer.stream.aclose()
        await visit(target, "/2")


async def test_a_drain_does_not_wait_for_them() -> None:
    async with rig(keeps_idle=True) as target:
        await begin(target)
        peer = await visit(target, "/1")
        await target.visitor.stream.aclose()

        async def end() -> None:
            assert await peer.read_all() == b""
            await peer.stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with trio.fail_after(20):
                await target.proxy.drain(300.0)
