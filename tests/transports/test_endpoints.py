from __future__ import annotations

import ssl
import sys
from functools import partial

import pytest
import structlog
import trio
import trio.lowlevel
import trustme

import tunnelmux
from tunnelmux import errors
from tunnelmux.endpoints import dial, response_headers
from tunnelmux.transports import UpgradeRequest


async def echo(session: tunnelmux.Session) -> None:
    async def answer(stream: tunnelmux.Stream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        async for stream in session:
            nursery.start_soon(answer, stream)


async def round_trip(session: tunnelmux.Session, message: bytes) -> bytes:
    stream = await session.open_stream()

    async def send() -> None:
        await stream.send_all(message)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return b"".join([data async for data in stream])


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("scheme", ["ws", "wss", "tcp", "tls"])
async def test_connect_and_serve_are_one_session_apart(
    scheme: str, nursery: trio.Nursery, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    secure = scheme in {"wss", "tls"}
    (_, port), *_ = await nursery.start(
        partial(
            tunnelmux.serve,
            echo,
            f"{scheme}://127.0.0.1:0/tunnel/connect",
            ssl_context=contexts[0] if secure else None,
        )
    )
    async with tunnelmux.connect(
        f"{scheme}://127.0.0.1:{port}/tunnel/connect", ssl_context=contexts[1] if secure else None
    ) as session:
        if sys.platform == "linux":
            with trio.fail_after(30):
                while session.tunnel is None:  # it is the pump's soon
                    await trio.lowlevel.checkpoint()
        message = bytes(range(256)) * 4096
        assert await round_trip(session, message) == message


async def test_a_token_is_checked_before_there_is_a_session(nursery: trio.Nursery) -> None:
    async def authorize(request: UpgradeRequest) -> bool:
        return request.token == "right"

    (_, port), *_ = await nursery.start(
        partial(tunnelmux.serve, echo, "ws://127.0.0.1:0/t", authorize=authorize)
    )
    url = f"ws://127.0.0.1:{port}/t"
    async with tunnelmux.connect(url, token="right") as session:
        assert await round_trip(session, b"in") == b"in"
    for token in ("wrong", None):
        with pytest.raises(errors.ConnectRefused) as caught:
            async with tunnelmux.connect(url, token=token):
                pytest.fail("let in")
        assert (caught.value.status, caught.value.reason) == (401, "unauthorized")
        assert not caught.value.retryable


async def test_a_failing_handler_ends_its_session_only(nursery: trio.Nursery) -> None:
    failures = iter([True, False])

    async def handler(session: tunnelmux.Session) -> None:
        if next(failures):
            raise ZeroDivisionError
        await echo(session)

    with structlog.testing.capture_logs() as logs:
        (_, port), *_ = await nursery.start(partial(tunnelmux.serve, handler, "ws://127.0.0.1:0/t"))
        url = f"ws://127.0.0.1:{port}/t"
        async with tunnelmux.connect(url) as session:
            await session.wait_closed()
        async with tunnelmux.connect(url) as session:
            assert await round_trip(session, b"fine") == b"fine"
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "session handler failed"
    ]


async def test_a_session_over_tcp_is_there_before_its_client_says_anything(
    nursery: trio.Nursery,
) -> None:
    put, get = trio.open_memory_channel[tunnelmux.Session](1)

    async def greet(session: tunnelmux.Session) -> None:
        await put.send(session)
        await trio.sleep_forever()

    ((host, port, *_),) = await nursery.start(tunnelmux.serve, greet, "tcp://127.0.0.1:0")
    async with await trio.open_tcp_stream(host, port):
        with trio.fail_after(20):
            await get.receive()


async def test_rubbish_on_the_tunnel_port_harms_no_session(nursery: trio.Nursery) -> None:
    (_, port), *_ = await nursery.start(partial(tunnelmux.serve, echo, "ws://127.0.0.1:0/t"))
    async with tunnelmux.connect(f"ws://127.0.0.1:{port}/t") as session:
        for rubbish in (b"\x16\x03\x01" + bytes(200), b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(rubbish)
                answer = b"".join([data async for data in stream])
                assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
        assert await round_trip(session, b"still here") == b"still here"


async def test_one_handshake_too_many_is_dropped(nursery: trio.Nursery) -> None:
    (_, port), *_ = await nursery.start(
        partial(tunnelmux.serve, echo, "ws://127.0.0.1:0/t", max_handshakes=1)
    )
    async with await trio.open_tcp_stream("127.0.0.1", port) as first:
        await first.send_all(b"GET /t")
        async with await trio.open_tcp_stream("127.0.0.1", port) as second:
            await second.send_all(b"GET /t")
            # Whichever of the two was accepted second is the one that is dropped.
            dropped, _ = await first_to_end(first, second)
            assert dropped in {first, second}
    async with tunnelmux.connect(f"ws://127.0.0.1:{port}/t") as session:
        assert await round_trip(session, b"room again") == b"room again"


async def first_to_end(*streams: trio.SocketStream) -> tuple[trio.SocketStream, bytes]:
    """The first of the streams whose peer closes it, and what it got before that."""
    ended: list[tuple[trio.SocketStream, bytes]] = []

    async def read(stream: trio.SocketStream) -> None:
        try:
            data = await stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        ended.append((stream, data))
        nursery.cancel_scope.cancel()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(read, stream)
    return ended[0]


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("wss://127.0.0.1:0/t", {}, "needs an ssl_context"),
        ("tcp://127.0.0.1:0", {"authorize": print}, "no handshake to authorize"),
        ("http://127.0.0.1:0", {}, "scheme 'http'"),
    ],
)
async def test_what_cannot_be_served_is_said(
    url: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        await tunnelmux.serve(echo, url, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("tcp://127.0.0.1:1", {"token": "t"}, "no handshake that could carry a token"),
        ("ws://127.0.0.1:1", {"token": "a b"}, "a character that no token may have"),
        ("ws://127.0.0.1:1", {"ssl_context": ssl.create_default_context()}, "write wss://"),
    ],
)
async def test_what_cannot_be_dialled_is_said(
    url: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        async with tunnelmux.connect(url, **options):  # type: ignore[arg-type]
            pass


async def test_tcp_has_no_response_headers(nursery: trio.Nursery) -> None:
    (_, port), *_ = await nursery.start(partial(tunnelmux.serve, echo, "tcp://127.0.0.1:0"))
    async with dial(f"tcp://127.0.0.1:{port}") as transport:
        assert response_headers(transport) == {}
