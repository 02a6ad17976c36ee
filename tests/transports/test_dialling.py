"""Several addresses of one name, and the way through an HTTP proxy."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
import trustme

from support.fake_proxy import FakeProxy, No, fake_proxy
from support.http_proxy import connect_proxy
from support.own_thread import replace_here
from tunnelmux.config import Secret
from tunnelmux.config.http_proxy import HttpProxy
from tunnelmux.endpoints import dial
from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.transports import WayOut, client_context, serve_connections

NAME = "tunnel.example.test"
Handler = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    """The good one, at 127.0.0.1."""
    async with fake_proxy() as running:
        yield running


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`resolve("127.0.0.12", …)` are the addresses of NAME from then on."""
    real = trio.socket.getaddrinfo

    def table(*addresses: str) -> None:
        async def getaddrinfo(host: str, port: int, *rest: object, **options: object) -> object:
            found = []
            for address in addresses if host == NAME else [host]:
                found += await real(address, port, *rest, **options)
            return found

        replace_here(monkeypatch, trio.socket, "getaddrinfo", getaddrinfo)

    return table


class Visits:
    """How often an address was connected to."""

    count = 0


@asynccontextmanager
async def at(address: str, port: int, handler: Handler) -> AsyncIterator[Visits]:
    """Have `handler` behind another address and the same port."""
    visits = Visits()

    async def serve(stream: trio.SocketStream) -> None:
        visits.count += 1
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(stream)

    listeners = await trio.open_tcp_listeners(port, host=address)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_connections, serve, listeners)
        yield visits
        nursery.cancel_scope.cancel()


async def closes(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def resets(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def answers_503(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 503 X\r\nRetry-After: 900\r\nContent-Length: 0\r\n\r\n")


async def answers_403(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


async def speaks_ssh(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")
    await stream.receive_some()


async def is_silent(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def reach(port: int, way: WayOut, *, timeout: float = 20.0) -> None:
    url = f"ws://{NAME}:{port}/tunnel/connect"
    async with dial(url, token="t0ken", way=way, timeout=timeout):
        pass


@pytest.mark.parametrize(
    "bad", [None, closes, resets, answers_503, answers_403, speaks_ssh, is_silent]
)
async def test_an_address_of_no_use_is_followed_by_the_next_and_the_good_one_remembered(
    proxy: FakeProxy, resolve: Callable[..., None], bad: Handler | None
) -> None:
    resolve("127.0.0.12", "127.0.0.1")
    way = WayOut()
    async with contextlib.AsyncExitStack() as stack:
        visits = Visits()
        if bad is not None:
            visits = await stack.enter_async_context(at("127.0.0.12", proxy.port, bad))
        began = trio.current_time()
        await reach(proxy.port, way, timeout=1.5)
        assert trio.current_time() - began < 15
        assert visits.count == (bad is not None)
        await reach(proxy.port, way)
        assert visits.count == (bad is not None), "the good one came first"
    assert len(proxy.requests) == 2


@contextlib.contextmanager
def blackhole(address: str, port: int) -> Iterator[None]:
    """An address at which connecting hangs, as behind a firewall that drops packets."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((address, port))
        full.listen(0)
        for _ in range(3):  # nobody accepts them, and then the kernel answers no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


async def test_an_address_that_swallows_packets_does_not_hold_up_the_others(
    proxy: FakeProxy, resolve: Callable[..., None]
) -> None:
    resolve("127.0.0.13", "127.0.0.1")
    with blackhole("127.0.0.13", proxy.port):
        began = trio.current_time()
        await reach(proxy.port, WayOut())
        assert 0.2 < trio.current_time() - began < 15, "the next one begins after 250 ms"


async def test_the_good_address_is_left_when_it_fails(
    proxy: FakeProxy, resolve: Callable[..., None]
) -> None:
    resolve("127.0.0.12", "127.0.0.1")
    way = WayOut(good={NAME: "127.0.0.12"})
    async with at("127.0.0.12", proxy.port, closes) as visits:
        await reach(proxy.port, way)
    assert (visits.count, way.good) == (1, {NAME: "127.0.0.1"})


async def test_a_refusal_of_the_proxy_itself_is_final_whatever_addresses_are_left(
    resolve: Callable[..., None],
) -> None:
    no = No(401, "unauthorized", "no device has this token")
    async with fake_proxy(lambda _request: no) as refusing:
        resolve("127.0.0.1", "127.0.0.12")
        async with at("127.0.0.12", refusing.port, is_silent) as visits:
            with pytest.raises(ConnectRefused) as caught:
                await reach(refusing.port, WayOut())
        assert not caught.value.retryable
        assert visits.count == 0


async def test_the_error_tells_what_each_address_did(resolve: Callable[..., None]) -> None:
    async with fake_proxy() as gone:
        port = gone.port
    resolve("127.0.0.12", "127.0.0.13", "127.0.0.1")
    async with at("127.0.0.12", port, closes), at("127.0.0.13", port, answers_503):
        with pytest.raises(ConnectError) as caught:
            await reach(port, WayOut())
    message = str(caught.value)
    assert message.startswith(f"none of the 3 addresses of {NAME}:{port} led to the server: ")
    for words in (
        "(127.0.0.12) ws://tunnel.example.test",
        "closed the connection without answering",
        "503",
        "(127.0.0.1) cannot connect",
        "connection refused",
    ):
        assert words in message
    assert caught.value.retryable
    assert caught.value.retry_after == 900


# ------------------------------------------------------------------------ through an HTTP proxy


def through(port: int, login: str | None = None, *, is_secure: bool = False) -> WayOut:
    secret = Secret(login) if login is not None else None
    return WayOut(HttpProxy("127.0.0.1", port, is_secure, secret))


async def test_the_tunnel_goes_through_connect_by_a_name_that_only_the_proxy_knows(
    proxy: FakeProxy,
) -> None:
    async with connect_proxy(names={NAME: "127.0.0.1"}) as http:
        with structlog.testing.capture_logs() as logs:
            await reach(proxy.port, through(http.port, "user:p@ss:w0rd"))
    assert http.asked == [f"{NAME}:{proxy.port}"]
    (head,) = http.heads
    login = base64.b64encode(b"user:p@ss:w0rd").decode()
    assert f"\r\nProxy-Authorization: Basic {login}\r\n" in head
    assert f"\r\nHost: {NAME}:{proxy.port}\r\n" in head
    assert "t0ken" not in head, "the token is for the proxy of the tunnel"
    assert len(proxy.requests) == 1
    assert "w0rd" not in str(logs)


@pytest.mark.parametrize("proxy_under_tls", [False, True])
async def test_tls_goes_through_it_also_when_it_is_under_tls_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy_under_tls: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", NAME).configure_cert(context)
    async with (
        fake_proxy(ssl_context=context) as proxy,
        connect_proxy(
            names={NAME: "127.0.0.1"}, ssl_context=context if proxy_under_tls else None
        ) as http,
    ):
        async with dial(
            f"wss://{NAME}:{proxy.port}/tunnel/connect",
            token="t",
            ssl_context=client_context(tmp_path / "ca.pem"),
            way=through(http.port, is_secure=proxy_under_tls),
        ):
            pass
        assert http.asked == [f"{NAME}:{proxy.port}"]
        assert len(proxy.requests) == 1


ASKS_FOR = b"HTTP/1.1 407 No\r\nProxy-Authenticate: %b\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "login", "words"),
    [
        (ASKS_FOR % b'Basic realm="x"', None, "set http_proxy to http://user:password@host:port"),
        (ASKS_FOR % b'Basic realm="x"', "u:secret", "check user and password in http_proxy"),
        (ASKS_FOR % b"NTLM", "u:secret", "asks for a login by ntlm, which is not known"),
        (
            b"HTTP/1.1 403 X\r\nContent-Type: text/html\r\n\r\n<TITLE>Access\ndenied</TITLE>",
            None,
            "403 Forbidden (Access denied); ask its operator to allow CONNECT to port 3800",
        ),
        (
            b"HTTP/1.1 502 X\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nno route\n",
            None,
            "502 Bad Gateway (no route); it cannot reach that address now",
        ),
        (b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", None, "check that http_proxy names"),
        (b"220 mail.example.net ESMTP Postfix\r\n", None, "did not answer with HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", None, "sent bytes of its own"),
    ],
)
async def test_a_refused_connect_says_with_what_status_and_what_to_do(
    answer: bytes, login: str | None, words: str
) -> None:
    async with connect_proxy(answer) as http:
        with pytest.raises(ConnectError) as caught:
            await reach(3800, through(http.port, login))
    message = str(caught.value)
    assert f"the HTTP proxy 127.0.0.1:{http.port}" in message
    assert words in message
    assert "secret" not in message
    assert caught.value.retryable


async def test_an_http_proxy_that_is_not_there_is_said_to_be_it() -> None:
    async with connect_proxy() as gone:
        way = through(gone.port)
    with pytest.raises(ConnectError, match=r"cannot connect to the HTTP proxy 127\.0\.0\.1:"):
        await reach(3800, way)
