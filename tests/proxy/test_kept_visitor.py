"""Visitors that keep their connection: after the first request the pump carries the plain ones."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from support.carried_http import OK, WAYS, Target, get, rig
from support.http_rig import Peer
from tunnelmux.config import DeviceConfig, Secret
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "way", request.param)


async def test_further_requests_share_one_connection_to_the_target() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, head = await target.ask(get("/2?q", "X-Forwarded-For: 6.6.6.6\r\nCookie: a=b\r\n"))
        assert head.startswith(b"GET /2?q HTTP/1.1\r\nHost: dev1.localhost\r\n")
        assert b"Cookie: a=b\r\n" in head
        assert b"6.6.6.6" not in head
        for line in (b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http"):
            assert head.count(line + b"\r\n") == 1
        assert b"X-Forwarded-Host: dev1.localhost\r\n" in head
        assert b"Connection" not in head
        await peer.send(OK + b"22")
        assert (await target.visitor.read_head()) == OK
        assert await target.visitor.read_exactly(2) == b"22"
        for turn in range(20):
            await target.visitor.send(get(f"/{turn}"))
            assert (await peer.read_head()).startswith(b"GET /%d HTTP/1.1" % turn)
            await peer.send(OK + b"%02d" % turn)
            assert (await target.visitor.read_head()) == OK
            assert await target.visitor.read_exactly(2) == b"%02d" % turn


async def test_once_the_agent_has_agreed_a_first_request_is_carried_too() -> None:
    async with rig() as target:
        await target.first_exchange()
        address = target.proxy.http_address
        assert address is not None
        async with await trio.open_tcp_stream(*address) as another:
            await another.send_all(get("/1") + get("/2"))
            peer = await target.connection()
            for path in (b"/1", b"/2"):
                head = await peer.read_head()
                assert head.startswith(b"GET " + path)
                assert b"Connection" not in head
                await peer.send(OK + b"ok")
            answers = Peer(another)
            assert await answers.read_exactly(2 * len(OK) + 4) == 2 * (OK + b"ok")


async def test_the_head_and_the_answer_may_come_in_any_pieces() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"ok"
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/once"))
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        request = get("/pieces", "Accept: */*\r\n")
        for at in range(0, len(request), 7):
            await target.visitor.send(request[at : at + 7])
            await trio.sleep(0.001)
        assert (await peer.read_head()).startswith(b"GET /pieces ")
        for at in range(0, len(answer), 5):
            await peer.send(answer[at : at + 5])
            await trio.sleep(0.001)
        assert await target.visitor.read_exactly(len(answer)) == answer


async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer = await target.carried_exchange()
        await target.visitor.send(get("/a") + get("/b") + get("/c"))
        for path in (b"/a", b"/b", b"/c"):
            assert (await peer.read_head()).startswith(b"GET " + path + b" ")
            with trio.move_on_after(0.02) as early:
                await peer.read_exactly(1)
            assert early.cancelled_caught, "the next request came before this one was answered"
            await peer.send(OK + path)
            assert await target.visitor.read_exactly(len(OK) + 2) == OK + path


@pytest.mark.parametrize("size", [1, 70_000, 3_000_000])
async def test_bodies_with_a_length_go_both_ways(size: int) -> None:
    body = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    body = body[:size]
    head = b"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: %d\r\n\r\n" % size
    async with rig() as target, trio.open_nursery() as nursery:
        await target.first_exchange()
        peer = await target.carried_exchange()
        nursery.start_soon(target.visitor.send, head + body + get("/next"))
        assert b"Content-Length: %d\r\n" % size in await peer.read_head()
        assert await peer.read_exactly(size) == body
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body
        nursery.start_soon(peer.send, answer)
        assert await target.visitor.read_exactly(len(answer)) == answer
        assert (await peer.read_head()).startswith(b"GET /next ")
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"


@pytest.mark.parametrize("size", [60_000, 400_000])
async def test_a_first_request_may_come_with_much_of_its_body(size: int) -> None:
    """h11 has read more than a frame holds when the pump gets the connection."""
    body = bytes(i % 253 for i in range(size))
    head = b"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: %d\r\n\r\n" % size
    async with rig() as target, trio.open_nursery() as nursery:
        await target.first_exchange()
        with trio.fail_after(20):
            nursery.start_soon(target.visitor.send, head + body + get("/next"))
            peer = await target.connection()
            assert (await peer.read_head()).startswith(b"POST /up ")
            assert await peer.read_exactly(size) == body
            await peer.send(OK + b"ok")
            assert (await peer.read_head()).startswith(b"GET /next ")


async def test_chunked_bodies_pass_as_they_are() -> None:
    chunks = b"5\r\nhello\r\n" + b"%x\r\n" % 40_000 + b"y" * 40_000 + b"\r\n0\r\n\r\n"
    head = b"POST /c HTTP/1.1\r\nHost: dev1.localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    async with rig() as target:
        await target.first_exchange()
        peer = await target.carried_exchange()
        await target.visitor.send(head + chunks + get("/next"))
        await peer.read_head()
        assert await peer.read_exactly(len(chunks)) == chunks
        await peer.send(answer)
        assert await target.visitor.read_exactly(len(answer)) == answer
        assert (await peer.read_head()).startswith(b"GET /next ")


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_end_with_their_head(method: bytes, answer: bytes) -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/").replace(b"GET", method))
        await peer.send(answer)
        assert await target.visitor.read_exactly(len(answer)) == answer
        await target.visitor.send(get("/next"))
        assert (await peer.read_head()).startswith(b"GET /next ")


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
    ],
)
async def test_a_body_that_is_announced_only_leaves_the_visitor_connected(
    method: bytes, answer: bytes
) -> None:
    """Its target is asked anew: such a body might come late."""
    async with rig() as target:
        await target.first_exchange()
        for path in ("/1", "/2"):
            peer, asked = await target.ask(get(path).replace(b"GET", method))
            assert asked.startswith(method + b" " + path.encode() + b" ")
            await peer.send(answer)
            assert await target.visitor.read_exactly(len(answer)) == answer


async def test_who_waits_for_a_100_gets_it_from_the_target() -> None:
    async with rig() as target:
        await target.first_exchange()
        head = get("/up", "Expect: 100-continue\r\nContent-Length: 4\r\n")
        peer, seen = await target.ask(head)
        assert b"Expect: 100-continue\r\n" in seen
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await target.visitor.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await target.visitor.send(b"body")
        assert await peer.read_exactly(4) == b"body"
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        await target.visitor.send(head)
        await peer.read_head()
        await peer.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        assert b" 417 " in await target.visitor.read_head()
        assert await target.visitor.read_all() == b"", "the body might follow or not"


async def test_what_leaves_a_doubt_goes_to_h11_and_the_plain_ones_after_it_do_not() -> None:
    async with rig() as target:
        await target.first_exchange()
        first, _ = await target.ask(get("/carried"))
        await first.send(OK + b"ok")
        await target.visitor.read_exactly(len(OK) + 2)
        second, head = await target.ask(get("/read", "TE: trailers\r\n"))
        assert head.startswith(b"GET /read ")
        assert b"Connection: TE, close\r\n" in head, "it was carried"
        assert await first.read_all() == b"", "the carried connection has to end"
        await second.send(OK + b"ok")
        await target.visitor.read_head()
        await target.visitor.read_exactly(2)
        third, head = await target.ask(get("/carried-again"))
        assert b"Connection" not in head
        await third.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/", host="dev2.localhost"), b"503"),
        (get("/", "Tunnelmux-Device: dev2\r\n"), b"400"),
        (get("/", "Host: dev2.localhost\r\n"), b"400"),
        (get("http://dev2.localhost/"), b"503"),
        (get("/", host="nobody.localhost"), b"404"),
        (get("/", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), b"400"),
        (get("/", " folded: x\r\n"), b"400"),
    ],
)
async def test_no_request_goes_to_another_device_than_its_head_names(
    request_: bytes, status: bytes
) -> None:
    async with rig(IngressLimits(reconnect_wait=0)) as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/carried"))
        # Behind a body it might be taken for part of, and behind an answered request.
        await peer.send(OK + b"ok")
        await target.visitor.read_exactly(len(OK) + 2)
        await target.visitor.send(request_)
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 " + status)
        assert await peer.read_all() == b"", "the wrong device got something"


async def test_a_request_hidden_behind_a_body_is_a_request_of_its_own() -> None:
    hidden = get("/secret", host="dev2.localhost")
    head = b"POST /p HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 3\r\n\r\n"
    async with rig(IngressLimits(reconnect_wait=0)) as target:
        await target.first_exchange()
        peer, _ = await target.ask(head + b"abc" + hidden)
        assert await peer.read_exactly(3) == b"abc"
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 503 ")
        assert await peer.read_all() == b""


async def test_a_target_that_ends_the_idle_connection_is_asked_anew() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/1"))
        await peer.send(OK + b"ok")
        await target.visitor.read_exactly(len(OK) + 2)
        await peer.stream.aclose()
        again, head = await target.ask(get("/2"))
        assert head.startswith(b"GET /2 ")
        await again.send(OK + b"ok")
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 200 ")


async def test_a_request_that_met_a_closing_target_is_sent_again_if_it_changes_nothing() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/safe", "Cookie: kept=1\r\n"))
        await abort(peer.stream)
        again = await target.connection()
        head = await again.read_head()
        assert head.startswith(b"GET /safe ")
        assert b"Cookie: kept=1\r\n" in head
        await again.send(OK + b"ok")
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 200 ")
        assert await target.visitor.read_exactly(2) == b"ok"


async def test_a_browser_reads_a_page_where_a_target_breaks_off() -> None:
    """Though the pump has passed its request on: it got the JSON that programs get."""
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/", "Accept: text/html,*/*;q=0.8\r\n"))
        await abort(peer.stream)
        again = await target.connection()  # it changes nothing, so it is sent once more
        await again.read_head()
        await abort(again.stream)
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Content-Type: text/html; charset=utf-8\r\n" in head
        page = await target.visitor.read_until(b"</html>\n")
        assert b"<h1>The service broke off</h1>" in page


async def test_a_request_that_changes_something_is_never_sent_twice() -> None:
    request = b"POST /pay HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 2\r\n\r\nok"
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(request)
        await abort(peer.stream)
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"Tunnelmux-Reason: target-broke\r\n" in head
        with trio.move_on_after(0.05):
            await target.connection()
            pytest.fail("it was sent again")


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_answer_that_is_cut_is_cut_for_the_visitor(chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100"
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/"))
        await peer.send(
            b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + b"64\r\n" * chunked + b"ab"
        )
        await target.visitor.read_head()
        await target.visitor.read_until(b"ab")
        await peer.stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await target.visitor.read_all()


async def test_an_answer_that_ends_with_the_connection_ends_it() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/"))
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        await peer.stream.aclose()
        await target.visitor.read_head()
        assert await target.visitor.read_all() == b"until the end"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n",
    ],
)
async def test_a_target_that_closes_after_each_answer_leaves_the_visitor_connected(
    head: bytes,
) -> None:
    async with rig() as target:
        await target.first_exchange()
        for path in (b"/1", b"/2", b"/3"):
            peer, asked = await target.ask(get(path.decode()))
            assert asked.startswith(b"GET " + path)
            await peer.send(head + path)
            await peer.stream.aclose()
            assert await target.visitor.read_exactly(len(OK) + 2) == OK + path


async def test_what_a_target_offers_its_own_peer_stays_behind() -> None:
    offer = b"OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\nProxy-Authenticate: Basic\r\n"
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/1"))
        for path in (b"/1", b"/2"):
            await peer.send(OK.replace(b"OK\r\n", offer) + path)
            assert await target.visitor.read_exactly(len(OK) + 2) == OK + path
            await target.visitor.send(get("/next"))
            assert (await peer.read_head()).startswith(b"GET /next ")
        await peer.send(b"HTTP/1.1 200 OK\r\nUpgrade: h2\r\nConnection: Upgrade\r\n\r\nto the end")
        await peer.stream.aclose()
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        assert await target.visitor.read_all() == head + b"to the end"


async def test_an_answer_cannot_speak_in_the_name_of_the_proxy() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/"))
        await peer.send(b"HTTP/1.1 200 OK\r\nTunnelmux-Reason: forged\r\nContent-Length: 0\r\n\r\n")
        assert await target.visitor.read_head() == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_a_target_that_does_not_answer_is_a_504() -> None:
    async with rig(IngressLimits(response_timeout=0.1, connect_timeout=0.2)) as target:
        await target.first_exchange()
        await target.ask(get("/"))
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b"Tunnelmux-Reason: target-timeout\r\n" in head


async def test_a_body_that_moves_no_byte_is_a_408_and_its_stream_is_free() -> None:
    async with rig(IngressLimits(body_stall=0.2)) as target:
        await target.first_exchange()
        peer, _ = await target.ask(
            b"POST /upload HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 10\r\n\r\n123"
        )
        for _ in range(4):
            await trio.sleep(0.1)
            await target.visitor.send(b"4")
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Tunnelmux-Reason: body-stalled\r\n" in head
        with pytest.raises(trio.BrokenResourceError):
            await peer.read_all()


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with rig(IngressLimits(idle_timeout=0.2)) as target:
        await target.first_exchange()
        await target.carried_exchange()
        assert await target.visitor.read_all() == b""
        await target.visitor.stream.aclose()


async def test_a_head_that_does_not_end_is_a_408() -> None:
    async with rig(IngressLimits(head_timeout=0.2)) as target:
        await target.first_exchange()
        await target.carried_exchange()
        await target.visitor.send(b"GET / HTTP/1.1\r\nHost: dev1.loc")
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 408 ")


async def test_a_visitor_that_leaves_within_an_answer_is_a_reset_for_the_target() -> None:
    async with rig() as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/"))
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await target.visitor.read_until(b"half")
        await abort(target.visitor.stream)
        with pytest.raises(trio.BrokenResourceError):
            await peer.read_all()


async def test_a_device_that_may_not_go_on_gets_no_further_request() -> None:
    async with rig(IngressLimits(reconnect_wait=0)) as target:
        await target.first_exchange()
        peer, _ = await target.ask(get("/1"))
        await peer.send(OK + b"ok")
        await target.visitor.read_exactly(len(OK) + 2)
        disabled = DeviceConfig(name="dev1", token=Secret("token-of-dev1"), enabled=False)
        config = msgspec.structs.replace(target.proxy.config, devices=[disabled])
        await target.proxy.reload(config)
        await target.visitor.send(get("/2"))
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 403 ")


async def test_a_drain_lets_the_request_in_progress_finish() -> None:
    async with rig() as target, trio.open_nursery() as nursery:
        await target.first_exchange()
        peer, _ = await target.ask(get("/"))
        nursery.start_soon(target.proxy.drain, 5.0)
        await trio.sleep(0.05)
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        assert await target.visitor.read_all() == b""
        await target.visitor.stream.aclose()
        await peer.stream.aclose()  # else the drain waits for it


async def test_a_service_whose_host_is_replaced_is_left_to_the_agent() -> None:
    async with rig(host="printer:631") as target:
        await target.first_exchange()
        _, head = await target.ask(get("/2"))
        assert b"Host: printer:631\r\n" in head
        assert b"Connection: close\r\n" in head


RECORDED = ["method", "path", "status", "bytes_in", "bytes_out"]


async def test_one_line_tells_of_each_request_that_was_carried() -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            peer, _ = await target.ask(get("/1"))
            await peer.send(OK + b"ok")
            await target.visitor.read_exactly(len(OK) + 2)
            await target.visitor.send(
                b"POST /2?token=secret HTTP/1.1\r\nHost: dev1.localhost\r\n"
                b"Content-Length: 5\r\n\r\n12345"
            )
            await peer.read_head()
            assert await peer.read_exactly(5) == b"12345"
            await peer.send(
                b"HTTP/1.1 100 Continue\r\n\r\n"
                b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"3\r\nno!\r\n0\r\n\r\n"
            )
            await target.visitor.read_until(b"0\r\n\r\n")
            await target.visitor.end()
            assert await target.visitor.read_all() == b""
    served, *_, one, two = [line for line in logs if line["event"] == "request"]
    for line in (one, two):
        known = [key for key in line if key != "service"]
        assert known == list(served), "it does not look like the line of a request by h11"
        assert (line["device"], line["service"]) == ("dev1", "web")
        assert 0 <= line["seconds"] < 60
    assert [one[key] for key in RECORDED] == ["GET", "/1", 200, 0, 2]
    assert [two[key] for key in RECORDED] == ["POST", "/2", 404, 5, 13]


@pytest.mark.parametrize(
    ("answer", "status", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", 200, "ended within its answer"),
        (b"rubbish\r\n\r\n", 502, "it did not answer in HTTP"),
    ],
)
async def test_the_line_of_a_request_without_a_whole_answer_says_why(
    answer: bytes, status: int, problem: str
) -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            peer, _ = await target.ask(get("/1"))
            await peer.send(answer)
            await peer.end()
            with contextlib.suppress(trio.BrokenResourceError):  # a cut answer is cut here as well
                await target.visitor.read_all()
    [line] = [line for line in logs if line.get("path") == "/1"]
    assert line["event"] == "request"
    assert line["status"] == status
    assert problem in line["problem"]
    assert line["bytes_out"] == (2 if status == 200 else 0)


async def test_the_line_of_a_request_whose_visitor_left_says_so() -> None:
    with capture_logs() as logs:
        async with rig() as target:
            await target.first_exchange()
            peer, _ = await target.ask(get("/1"))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
            await target.visitor.read_until(b"ok")
            await abort(target.visitor.stream)
            with pytest.raises(trio.BrokenResourceError):
                await peer.read_all()
    [line] = [line for line in logs if line.get("path") == "/1"]
    assert (line["event"], line["status"], line["bytes_out"]) == ("request", 200, 2)
    assert line["ended"] == "the visitor left"
