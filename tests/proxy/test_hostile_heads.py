"""What a visitor can write in a head, on both paths: by h11, and carried by the pump."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.carried_http import OK, Target, get, rig
from support.http_rig import Peer
from tunnelmux.http.head import parse_request
from tunnelmux.pump.field_names import FORWARDING_NAMES, FORWARDING_PREFIXES

OURS = {
    b"x-forwarded-for": b"127.0.0.1",
    b"x-forwarded-proto": b"http",
    b"x-forwarded-host": b"dev1.localhost",
    b"forwarded": b'for=127.0.0.1;host="dev1.localhost";proto=http',
}

KNOWN = [
    *FORWARDING_NAMES,
    *(prefix.rstrip(b"-") + b"-evil" for prefix in FORWARDING_PREFIXES),
    *OURS,
    *(b"x-real-ip", b"x-original-url", b"proxy-client-ip", b"remote-user", b"x-forwarded-prefix"),
]


def spellings(name: bytes) -> list[bytes]:
    other = [name.replace(b"-", sign) for sign in (b"_", b".", b"~", b"!")] if b"-" in name else []
    mixed = [name.replace(b"-", b"_", 1)] if name.count(b"-") > 1 else []
    return [name, name.upper(), name.title(), *other, *mixed]


@asynccontextmanager
async def carried() -> AsyncIterator[Target]:
    """With a device whose visitors the pump carries when they are plain."""
    async with rig() as target:
        await target.first_exchange()
        yield target


async def seen(target: Target, lines: list[bytes]) -> dict[bytes, bytes]:
    """What the target sees of a new visitor's request with these lines, by name."""
    visitor = await target.new_visitor()
    fields = b"".join(line + b"\r\n" for line in lines)
    await visitor.send(b"GET /x HTTP/1.1\r\nHost: dev1.localhost\r\n" + fields + b"\r\n")
    peer: Peer = await target.connection()
    request = parse_request(await peer.read_head())
    await peer.send(OK + b"ok")
    assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 OK\r\n")
    await trio.aclose_forcefully(visitor.stream)
    names = [name.lower() for name, _ in request.headers]
    assert len(names) == len(set(names)), "a field came through beside ours"
    return {name.lower(): value for name, value in request.headers}


@pytest.mark.parametrize("path", ["pump", "h11"])
@pytest.mark.parametrize("which", range(4))
async def test_no_word_about_a_visitor_comes_through(path: str, which: int) -> None:
    # An h11 path is chosen by a field that the scanner leaves to it.
    way = [b"Trailer: X-Sum"] if path == "h11" else []
    async with carried() as target:
        names = KNOWN[which::4]
        plain = [name + b": evil" for name in names for name in (name, name.title())]
        told = await seen(target, [*way, *plain])
        told.pop(b"trailer", None)
        told.pop(b"connection", None)
        assert told == {b"host": b"dev1.localhost", **OURS}
        for name in names[:: 3 if path == "pump" else 1]:
            lines = [spelling + b": evil" for spelling in spellings(name)]
            told = await seen(target, [*way, *lines])
            told.pop(b"trailer", None)
            told.pop(b"connection", None)
            assert told == {b"host": b"dev1.localhost", **OURS}, name


@pytest.mark.parametrize("way", [b"X-Way: pump", b"Trailer: X-Sum"])
@pytest.mark.parametrize(
    "lines",
    [
        [b"Transfer_Encoding: chunked"],
        [b"Content.Length: 5"],
        [b"Content_Length: 5", b"Content-Length: 0"],
        [b"Keep~Alive: x", b"Proxy_Connection: keep-alive"],
        [b"Tunnelmux_Service: ssh", b"Tunnelmux.Device: dev2", b"Tunnelmux_Relay: ?"],
        [b"Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Forwarded, Host"],
        [b"Connection: Tunnelmux-Service, Tunnelmux-Relay, Content-Length"],
    ],
)
async def test_no_framing_or_routing_comes_through_in_disguise(
    way: bytes, lines: list[bytes]
) -> None:
    async with carried() as target:
        told = await seen(target, [way, *lines])
        for name in (b"trailer", b"x-way", b"connection", b"content-length"):
            told.pop(name, None)
        assert told == {b"host": b"dev1.localhost", **OURS}


@pytest.mark.parametrize(
    "line",
    [
        b"Tunnelmux-Device: dev2",
        b"Tunnelmux-Service: ssh",
        b"Host: dev2.localhost",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"X-Forwarded-For : 6.6.6.6",
        b" X-Forwarded-For: 6.6.6.6",
        b"X-Forwarded-For\x00: 6.6.6.6",
        b"X: y\rX-Forwarded-For: 6.6.6.6",
        b"X: y\nX-Forwarded-For: 6.6.6.6",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused_at_once_and_on_a_kept_connection(
    line: bytes,
) -> None:
    bad = get("/bad").replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")
    async with carried() as target:
        for before in (b"", get("/good")):
            visitor = await target.new_visitor()
            if before:
                await visitor.send(before)
                peer = await target.connection()
                assert (await peer.read_head()).startswith(b"GET /good ")
                await peer.send(OK + b"ok")
                await visitor.read_head()
                assert await visitor.read_exactly(2) == b"ok"
            await visitor.send(bad)
            assert (await visitor.read_head()).startswith(b"HTTP/1.1 400 ")


async def test_a_trusted_proxy_is_believed_alike_on_every_path() -> None:
    async with rig(trusted_fields=["Remote-User"]) as target:
        told = []
        for _ in range(4):  # the later ones may be carried, and say the same
            lines = [
                *(b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-Proto: https"),
                *(b"Remote-User: ann", b"Remote-Groups: admin", b"Remote_User: eve"),
                *(b"X-Original-URL: /admin", b"X-Forwarded-Prefix: /app"),
            ]
            told.append(await seen(target, lines))
            told[-1].pop(b"connection", None)
        assert (
            told
            == [
                {
                    b"host": b"dev1.localhost",
                    b"remote-user": b"ann",
                    b"x-forwarded-prefix": b"/app",
                    b"x-forwarded-for": b"203.0.113.9, 127.0.0.1",
                    b"x-forwarded-proto": b"https",
                    b"x-forwarded-host": b"dev1.localhost",
                    b"forwarded": b'for=203.0.113.9;host="dev1.localhost";proto=https, '
                    + OURS[b"forwarded"],
                }
            ]
            * 4
        )


async def test_no_trailer_says_what_a_head_may_not() -> None:
    names = [
        *KNOWN[::5],
        b"X_Real_IP",
        b"Tunnelmux-Service",
        b"Set-Cookie",
        b"Content-Length",
        b"Host",
    ]
    trailers = b"".join(b"%s: evil\r\n" % name for name in names) + b"X-Sum: 1\r\n"
    async with carried() as target:
        visitor = await target.new_visitor()
        for _ in range(2):
            await visitor.send(
                b"POST /x HTTP/1.1\r\nHost: dev1.localhost\r\nTE: trailers\r\nTrailer: X-Sum\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            peer = await target.connection()
            await peer.read_head()
            await visitor.send(b"2\r\nhi\r\n0\r\n" + trailers + b"\r\n")
            assert await peer.read_until(b"0\r\n") == b"2\r\nhi\r\n0\r\n"
            assert await peer.read_until(b"\r\n\r\n") == b"X-Sum: 1\r\n\r\n"
            await peer.send(OK + b"ok")
            await visitor.read_head()
            assert await visitor.read_exactly(2) == b"ok"
