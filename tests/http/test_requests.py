"""Which request heads are taken, and which are refused because two readers could read them apart.

The malformed ones are those of the request smuggling literature: CL.TE and TE.CL, obfuscated
Transfer-Encoding, duplicated and folded fields, bare line feeds, whitespace before colons.
"""

from __future__ import annotations

import contextlib

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from support.http_rig import running_rig
from tunnelmux.http.head import (
    BadHead,
    HeadReader,
    head_end,
    parse_request,
    parse_response,
    write_request,
)
from tunnelmux.http.refusal import Refused
from tunnelmux.limits import IngressLimits

BODY_ATTEMPT = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(*fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in (b"Host: a", *fields))
    return b"POST / HTTP/1.1\r\n" + lines + b"\r\n"


AMBIGUOUS = {
    "CL.TE": post(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
    "TE.CL": post(b"Transfer-Encoding: chunked", b"Content-Length: 4"),
    "TE beside CL 0": post(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "two lengths": post(b"Content-Length: 4", b"Content-Length: 5"),
    "two lengths in one field": post(b"Content-Length: 4, 5"),
    "signed length": post(b"Content-Length: +4"),
    "negative length": post(b"Content-Length: -4"),
    "length with underscore": post(b"Content-Length: 1_0"),
    "hexadecimal length": post(b"Content-Length: 0x4"),
    "length with text": post(b"Content-Length: 4 4"),
    "empty length": post(b"Content-Length:"),
    "absurd length": post(b"Content-Length: " + b"9" * 30),
    "length in other digits": post("Content-Length: \u0664".encode()),
    "chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunked twice in one field": post(b"Transfer-Encoding: chunked, chunked"),
    "chunked then identity": post(b"Transfer-Encoding: chunked, identity"),
    "identity": post(b"Transfer-Encoding: identity"),
    "xchunked": post(b"Transfer-Encoding: xchunked"),
    "quoted": post(b'Transfer-Encoding: "chunked"'),
    "chunked with vertical tab": post(b"Transfer-Encoding: \x0bchunked"),
    "chunked with form feed": post(b"Transfer-Encoding: chunked\x0c"),
    "chunked with NUL": post(b"Transfer-Encoding: chunked\x00"),
    "chunked in 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "space before colon": post(b"Transfer-Encoding : chunked"),
    "tab before colon": post(b"Transfer-Encoding\t: chunked"),
    "space before name": b"POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    "first field folded": b"POST / HTTP/1.1\r\n Host: a\r\n\r\n",
    "folded value": post(b"Transfer-Encoding:\r\n chunked"),
    "folded length": post(b"X: y", b"Content-Length: 4\r\n\t5"),
    "bare LF between fields": b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 4\r\n\r\n",
    "bare LF throughout": b"POST / HTTP/1.1\nHost: a\n\n",
    "bare LF at the end": b"POST / HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR in a value": post(b"X: y\rContent-Length: 4"),
    "bare CR in a name": post(b"X\rContent-Length: 4"),
    "CR CR LF": b"POST / HTTP/1.1\r\nHost: a\r\r\nX: y\r\n\r\n",
    "NUL in a value": post(b"X: a\x00b"),
    "no colon": post(b"Content-Length 4"),
    "empty name": post(b": 4"),
    "odd character in a name": post(b"Content(Length): 4"),
    "name in other letters": post("Content-Length\u2003: 4".encode()),
    "two hosts": post(b"Host: b"),
    "two equal hosts": post(b"host: a"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "host with a bad port": b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "two spaces in the line": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab in the line": b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "trailing space in the line": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "lower-case protocol": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\nHost: a\r\n\r\n",
    "relative target": b"GET index.html HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk for GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "target of another scheme": b"GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "target with a user": b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "target without a host": b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw UTF-8 in the target": "GET /\u00e9 HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    "a fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment of a whole URL": b"GET http://a/b?c#d HTTP/1.1\r\nHost: a\r\n\r\n",
    "too long a method": b"A" * 65 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "odd method": b"G{T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "rubbish": b"\x00\xff\xfe\x01" * 10,
}


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_ambiguous_request_is_refused_and_the_connection_closed(raw: bytes) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(raw + BODY_ATTEMPT)
        await rig.visitor.end()
        head = await rig.visitor.read_head()
        status = int(head.split(b" ")[1])
        assert status in (400, 501, 505)
        assert b"Tunnelmux-Reason: bad-request\r\n" in head
        assert b"Connection: close\r\n" in head
        body = await rig.visitor.read_all()
        assert b"smuggled" not in body
        assert body.count(b'"reason":"bad-request"') == 1
    assert rig.requests == []
    assert [exchange.status for exchange in rig.exchanges] == [status]


@pytest.mark.parametrize("raw", [b"\x16\x03\x01", b"GET / HTTP/1.1\nHost: a", b"\x00", b"{}"])
async def test_what_can_never_be_a_request_is_refused_before_its_time_is_up(raw: bytes) -> None:
    async with running_rig() as rig:
        with trio.fail_after(20):
            await rig.visitor.send(raw)
            assert (await rig.visitor.read_head()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            await rig.visitor.end()


@pytest.mark.parametrize(
    ("raw", "target", "host"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"/", b"a"),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"/", b"a"),
        (b"GET /?q=[1] HTTP/1.1\r\nHost: a:8080\r\n\r\n", b"/?q=[1]", b"a:8080"),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"/", b"[::1]:80"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b"/", b""),
        (b"GET / HTTP/1.0\r\n\r\n", b"/", b""),
        (b"GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n", b"/x?y", b"b"),
        (b"GET HTTP://b:81 HTTP/1.1\r\nHost: a\r\n\r\n", b"/", b"b:81"),
        (b"GET http://b?q HTTP/1.0\r\n\r\n", b"/?q", b"b"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"*", b"a"),
        (b"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", b"*", b"b"),
        (b"OPTIONS http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", b"/", b"b"),
        (b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", b"/pot", b"a"),
    ],
)
async def test_request_reaches_the_target_in_origin_form(
    raw: bytes, target: bytes, host: bytes
) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(raw)
        peer = await rig.target()
        head = await peer.read_head()
        assert head.split(b" ")[1] == target
        assert head.count(b"ost:") == (1 if b"ost:" in raw or b"//" in raw else 0)
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await rig.visitor.read_head()
    assert rig.requests[0].host == host


@pytest.mark.parametrize("cut", range(1, 40, 3))
async def test_head_may_come_in_any_pieces(cut: int) -> None:
    raw = b"GET /page HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
    async with running_rig() as rig:
        for part in (raw[:cut], raw[cut:]):
            await rig.visitor.send(part)
            await trio.testing.wait_all_tasks_blocked()
        peer = await rig.target()
        assert b"X: y\r\n" in await peer.read_head()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await rig.visitor.read_head()


async def test_equal_lengths_are_sent_on_as_one() -> None:
    head = parse_request(post(b"Content-Length: 4", b"Content-Length: 4"))
    assert head.content_length == 4
    assert [name for name, _ in head.headers] == [b"Host", b"Content-Length"]


@pytest.mark.parametrize("whole", [True, False])
async def test_head_over_the_limit_is_431(whole: bool) -> None:
    async with running_rig(limits=IngressLimits(max_head_bytes=1000)) as rig:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1000
        await rig.visitor.send(head + (b"\r\n\r\n" if whole else b""))
        answer = await rig.visitor.read_head()
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"Tunnelmux-Reason: head-too-large\r\n" in answer
        await rig.visitor.end()
    assert rig.requests == []


async def test_head_just_within_the_limit_is_taken() -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    async with running_rig(limits=IngressLimits(max_head_bytes=1000)) as rig:
        await rig.visitor.send(start + b"y" * (1000 - len(start + end)) + end)
        await (await rig.target()).send(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert b" 204 " in await rig.visitor.read_head()


@pytest.mark.parametrize("count", [2, 3, 15_000])
async def test_too_many_fields_are_431(count: int) -> None:
    limits = IngressLimits(max_head_fields=3, max_head_bytes=100_000)
    async with running_rig(limits=limits) as rig:
        head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * count + b"\r\n"
        await rig.visitor.send(head)
        if count == 2:
            target = await rig.target()
            assert b"GET / " in await target.read_head()
            await target.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            await rig.visitor.read_head()
            return
        answer = await rig.visitor.read_head()
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"Tunnelmux-Reason: head-too-large\r\n" in answer


async def test_an_answer_with_too_many_fields_is_a_502_that_says_so() -> None:
    async with running_rig(limits=IngressLimits(max_head_fields=3)) as rig:
        await rig.visitor.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        target = await rig.target()
        await target.read_head()
        await target.send(b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 4 + b"\r\n")
        assert (await rig.visitor.read_head()).startswith(b"HTTP/1.1 502 ")
        assert b"limits.max_head_fields" in await rig.visitor.read_until(b"}\n")


async def test_a_head_in_single_bytes_is_looked_at_once() -> None:
    """Counted in bytes, so that no machine is too slow for it."""
    raw = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 30_000 + b"\r\n\r\n"
    reader = HeadReader()
    for at in range(len(raw)):
        reader.add(raw[at : at + 1])
        assert (reader.end() == len(raw)) == (at == len(raw) - 1)
        assert reader.wrong() is None
    assert reader.steps == 2 * len(raw)


async def test_slow_head_is_408(autojump_clock: trio.testing.MockClock) -> None:
    async with running_rig(limits=IngressLimits(head_timeout=10)) as rig:
        start = trio.current_time()
        for byte in b"GET / HTTP":
            await rig.visitor.send(bytes([byte]))
            await trio.sleep(0.9)
        answer = await rig.visitor.read_head()
        assert trio.current_time() - start == pytest.approx(10)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"Tunnelmux-Reason: head-timeout\r\n" in answer
        await rig.visitor.end()


async def test_refused_request_is_recorded_before_the_wait_for_the_visitor_to_leave(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"hello there\r\n\r\n")
        await rig.visitor.read_head()
        await trio.sleep(0.1)
        assert [exchange.status for exchange in rig.exchanges] == [400]
        await rig.visitor.end()


async def test_silent_connection_is_closed_without_a_word(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_rig(limits=IngressLimits(head_timeout=10)) as rig:
        start = trio.current_time()
        assert await rig.visitor.read_all() == b""
        assert trio.current_time() - start == pytest.approx(10)
    assert rig.exchanges == []


async def test_visitor_cannot_connect_to_anywhere() -> None:
    async with running_rig() as rig:
        await rig.visitor.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
        head = await rig.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
        assert b"Allow: GET, " in head
        assert b"Connection: close\r\n" in head
        await rig.visitor.end()
    assert rig.requests == []


def test_refusal_never_echoes_markup() -> None:
    with pytest.raises(Refused) as caught:
        parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n<script>alert(1)</script>: x\r\n\r\n")
    fields, body = caught.value.refusal.render(b"text/html")
    assert b"<script>" not in body
    assert (b"Content-Length", b"%d" % len(body)) in fields


# Whatever comes in, it is a head or it is refused; no other exception comes out.

LINES = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1",
            b"POST http://a:1/x?y HTTP/1.0",
            b"HTTP/1.1 200 OK",
            b"Host: a",
            b"Host: [::1]:80",
            b"Content-Length: 5",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked",
            b"Connection: close, upgrade",
            b" folded",
            b":",
            b"\xff: \xff",
            b"X: \x00",
            b"",
            b"\r",
            b"\n",
        ]
    ),
    max_size=6,
).map(b"\r\n".join)
RAW = st.one_of(LINES, st.binary(max_size=80)).map(lambda data: data + b"\r\n\r\n")


@given(RAW)
@settings(max_examples=200)
def test_any_bytes_are_a_request_or_are_refused(raw: bytes) -> None:
    raw = raw[: head_end(raw)]
    try:
        head = parse_request(raw)
    except Refused as exc:
        assert exc.refusal.status in (400, 501, 505)
        return
    # What was taken reads the same for another parser.
    again = h11.Connection(h11.SERVER)
    again.receive_data(write_request(head.method, head.target, head.headers))
    event = again.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method, head.target)
    assert event.headers.raw_items() == head.headers


@given(RAW, st.sampled_from([b"GET", b"HEAD"]))
@settings(max_examples=200)
def test_any_bytes_are_a_response_or_are_bad(raw: bytes, method: bytes) -> None:
    with contextlib.suppress(BadHead):
        assert 100 <= parse_response(raw[: head_end(raw)], method).status < 1000
