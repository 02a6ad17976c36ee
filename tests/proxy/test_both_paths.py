"""Whole exchanges, from visitor to target and back: by h11 and in the pump they are the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import pytest

from support.carried_http import OK, Target, get, rig
from support.follower_checks import fields_of
from support.http_rig import Peer

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"\r\n\r\nok"

ANSWERS = {
    "plain": OK + b"ok",
    "Content-Length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2" + END,
    "Content-Length with zeros": b"HTTP/1.1 200 OK\r\nContent-Length: 0002" + END,
    "Content-Length beside chunked": CHUNKED[:-2]
    + b"Content-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 Request denied\r\nContent-Length: 2" + END,
    "no space behind the status": b"HTTP/1.1 200\r\nContent-Length: 2" + END,
    "lines end in LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded": b"HTTP/1.1 200 OK\r\nServer: x\r\n y\r\nContent-Length: 2" + END,
    "blanks before a colon": b"HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 2" + END,
    "a control character": b"HTTP/1.1 200 OK\r\nServer: x\x01\r\nContent-Length: 2" + END,
    "Connection names a field": (
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Foo\r\nX-Foo: 1\r\nContent-Length: 2" + END
    ),
    "our own fields": b"HTTP/1.1 200 OK\r\nTunnelmux-Reason: x\r\nContent-Length: 2" + END,
    "cookies cleared": OK[:-2]
    + b'Clear-Site-Data: "cookies", "cache"\r\nClear-site-data: "*"'
    + END,
    "cookies cleared, oddly": (
        b'HTTP/1.1 200 OK\nClear-Site-Data:\t"cookies" ,"x"\nSet-Cookie: a=1; Domain=localhost\n'
        b"Content-Length: 2\n\nok"
    ),
    "cookies cleared in trailers": CHUNKED + b'0\r\nClear-Site-Data: "cookies"\r\n\r\n',
    "a trailer": CHUNKED + b"2\r\nok\r\n0\r\nX-Checksum: abc\r\n\r\n",
    "an announced trailer": CHUNKED[:-2] + b"Trailer: X-A\r\n\r\n2\r\nok\r\n0\r\nX-A: b\r\n\r\n",
    "an announced trailer that does not come": CHUNKED[:-2] + b"Trailer: X-A\r\n\r\n0\r\n\r\n",
    "grpc-web": CHUNKED + b"2\r\nok\r\n0\r\nGrpc-Status: 0\r\nHost: x\r\n\r\n",
    "blanks behind sizes": CHUNKED + b"2  \r\nok\r\n0 \r\n\r\n",
    "204, chunked": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "interim, odd": b"HTTP/1.1 103 Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "interim, odd, and rubbish": b"HTTP/1.1 103 Hints\n\nrubbish\n\n",
    "interim without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 3000 + OK + b"ok",
    "interim without end, odd": b"HTTP/1.1 102 \n\n" * 5000 + OK + b"ok",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 2" + END,
    "until the end": b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nok",
    "SHOUTcast": b"ICY 200 OK\r\nicy-name: x\r\n\r\nmusic",
    "lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3" + END,
    "an odd name": b"HTTP/1.1 200 OK\r\nX (y): z\r\nContent-Length: 2" + END,
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 300 + b"Content-Length: 2" + END,
}

POST = b"POST /a HTTP/1.1\r\nHost: dev1.localhost\r\n"
REQUESTS = {
    "plain": (get("/a"), b""),
    "a body": (POST + b"Content-Length: 2\r\n\r\n", b"ok"),
    "a trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\nX-A: b\r\n\r\n"),
    "an announced trailer": (
        POST + b"Trailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX-A: b\r\nX-Forwarded-For: 1\r\n\r\n",
    ),
    "blanks behind sizes": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"3 \r\nabc\r\n0;a=b\r\n\r\n",
    ),
}
WAYS = ["kept", "direct"]


@dataclass
class Seen:
    """What a visitor sees of an answer, or a target of a request."""

    line: tuple[object, ...] = ()
    headers: dict[bytes, list[bytes]] = field(default_factory=dict)
    content: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)


async def read(peer: Peer, connection: h11.Connection) -> Seen:
    """One message, as h11 reads it."""
    seen = Seen()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await peer.stream.receive_some()))
        elif isinstance(event, h11.Response):
            seen.line, seen.headers = (event.status_code,), fields_of(event.headers.raw_items())
        elif isinstance(event, h11.Request):
            seen.line = event.method, event.target
            seen.headers = fields_of(event.headers.raw_items())
        elif isinstance(event, h11.Data):
            seen.content += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            seen.trailers = event.headers.raw_items()
            return seen


async def answered(target: Target, answer: bytes) -> Seen:
    """What a visitor sees of this answer."""
    peer, _ = await target.ask(get("/x"))
    await peer.send(answer)
    await peer.stream.aclose()
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=b"GET", target=b"/x", headers=[(b"Host", b"x")]))
    client.send(h11.EndOfMessage())
    return await read(target.visitor, client)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
async def test_a_visitor_sees_the_same_answer(way: str) -> None:
    """The first visitor of a proxy is served by h11, whatever comes; the others are carried."""
    wanted = {}
    for name, answer in ANSWERS.items():
        async with rig() as target:
            wanted[name] = await answered(target, answer)
    async with rig() as target:
        target.way = way
        for name, answer in ANSWERS.items():
            target.visitor = await target.new_visitor()
            await target.first_exchange()
            seen = await answered(target, answer)
            assert seen.line == wanted[name].line, name
            if seen.line != (502,):  # which says why in words of its own
                assert seen == wanted[name], name
    assert wanted["a trailer"].trailers == [(b"X-Checksum", b"abc")]
    assert wanted["cookies cleared"].headers[b"clear-site-data"] == [
        b'"cache"',
        b'"cache", "executionContexts", "storage"',
    ]
    assert wanted["cookies cleared, oddly"].headers[b"set-cookie"] == [b"a=1"]
    assert b"clear-site-data" not in wanted["cookies cleared, oddly"].headers
    assert wanted["cookies cleared in trailers"].trailers == []
    assert wanted["SHOUTcast"].line == wanted["too many fields"].line == (502,)
    assert wanted["interim without end"].line == wanted["interim without end, odd"].line == (502,)


@pytest.mark.slow
@pytest.mark.parametrize("way", [None, *WAYS])
async def test_an_answer_to_source_without_a_length_names_the_way_round(way: str | None) -> None:
    """SHOUTcast's and Icecast's: the sound follows behind a request without a length."""
    async with rig() as target:
        if way is not None:
            target.way = way
            await target.first_exchange()
        head = b"SOURCE /live HTTP/1.0\r\nHost: dev1.localhost\r\nContent-Type: audio/mpeg\r\n\r\n"
        peer, _ = await target.ask(head)
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\n")
        assert b" 502 " in await target.visitor.read_head()
        assert b"through a TCP service" in await target.visitor.read_until(
            b'"reason":"target-broke"}\n'
        )


@pytest.mark.parametrize("pace", ["in one packet", "body later"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("head", "body"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_target_sees_the_same_request(
    head: bytes, body: bytes, way: str, pace: str
) -> None:
    async def asked(target: Target) -> Seen:
        await target.visitor.send(head + body if pace == "in one packet" else head)
        peer = await target.connection()
        if pace != "in one packet":
            await target.visitor.send(body)
        seen = await read(peer, h11.Connection(h11.SERVER))
        await peer.send(OK + b"ok")
        assert b"200 OK" in await target.visitor.read_head()
        return seen

    async with rig() as target:
        wanted = await asked(target)
    async with rig() as target:
        target.way = way
        await target.first_exchange()
        assert await asked(target) == wanted
    if b"X-A: b" in body:
        assert wanted.trailers == [(b"X-A", b"b")]
