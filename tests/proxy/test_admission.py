"""Strangers that connect and say nothing do not keep agents and visitors out."""

from __future__ import annotations

import resource
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.lowlevel
from structlog.testing import capture_logs

from support.proxies import proxy_config, running
from tunnelmux.config import Address, LimitsConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import open_session
from tunnelmux.proxy import RunningProxy
from tunnelmux.transports import parse_url
from tunnelmux.transports.websocket import start_websocket_client

SILENT = 2000

_AGAIN, _AT_ONCE = 0.1, 50
# Seconds between two turns, and how many dial again in each: 500 a second, in this very process.


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the crowd needs, at both its ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * SILENT
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} open files are needed, and {hard} allowed: ulimit -Hn {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def dial_from(source: str, address: Address) -> trio.SocketStream:
    """A connection to *address* that comes from the loopback address *source*."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.bind((source, 0))
        await sock.connect(tuple(address))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


@asynccontextmanager
async def crowd(source: str, address: Address, *, count: int = SILENT) -> AsyncIterator[None]:
    """Connections from *source* that say nothing, the oldest of them dialled again and again."""
    silent: deque[socket.socket] = deque()

    def dial() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        sock.connect_ex(tuple(address))
        silent.append(sock)

    async def dial_again() -> None:
        while True:
            await trio.sleep(_AGAIN)
            for _ in range(_AT_ONCE):
                silent.popleft().close()
                dial()

    try:
        for number in range(count):
            dial()
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial_again)
            yield
            nursery.cancel_scope.cancel()
    finally:
        for sock in silent:
            sock.close()


@asynccontextmanager
async def agent_from(source: str, proxy: RunningProxy, device: str) -> AsyncIterator[None]:
    """An agent that comes from the loopback address *source*."""
    stream = await dial_from(source, proxy.tunnel_address)
    url = parse_url(f"ws://{proxy.tunnel_address}/tunnel/connect")
    headers = [(b"Authorization", f"Bearer token-of-{device}".encode())]
    async with trio.open_nursery() as nursery:
        websocket = await start_websocket_client(nursery, stream, url, headers=headers)
        async with open_session(websocket, is_client=True):
            yield
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_agents_get_in_beside_2000_silent_connections_of_one_address() -> None:
    async with running(proxy_config()) as proxy:
        with capture_logs() as logs:
            async with crowd("127.0.0.2", proxy.tunnel_address):
                await trio.sleep(1)
                started = trio.current_time()
                async with agent_from("127.0.0.3", proxy, "dev1"):
                    assert trio.current_time() - started < 2
                    async with agent_from("127.0.0.4", proxy, "dev2"):
                        assert trio.current_time() - started < 2
        floods = [line for line in logs if line["event"] == "connections gave way"]
        assert floods and floods[0]["address"] == "127.0.0.2"
        assert len(floods) < 5


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_visitors_get_in_beside_2000_silent_connections_of_one_address() -> None:
    limits = LimitsConfig(ingress=IngressLimits(max_visitors=200))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        address = proxy.http_address
        assert address is not None
        with capture_logs() as logs:
            async with crowd("127.0.0.2", address):
                await trio.sleep(1)
                started = trio.current_time()
                async with await dial_from("127.0.0.3", address) as visitor:
                    await visitor.send_all(b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
                    assert (await visitor.receive_some()).startswith(b"HTTP/1.1 404 ")
                assert trio.current_time() - started < 2
        assert [line for line in logs if line["event"] == "connections gave way"]


async def test_an_agent_in_the_middle_of_its_handshake_keeps_its_place() -> None:
    limits = LimitsConfig(ingress=IngressLimits(max_handshakes=8, max_arrivals_per_address=4))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        slow = await dial_from("127.0.0.3", proxy.tunnel_address)
        await slow.send_all(b"GET /tunnel/connect HTTP/1.1\r\nHost: p\r\n")
        silent = [
            await dial_from(f"127.0.1.{number}", proxy.tunnel_address) for number in range(40)
        ]
        await slow.send_all(
            b"Authorization: Bearer token-of-dev1\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        with trio.fail_after(5):
            assert (await slow.receive_some()).startswith(b"HTTP/1.1 101")
        for stream in (slow, *silent):
            await trio.aclose_forcefully(stream)


async def test_silence_is_cut_before_the_handshake_timeout() -> None:
    limits = LimitsConfig(ingress=IngressLimits(first_byte_timeout=0.1))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        with capture_logs() as logs, trio.fail_after(5):
            silent = await dial_from("127.0.0.2", proxy.tunnel_address)
            assert await silent.receive_some() == b""
        assert [line["cause"] for line in logs if line["event"] == "tunnel handshake failed"] == [
            "it said nothing within 0.1 s"
        ]
        await silent.aclose()


async def test_one_address_that_speaks_slowly_is_refused_at_its_limit_only() -> None:
    limits = LimitsConfig(ingress=IngressLimits(max_arrivals_per_address=2))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    async with running(config) as proxy:
        slow = [await dial_from("127.0.0.2", proxy.tunnel_address) for _ in range(2)]
        for stream in slow:
            await stream.send_all(b"GET /")
        while proxy.tunnel_admission.silent or len(proxy.tunnel_admission) < 2:  # noqa: ASYNC110  no event says so
            await trio.sleep(0.01)
        with capture_logs() as logs, pytest.raises((trio.BrokenResourceError, OSError)):
            async with await dial_from("127.0.0.2", proxy.tunnel_address) as third:
                await third.receive_some()
        assert [line["reason"] for line in logs] == ["too-many-connections"]
        with trio.fail_after(5):
            async with agent_from("127.0.0.3", proxy, "dev1"):
                pass
        for stream in slow:
            await stream.aclose()
