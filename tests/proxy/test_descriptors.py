"""Visitors of one address where a process may open few files and sockets."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from support.crowds import dial_from
from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux import Session, Stream
from tunnelmux.http.connect import CONNECT_ANSWER

LOWERED = "limits are lowered"
REQUEST = b"GET / HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n"


async def test_idle_visitors_of_one_address_leave_descriptors_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With all descriptors taken, no new connection is accepted, so that no idle one gave way."""
    monkeypatch.setattr("tunnelmux.proxy.descriptors.files_allowed", lambda: 64)
    with capture_logs() as logs, trio.fail_after(30):
        async with running(proxy_config()) as proxy:
            address = proxy.http_address
            assert address is not None
            visitors = []
            for number in range(60):
                visitors.append(Peer(await dial_from(f"127.0.0.{2 + number // 40}", address)))
                await visitors[-1].send(REQUEST)
                assert (await visitors[-1].read_head()).startswith(b"HTTP/1.1 503 ")
            assert proxy._http.visitor_count <= 32
            for visitor in visitors:
                await trio.aclose_forcefully(visitor.stream)
    (line,) = [line for line in logs if line["event"] == LOWERED]
    assert (line["files"], line["max_visitors"], line["max_visitors_per_address"]) == (64, 32, 16)


async def test_visitors_of_many_tcp_ports_leave_descriptors_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each port had a limit of its own, so that one address took all descriptors by two of them."""
    monkeypatch.setattr("tunnelmux.proxy.descriptors.files_allowed", lambda: 128)
    monkeypatch.setattr("tunnelmux.proxy.visitors.ingress_tcp.files_allowed", lambda: 128)
    ports = ("127.0.0.1:0",) * 4
    async with (
        running(proxy_config(tcp=ports)) as proxy,
        agent_of(proxy, relayed=b"ssh") as agent,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer_all, agent, nursery)
        held = list[trio.SocketStream]()
        with trio.fail_after(30):
            for address, let_in in (("127.0.0.2", 16), ("127.0.0.3", 16), ("127.0.0.4", 0)):
                for number in range(20):
                    port = proxy.tcp_addresses[number % 4]
                    visitor = await dial_from(address, port)
                    await visitor.send_all(b"hello")
                    if number < let_in:
                        assert await visitor.receive_some(5) == b"hello"
                        held.append(visitor)
                    else:
                        await check_reset(visitor)
            assert proxy.http_address is not None
            visitor = await dial_from("127.0.0.2", proxy.http_address)
            await visitor.send_all(REQUEST)
            assert (await visitor.receive_some()).startswith(b"HTTP/1.1 ")
            await trio.aclose_forcefully(visitor)
            for stream in held[:4]:
                await stream.aclose()
            while proxy.visits.of_way("tcp") > 29:
                await trio.lowlevel.checkpoint()
            visitor = await dial_from("127.0.0.4", proxy.tcp_addresses[0])
            await visitor.send_all(b"hello")
            assert await visitor.receive_some(5) == b"hello"
            for stream in (*held, visitor):
                await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def answer_all(session: Session, nursery: trio.Nursery) -> None:
    async for stream in session:
        nursery.start_soon(echo, stream)


async def echo(stream: Stream) -> None:
    """An agent that connects it to a service which says what it hears."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some()
    await stream.send_all(CONNECT_ANSWER + received.partition(b"\r\n\r\n")[2])
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def check_reset(visitor: trio.SocketStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        assert not await visitor.receive_some()
        raise trio.BrokenResourceError  # it was closed before it had sent
    await visitor.aclose()


async def test_with_descriptors_for_all_limits_none_is_lowered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnelmux.proxy.descriptors.files_allowed", lambda: 65_536)
    with capture_logs() as logs:
        async with running(proxy_config()):
            pass
    assert not [line for line in logs if line["event"] == LOWERED]
