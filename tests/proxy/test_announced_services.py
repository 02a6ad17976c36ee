"""Agents that say at their connect which services take raw connections: nothing has to be asked."""

from __future__ import annotations

import msgspec
import pytest
import trio

from support.carried_http import OK, get, rig
from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux.agent.services import ServiceTable
from tunnelmux.config import (
    AgentConfig,
    Device,
    LimitsConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.limits import IngressLimits
from tunnelmux.wire import MOST_SERVICES, list_relayed, read_relayed

AGREED = b"HTTP/1.1 200 OK\r\n\r\n"
ODD = get("/odd", "TE: trailers\r\nConnection: TE\r\n")  # the pump leaves it to h11
CONNECT = b"CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n"


def table(*services: ServiceConfig) -> ServiceTable:
    endpoint = ProxyEndpoint(url="ws://127.0.0.1:1/tunnel/connect", token=Secret("t" * 32))
    return ServiceTable(
        AgentConfig(proxy=endpoint, device=Device(name="dev1"), services=list(services))
    )


async def test_the_first_request_of_a_session_is_carried() -> None:
    async with rig(announces=True) as target:
        before = trio.lowlevel.current_statistics().tasks_living
        for path in ("/1", "/2"):
            visitor = await target.new_visitor()
            await visitor.send(get(path))
            peer = await target.connection()
            head = await peer.read_head()
            assert head.startswith(b"GET " + path.encode())
            assert b"Connection:" not in head, "h11 at the agent has one request for a connection"
            await peer.send(OK + b"ok")
            assert await visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        # The test's own target has one for each connection.
        assert trio.lowlevel.current_statistics().tasks_living <= before + 2


async def test_a_service_that_the_agent_changes_something_for_is_not_announced() -> None:
    async with rig(announces=True, host="site.example") as target:
        peer, head = await target.ask(get("/"))
        assert b"Host: site.example\r\n" in head
        assert b"Connection: close\r\n" in head
        await peer.send(OK + b"ok")
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 200 ")


def test_what_is_announced() -> None:
    web = ServiceConfig(name="web", target="http://127.0.0.1:8000")
    site = ServiceConfig(name="site", target="http://127.0.0.1:8000", host="site.example")
    tls = ServiceConfig(name="tls", target="https://127.0.0.1:8443")
    ssh = ServiceConfig(name="ssh", target="tcp://127.0.0.1:22")
    camera = ServiceConfig(name="camera", target="http://127.0.0.1:8001")
    assert table(web, site, tls, ssh, camera).relayed == b"web;default, camera"
    assert table(site, web).relayed == b"web"
    assert table(ssh, tls).relayed == b""
    many = [ServiceConfig(name=f"s{n}", target="http://127.0.0.1:80") for n in range(200)]
    assert len(read_relayed(table(*many).relayed.decode())) == MOST_SERVICES


def test_the_field_is_read_as_it_was_written() -> None:
    written = list_relayed(["web", "camera"], "camera").decode()
    assert read_relayed(written) == [("web", False), ("camera", True)]
    assert len(read_relayed("a," * 100_000)) == MOST_SERVICES


@pytest.mark.parametrize(
    ("said", "first"),
    [
        (b"web;default", CONNECT),
        (b"web;default ,camera,", CONNECT),
        (b"web;default, web;default", CONNECT),
        (b"x" * 64 + b";default", b"GET / "),
        (b"../x;default", b"GET / "),
        (b"web:22;default", b"GET / "),
        (b";default", b"GET / "),
        (b"web", b"GET / "),
        (b"", b"GET / "),
        (b"a," * 64 + b"web;default", b"GET / "),
        (b"w\xc3\xa9b;default", b"GET / "),
        (None, b"GET / "),
    ],
)
async def test_only_names_of_services_are_believed(said: bytes | None, first: bytes) -> None:
    with trio.fail_after(20):
        async with running(proxy_config()) as proxy, agent_of(proxy, relayed=said) as agent:
            assert proxy.http_address is not None
            async with await trio.open_tcp_stream(*proxy.http_address) as visitor:
                await visitor.send_all(get("/"))
                stream = Peer(await agent.accept_stream())
                assert (await stream.read_head()).startswith(first)


async def test_one_that_is_not_so_is_asked_about() -> None:
    with trio.fail_after(20):
        async with running(proxy_config()) as proxy, agent_of(proxy, relayed=b"web;default") as it:
            assert proxy.http_address is not None
            async with await trio.open_tcp_stream(*proxy.http_address) as visitor:
                await visitor.send_all(get("/"))
                stream = Peer(await it.accept_stream())
                assert await stream.read_head() == CONNECT
                await stream.send(
                    b"HTTP/1.1 404 Not Found\r\nTunnelmux-Reason: unknown-service\r\n"
                    b"Content-Length: 0\r\n\r\n"
                )
                await stream.end()
                stream = Peer(await it.accept_stream())
                assert (await stream.read_head()).startswith(b"GET / ")
                await stream.send(OK + b"ok")
                await stream.end()
                assert await Peer(visitor).read_exactly(len(OK) + 2) == OK + b"ok"


async def test_a_request_that_h11_reads_goes_straight_to_the_target_too() -> None:
    with trio.fail_after(20):
        async with running(proxy_config()) as proxy, agent_of(proxy, relayed=b"web;default") as it:
            assert proxy.http_address is not None
            visitor = Peer(await trio.open_tcp_stream(*proxy.http_address))
            for number in (b"1", b"2"):
                await visitor.send(ODD.replace(b"/odd", b"/" + number))
                stream = Peer(await it.accept_stream())
                assert await stream.read_head() == CONNECT
                await stream.send(AGREED)
                head = await stream.read_head()
                assert head.startswith(b"GET /" + number + b" HTTP/1.1\r\n")
                assert b"X-Forwarded-For: 127.0.0.1\r\n" in head
                assert b"Tunnelmux" not in head, "a target reads this"
                own = b"OK\r\nTunnelmux-Reason: x\r\nTunnelmux-Relay: y\r\n"
                await stream.send(OK.replace(b"OK\r\n", own) + b"ok")
                assert b"Tunnelmux" not in await visitor.read_head()
                assert await visitor.read_exactly(2) == b"ok"
                await stream.stream.aclose()
            await visitor.stream.aclose()


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("said", [b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"HTTP/1.1 200 OK\r\nX"])
async def test_an_agent_that_does_not_agree_is_asked_why(said: bytes, end: bool) -> None:
    with trio.fail_after(20):
        async with running(proxy_config()) as proxy, agent_of(proxy, relayed=b"web;default") as it:
            assert proxy.http_address is not None
            visitor = Peer(await trio.open_tcp_stream(*proxy.http_address))
            await visitor.send(ODD)
            stream = Peer(await it.accept_stream())
            assert await stream.read_head() == CONNECT
            await stream.send(said)
            if end:
                await stream.end()
            stream = Peer(await it.accept_stream())
            assert (await stream.read_head()).startswith(b"GET /odd ")
            await stream.send(
                b"HTTP/1.1 502 Bad Gateway\r\nTunnelmux-Reason: target-refused\r\n"
                b"Content-Length: 0\r\n\r\n"
            )
            await stream.end()
            assert b"Tunnelmux-Reason: target-refused\r\n" in await visitor.read_head()
            await visitor.stream.aclose()


async def test_an_agent_that_says_nothing_is_not_waited_for_twice() -> None:
    limits = LimitsConfig(ingress=IngressLimits(connect_timeout=0.1))
    config = msgspec.structs.replace(proxy_config(), limits=limits)
    with trio.fail_after(20):
        async with running(config) as proxy, agent_of(proxy, relayed=b"web;default") as it:
            assert proxy.http_address is not None
            visitor = Peer(await trio.open_tcp_stream(*proxy.http_address))
            await visitor.send(ODD)
            stream = Peer(await it.accept_stream())
            assert await stream.read_head() == CONNECT
            head = await visitor.read_head()
            assert head.startswith(b"HTTP/1.1 504 ")
            assert b"Tunnelmux-Reason: target-timeout\r\n" in head
            with pytest.raises(trio.BrokenResourceError):
                await stream.read_all()
            await visitor.stream.aclose()
