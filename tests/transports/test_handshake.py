from __future__ import annotations

import re
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from support.streams import TUNNEL_URL, socket_pair
from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.transports import (
    MemoryStream,
    UpgradeRequest,
    accept_websocket,
    connect_websocket,
    handshake,
    memory_stream_pair,
    read_upgrade,
)
from tunnelmux.transports.websocket import start_websocket_client

GOOD = {
    "Host": "proxy.example.com:3800",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


def head(line: str = "GET /tunnel/connect HTTP/1.1", **changes: str | None) -> bytes:
    fields = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def ask(request: bytes) -> tuple[bytes, ConnectError]:
    """What a peer that sends `request` reads back, and what the server is told."""
    server, peer = memory_stream_pair()
    await peer.send_all(request)
    with pytest.raises(ConnectError) as caught:
        await read_upgrade(server, path="/tunnel/connect")
    answer = bytearray()
    async for data in peer:
        answer += data
    return bytes(answer), caught.value


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 404, id="another path"),
        pytest.param(head("GET /tunnel/other HTTP/1.1"), 404, id="an upgrade on another path"),
        pytest.param(b"GET /tunnel/connect HTTP/1.1\r\nHost: h\r\n\r\n", 426, id="no upgrade"),
        pytest.param(head("POST /tunnel/connect HTTP/1.1"), 426, id="another method"),
        pytest.param(head(Sec_WebSocket_Version="8"), 426, id="another version"),
        pytest.param(head(Sec_WebSocket_Version=None), 400, id="no version"),
        pytest.param(head(Sec_WebSocket_Key=None), 400, id="no key"),
        pytest.param(head(Connection="close"), 400, id="no Connection: upgrade"),
        pytest.param(head(Upgrade="h2c"), 400, id="another upgrade"),
        pytest.param(head(Content_Length="3"), 400, id="a body"),
        pytest.param(head(Host=None), 400, id="no Host"),
        pytest.param(head(Host="a\r\nHost: b"), 400, id="two Host fields"),
        pytest.param(head(Host="\xff.example"), 400, id="a Host that is no name"),
        pytest.param(head(Connection="Upgrade, \xff"), 400, id="not ASCII"),
        pytest.param(head("GET /tunnel/connect HTTP/9"), 400, id="no HTTP version of ours"),
        pytest.param(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100), 400, id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", 400, id="SSH"),
        pytest.param(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431, id="a huge head"),
    ],
)
async def test_what_is_no_upgrade_gets_a_short_answer_and_a_close(
    autojump_clock: trio.testing.MockClock, request_head: bytes, status: int
) -> None:
    answer, error = await ask(request_head)
    first, _, rest = answer.partition(b"\r\n")
    assert re.fullmatch(rb"HTTP/1\.1 %d [A-Za-z ]+" % status, first)
    fields, _, body = rest.partition(b"\r\n\r\n")
    assert b"Tunnelmux-Reason: " in fields
    assert b"Content-Length: %d" % len(body) in fields
    assert str(error) == f"answered {status}: {body.decode().strip()}"


async def test_an_upgrade_answer_says_what_to_upgrade_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    answer, _ = await ask(b"GET /tunnel/connect HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in answer


async def test_a_head_that_never_ends_is_answered_408(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = trio.current_time()
    answer, _ = await ask(b"GET /tunnel/connect HTTP/1.1\r\nHost:")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() - before == pytest.approx(10.0, abs=1)


async def test_a_peer_that_leaves_in_its_head_is_told_of_at_once() -> None:
    server, peer = memory_stream_pair()
    await peer.send_all(b"GET /tun")
    await peer.send_eof()
    with pytest.raises(ConnectError, match="left before its request head"):
        await read_upgrade(server, path="/tunnel/connect")


async def test_some_paths_may_be_answered_without_an_upgrade(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, peer = memory_stream_pair()
    await peer.send_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    with pytest.raises(ConnectError):
        await read_upgrade(
            server,
            path="/tunnel/connect",
            plain=lambda path: (200, "ok") if path == "/healthz" else None,
        )
    answer = await peer.receive_some()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nok\n")
    assert b"Tunnelmux-Reason" not in answer


@pytest.mark.parametrize(
    ("request_head", "token"),
    [
        pytest.param(head(Authorization="Bearer s3cret"), "s3cret", id="bearer"),
        pytest.param(head(Authorization="bearer  s3cret "), "s3cret", id="in any case"),
        pytest.param(head("GET /tunnel/connect?token=s3%20cret HTTP/1.1"), "s3 cret", id="query"),
        pytest.param(
            head("GET /tunnel/connect?token=query HTTP/1.1", Authorization="Bearer header"),
            "header",
            id="the header wins",
        ),
        pytest.param(head(Authorization="Basic dTpw"), None, id="another scheme"),
        pytest.param(head(), None, id="none"),
        pytest.param(head("GET /tunnel/connect?token= HTTP/1.1"), None, id="empty"),
    ],
)
async def test_the_token_comes_from_the_header_or_the_query_and_is_never_shown(
    request_head: bytes, token: str | None
) -> None:
    server, peer = memory_stream_pair()
    await peer.send_all(request_head)
    request = await read_upgrade(server, path="/tunnel/connect")
    assert request.token == token
    assert "s3" not in repr(request) and "token" not in repr(request)


class CountingPattern:
    """A pattern that counts the bytes that this thread has it search."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self._thread = threading.get_ident()
        self.bytes = 0

    def search(self, data: bytearray, start: int) -> re.Match[bytes] | None:
        if threading.get_ident() == self._thread:
            self.bytes += len(data) - start
        return self._pattern.search(data, start)


async def test_a_head_may_come_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = CountingPattern(handshake._END_OF_HEAD)
    monkeypatch.setattr(handshake, "_END_OF_HEAD", counting)
    server, peer = memory_stream_pair()
    whole = head(Tunnelmux_Device="dev1")

    async def drip() -> None:
        for octet in whole:
            await peer.send_all(bytes([octet]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        request = await read_upgrade(server, path="/tunnel/connect")
    assert request.header("tunnelmux-device") == "dev1"
    assert len(whole) <= counting.bytes <= 4 * len(whole)


# ------------------------------------------------------------------------------- the client


async def dial(answer: Callable[[MemoryStream], Awaitable[None]]) -> ConnectError:
    """The error a client gets from a server that does `answer` once the request has come."""
    below, server = memory_stream_pair()

    async def serve() -> None:
        await server.receive_some()
        await answer(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ConnectError) as caught:
            await start_websocket_client(nursery, below, TUNNEL_URL)
    return caught.value


def sending(data: bytes, *, then_close: bool = True) -> Callable[[MemoryStream], Awaitable[None]]:
    async def answer(server: MemoryStream) -> None:
        await server.send_all(data)
        if then_close:
            await server.aclose()

    return answer


async def test_a_server_that_hangs_up_is_a_prompt_clear_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = trio.current_time()
    error = await dial(sending(b""))
    assert "closed the connection without answering" in str(error)
    assert error.retryable
    assert trio.current_time() == before


async def test_a_silent_server_is_given_up_after_the_handshake_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = trio.current_time()
    error = await dial(sending(b"", then_close=False))
    assert "within 10 s" in str(error) and "ws://proxy.example.com:3800" in str(error)
    assert trio.current_time() - before == pytest.approx(10.0)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", id="ssh"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(b"HTTP/1.1 banana\r\n\r\n", id="a status that is none"),
        pytest.param(b"HTTP/1.1 101 OK\r\n\r\n", id="a 101 without the upgrade"),
        pytest.param(
            b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Accept: bm90IG9mIHRoaXMga2V5\r\n\r\n",
            id="an accept for another key",
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="an interim answer"),
    ],
)
async def test_an_answer_that_is_no_websocket_is_a_connect_error(
    autojump_clock: trio.testing.MockClock, answer: bytes
) -> None:
    error = await dial(sending(answer))
    assert isinstance(error, ConnectError)
    assert trio.current_time() < 5


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(401, False), (403, False), (404, True), (426, True), (429, True), (502, True), (503, True)],
)
async def test_a_refusal_carries_status_reason_and_the_first_line(
    status: int, retryable: bool
) -> None:
    error = await dial(
        sending(
            b"HTTP/1.1 %d X\r\nTunnelmux-Reason: device-disabled\r\nRetry-After: 7\r\n"
            b"Content-Type: text/plain\r\nContent-Length: 30\r\n\r\n"
            b"dev1 is switched off\x1b[31m\nmore" % status
        )
    )
    assert isinstance(error, ConnectRefused)
    assert (error.status, error.reason) == (status, "device-disabled")
    assert error.retryable is retryable
    assert error.retry_after == 7.0
    assert f"refused the tunnel: {status}" in str(error)
    assert "(dev1 is switched off[31m)" in str(error)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (
                b"HTTP/1.1 302 Found\r\nLocation: http://login.example.net/?t=s3cret\r\n"
                b"Server: portal\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
            ),
            (
                "302 Found; no tunnelmux-proxy says this (it redirects to "
                "http://login.example.net/, its server is portal, its body is text/html): the "
                "login page of a network"
            ),
        ),
        (
            (
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><head>"
                b"<title>Hotel\n Wifi</title>"
            ),
            "200 OK (Hotel Wifi); no tunnelmux-proxy says this (its body is text/html): the login",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nServer: gateway\r\nContent-Length: 0\r\n\r\n",
            "its server is gateway): a load balancer or a firewall in between",
        ),
        (b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n", "or a wrong address"),
        (b"HTTP/1.1 403 X\r\nTunnelmux-Reason: A b\r\n\r\n", "no tunnelmux-proxy says this"),
        (b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n", "wants a login: set http_proxy"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", "503 Service Unavailable; no tunn"),
    ],
)
async def test_an_answer_of_somebody_else_may_be_tried_again_and_is_described(
    autojump_clock: trio.testing.MockClock, answer: bytes, words: str
) -> None:
    error = await dial(sending(answer))
    assert isinstance(error, ConnectRefused)
    assert error.retryable
    assert error.reason is None
    assert words in str(error)
    assert "s3cret" not in str(error)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b"99999999999999999999", 3600.0),
        (b"Sun, 22 Nov 2026 03:00:30 GMT", 30.0),
        (b"Sun, 22 Nov 2026 02:00:00 GMT", 0.0),
        (b"soon", None),
        (b"Sun, 22 Nov 2026 03:00:30 +99999999999999999999", None),
        (b"-5", None),
        (b"\xb2", None),  # a superscript two is a digit for str.isdigit, and no number for float
        (b"9" * 30 + b" Jan 2026 00:00:00 GMT", None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(value: bytes, seconds: float | None) -> None:
    error = await dial(
        sending(
            b"HTTP/1.1 503 X\r\nDate: Sun, 22 Nov 2026 03:00:00 GMT\r\nRetry-After: %b\r\n"
            b"Content-Length: 0\r\n\r\n" % value
        )
    )
    assert isinstance(error, ConnectRefused)
    assert error.retry_after == seconds


async def test_a_refusal_body_that_never_ends_costs_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    error = await dial(
        sending(b"HTTP/1.1 503 X\r\nContent-Length: 999\r\n\r\nab", then_close=False)
    )
    assert isinstance(error, ConnectRefused)
    assert trio.current_time() < 2


async def test_what_the_block_raises_comes_out_unchanged(nursery: trio.Nursery) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    accepted: list[UpgradeRequest] = []

    async def serve() -> None:
        request = await read_upgrade(await listener.accept(), path="/tunnel/connect")
        accepted.append(request)
        async with accept_websocket(request) as stream:
            assert await stream.receive_some() == b""

    async with listener, trio.open_nursery() as serving:
        serving.start_soon(serve)
        with pytest.raises(ZeroDivisionError, match="mine"):
            async with connect_websocket(f"ws://127.0.0.1:{port}/tunnel/connect"):
                raise ZeroDivisionError("mine")
    assert accepted[0].subprotocols == ("tunnelmux.v1",)


async def test_a_refusal_is_read_whole_although_the_request_was_not(nursery: trio.Nursery) -> None:
    client, server = await socket_pair()
    answer = bytearray()
    async with client:
        await client.send_all(head("GET /other HTTP/1.1") + bytes(50_000))
        with pytest.raises(ConnectError):
            await read_upgrade(server, path="/tunnel/connect")
        async for data in client:
            answer += data
    assert answer.startswith(b"HTTP/1.1 404 ") and answer.endswith(b"/tunnel/connect\n")
