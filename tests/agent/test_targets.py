"""Targets behind TLS and at Unix sockets, and what is said when one cannot be used."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog
import trio
import trustme

from support.fake_proxy import FakeProxy
from support.streams import next_bytes
from tunnelmux import Session
from tunnelmux.agent import RunningAgent
from tunnelmux.config import AgentConfig, LimitsConfig, ServiceConfig
from tunnelmux.errors import ConfigError
from tunnelmux.limits import IngressLimits

StartTarget = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]
StartAgent = Callable[[AgentConfig], Awaitable[RunningAgent]]
MakeConfig = Callable[..., AgentConfig]

GET = b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\nConnection: close\r\n\r\n"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nrouter"


async def ask(session: Session, request: bytes = GET) -> bytes:
    """Everything that comes back on a new stream for `request`."""
    stream = await session.open_stream()
    await stream.send_all(request)
    with trio.fail_after(30):
        return b"".join([data async for data in stream])


async def read_head(stream: trio.abc.Stream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece:
            raise trio.BrokenResourceError("no whole head came")
        data += piece
    return data


async def page(stream: trio.abc.Stream) -> None:
    await read_head(stream)
    await stream.send_all(PAGE)


async def shout(stream: trio.abc.Stream) -> None:
    """A WebSocket server, as far as the tunnel can tell."""
    assert b"Upgrade: websocket\r\n" in await read_head(stream)
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    while data := await stream.receive_some():
        await stream.send_all(data.upper())


class TlsSite:
    """A target that speaks TLS with a certificate of its own authority."""

    def __init__(self, folder: Path, names: tuple[str, ...], handler: object) -> None:
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(self._context)
        self._context.sni_callback = self._note_name
        self._handler = handler
        self.asked_for: list[str | None] = []
        """The name that each handshake asked for."""
        self.connections = 0

    def _note_name(self, _tls: object, name: str | None, _context: object) -> None:
        self.asked_for.append(name)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        tls = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
        await tls.do_handshake()
        await self._handler(tls)  # type: ignore[operator]
        await tls.aclose()


NAMES = ("router.lan", "127.0.0.1")


async def test_a_target_behind_tls(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    tmp_path: Path,
) -> None:
    site = TlsSite(tmp_path, NAMES, page)
    url = f"https://127.0.0.1:{await start_target(site.serve)}"
    await start_agent(
        make_config(
            ServiceConfig(name="plain", target=url, ca_file=site.ca_file),
            ServiceConfig(name="named", target=url, ca_file=site.ca_file, server_name="router.lan"),
            ServiceConfig(name="unchecked", target=url, verify=False),
        )
    )
    session = await proxy.next_session()
    for service in (b"plain", b"named", b"unchecked"):
        head = b"Tunnelmux-Relay: ?\r\nTunnelmux-Service: " + service
        answer = await ask(session, GET.replace(b"Host: ", head + b"\r\nHost: "))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nrouter")
        # What the proxy would relay raw would reach the target without TLS.
        assert b"unnelmux-Relay" not in answer
    assert site.asked_for == [None, "router.lan", None]  # no SNI for an address (RFC 6066 3)


async def test_a_target_whose_authority_the_system_trusts_needs_no_setting(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = TlsSite(tmp_path, NAMES, page)
    monkeypatch.setenv("SSL_CERT_FILE", str(site.ca_file))  # where OpenSSL has the system's
    url = f"https://127.0.0.1:{await start_target(site.serve)}"
    await start_agent(make_config(ServiceConfig(name="web", target=url)))
    answer = await ask(await proxy.next_session())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nrouter")


@pytest.mark.parametrize(
    "changes",
    [{}, {"server_name": "other.lan", "ca_file": "ca.pem"}, {"server_name": "router.lan"}],
    ids=["an authority nobody knows", "another name", "an authority nobody knows, and a name"],
)
async def test_a_certificate_that_proves_nothing_is_refused(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    tmp_path: Path,
    changes: dict[str, str],
) -> None:
    site = TlsSite(tmp_path, NAMES, page)
    port = await start_target(site.serve)
    more = {"ca_file": site.ca_file} if "ca_file" in changes else {}
    await start_agent(
        make_config(ServiceConfig(name="web", target=f"https://127.0.0.1:{port}", **changes | more))
    )
    session = await proxy.next_session()
    with structlog.testing.capture_logs() as lines:
        answer = await ask(session)
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"Tunnelmux-Reason: target-tls-failed\r\n" in answer
    assert b"ca_file" in answer and b"verify = false" in answer
    assert b"127.0.0.1" not in answer
    (line,) = (line for line in lines if line["event"] == "stream refused")
    assert str(line["target"]).startswith(f"127.0.0.1:{port}: ")


async def test_an_authority_that_cannot_be_read_is_said_at_the_start(
    make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    service = ServiceConfig(name="web", target="https://127.0.0.1", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        await start_agent(make_config(service))


async def test_a_websocket_under_tls(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    tmp_path: Path,
) -> None:
    site = TlsSite(tmp_path, NAMES, shout)
    url = f"https://127.0.0.1:{await start_target(site.serve)}"
    await start_agent(make_config(ServiceConfig(name="web", target=url, ca_file=site.ca_file)))
    session = await proxy.next_session()
    stream = await session.open_stream()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost: "
    await stream.send_all(GET.replace(b"Connection: close\r\n", b"").replace(b"Host: ", upgrade))
    with trio.fail_after(30):
        assert (await read_head(stream)).startswith(b"HTTP/1.1 101 ")
        await stream.send_all(b"hello")
        assert await next_bytes(stream, 5) == b"HELLO"
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_a_tcp_visitor_speaks_tls_with_the_target_itself(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    tmp_path: Path,
) -> None:
    site = TlsSite(tmp_path, NAMES, page)
    url = f"https://127.0.0.1:{await start_target(site.serve)}"
    await start_agent(make_config(ServiceConfig(name="web", target=url)))
    session = await proxy.next_session()
    stream = await session.open_stream()
    await stream.send_all(b"CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n")
    with trio.fail_after(30):
        assert await read_head(stream) == b"HTTP/1.1 200 OK\r\n\r\n"
        context = ssl.create_default_context(cafile=str(site.ca_file))
        tls = trio.SSLStream(stream, context, server_hostname="router.lan", https_compatible=True)
        await tls.send_all(GET)
        assert (await read_head(tls)).startswith(b"HTTP/1.1 200 OK\r\n")
        await trio.aclose_forcefully(tls)


async def test_an_http_target_that_speaks_tls_is_said_so(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    start_target: StartTarget,
    tmp_path: Path,
) -> None:
    site = TlsSite(tmp_path, NAMES, page)
    url = f"http://127.0.0.1:{await start_target(site.serve)}"
    await start_agent(make_config(ServiceConfig(name="web", target=url)))
    session = await proxy.next_session()
    for _ in range(3):
        with structlog.testing.capture_logs() as lines:
            answer = await ask(session)
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"it speaks TLS: write https://" in answer
        (line,) = (line for line in lines if line["event"] == "request served")
        assert "it speaks TLS" in str(line["cause"])
    assert site.connections == 4  # three requests, and one try


async def test_a_target_that_is_silent_for_other_reasons_is_no_tls(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    url = f"http://127.0.0.1:{await start_target(hang_up)}"
    await start_agent(make_config(ServiceConfig(name="web", target=url)))
    answer = await ask(await proxy.next_session())
    assert answer.startswith(b"HTTP/1.1 502 ") and b"without an answer" in answer
    assert b"TLS" not in answer


async def test_an_https_target_that_does_not_speak_tls_is_said_so(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    url = f"https://127.0.0.1:{await start_target(plain)}"
    await start_agent(make_config(ServiceConfig(name="web", target=url)))
    answer = await ask(await proxy.next_session())
    assert b"Tunnelmux-Reason: target-tls-failed\r\n" in answer
    assert b"does not speak TLS: write http://" in answer


# -- Unix sockets --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def at_unix_socket(path: Path) -> AsyncIterator[None]:
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, page, [trio.SocketListener(listener)])
            yield
            nursery.cancel_scope.cancel()


async def test_targets_at_unix_sockets(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    async with at_unix_socket(path):
        await start_agent(
            make_config(
                ServiceConfig(name="web", target=f"unix:{path}"),
                ServiceConfig(name="raw", target=f"tcp+unix:{path}"),
            )
        )
        session = await proxy.next_session()
        assert (await ask(session)).endswith(b"\r\n\r\nrouter")
        for name in (b"web", b"raw"):
            connect = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name)
            assert (await ask(session, connect + GET)).endswith(PAGE)
        raw = await ask(session, GET.replace(b"Host: ", b"Tunnelmux-Service: raw\r\nHost: "))
        assert raw.startswith(b"HTTP/1.1 404 ")


# -- What visitors are told -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://127.0.0.1:{closed}", b"target-refused"),
        ("https://127.0.0.1:{closed}", b"target-refused"),
        ("http://255.255.255.255:9", b"target-unreachable"),
        ("http://no-such-host.invalid:81", b"target-unreachable"),
        ("unix:/nowhere/app.sock", b"target-unreachable"),
    ],
)
@pytest.mark.parametrize("connect", [False, True], ids=["HTTP", "CONNECT"])
async def test_no_visitor_is_told_where_a_target_is(
    proxy: FakeProxy,
    make_config: MakeConfig,
    start_agent: StartAgent,
    target: str,
    reason: bytes,
    connect: bool,
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        target = target.format(closed=reserved.getsockname()[1])
        await start_agent(make_config(ServiceConfig(name="web", target=target)))
        session = await proxy.next_session()
        with structlog.testing.capture_logs() as lines:
            asked = b"CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n" if connect else GET
            answer = await ask(session, asked)
    assert b"Tunnelmux-Reason: " + reason + b"\r\n" in answer
    where = target.partition(":")[2].strip("/")
    for part in (where, *where.split(":"), *where.split("/")):
        assert part.encode() not in answer.partition(b"\r\n\r\n")[2]
    (line,) = (line for line in lines if line["event"] == "stream refused")
    assert where in str(line["target"])


async def test_no_visitor_is_told_where_a_slow_target_is(
    proxy: FakeProxy, make_config: MakeConfig, start_agent: StartAgent, start_target: StartTarget
) -> None:
    async def say_nothing(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    port = await start_target(say_nothing)
    limits = LimitsConfig(ingress=IngressLimits(connect_timeout=0.1))
    service = ServiceConfig(name="web", target=f"https://127.0.0.1:{port}")
    await start_agent(make_config(service, limits=limits))
    answer = await ask(await proxy.next_session())
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"Tunnelmux-Reason: target-timeout\r\n" in answer
    assert b"127.0.0.1" not in answer
