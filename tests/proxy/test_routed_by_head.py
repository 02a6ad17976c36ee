"""Requests in the pump go where their own head says, each of them, and say who sent them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs

from support.carried_http import OK, Target, get, rig
from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux.http.head import RequestHead
from tunnelmux.http.refusal import Refused
from tunnelmux.mux import Session
from tunnelmux.proxy.visitors.routing import Destination, find_destination

AGREED = b"HTTP/1.1 200 OK\r\n\r\n"
RELAYABLE = b"HTTP/1.1 200 OK\r\nTunnelmux-Relay: web\r\nContent-Length: 2\r\n\r\nok"


async def next_stream(agent: Session) -> tuple[Peer, bytes]:
    with trio.fail_after(20):
        stream = Peer(await agent.accept_stream())
        return stream, await stream.read_head()


async def learn(visitor: Peer, agent: Session, request: bytes) -> None:
    """Serve one by h11, so that the proxy knows what the pump may carry."""
    await visitor.send(request)
    stream, head = await next_stream(agent)
    assert head.startswith(b"GET ")
    await stream.send(RELAYABLE)
    await visitor.read_until(b"ok")
    await stream.stream.aclose()


@asynccontextmanager
async def two_devices() -> AsyncIterator[tuple[Peer, dict[str, Session]]]:
    with trio.fail_after(20):
        async with (
            running(proxy_config()) as proxy,
            agent_of(proxy, "dev1") as one,
            agent_of(proxy, "dev2") as two,
        ):
            assert proxy.http_address is not None
            async with await trio.open_tcp_stream(*proxy.http_address) as stream:
                yield Peer(stream), {"dev1": one, "dev2": two}


def to(device: str, path: str, by: str) -> bytes:
    if by == "host":
        return get(path, host=f"{device}.localhost")
    return get(path, f"Tunnelmux-Device: {device}\r\n", host="localhost")


@pytest.mark.parametrize("by", ["host", "field"])
async def test_one_connection_goes_to_another_device_with_every_request(by: str) -> None:
    async with two_devices() as (visitor, agents):
        for device, agent in agents.items():
            await learn(visitor, agent, to(device, "/learn", by))
        kept: dict[str, Peer] = {}
        for turn in range(6):
            device = "dev1" if turn % 2 else "dev2"
            await visitor.send(to(device, f"/{turn}", by))
            if device not in kept:
                kept[device], head = await next_stream(agents[device])
                assert head == b"CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n"
                await kept[device].send(AGREED)
            head = await kept[device].read_head()  # on the connection that was left before
            assert head.startswith(b"GET /%d " % turn)
            assert b"Tunnelmux" not in head
            await kept[device].send(OK + b"%02d" % turn)
            assert await visitor.read_exactly(len(OK) + 2) == OK + b"%02d" % turn


async def test_pipelined_requests_to_several_devices_are_answered_in_order() -> None:
    async with two_devices() as (visitor, agents):
        for device, agent in agents.items():
            await learn(visitor, agent, to(device, "/learn", "host"))
        await visitor.send(b"".join(to(f"dev{1 + n % 2}", f"/{n}", "host") for n in range(2)))
        for number, agent in enumerate(agents.values()):
            stream, _ = await next_stream(agent)
            await stream.send(AGREED)
            assert (await stream.read_head()).startswith(b"GET /%d " % number)
            await stream.send(OK + b"%02d" % number)
            assert await visitor.read_exactly(len(OK) + 2) == OK + b"%02d" % number


@pytest.mark.parametrize(
    "request_",
    [
        get("/", "Tunnelmux-Device: dev2\r\n"),
        get("/", "Tunnelmux-Service: ssh\r\n"),
        get("/", "Tunnelmux-Device: dev1\r\n", host="evil.example"),
        get("/", "Tunnelmux-Device: dev1\r\nTunnelmux-Device: dev2\r\n", host="localhost"),
    ],
)
async def test_what_is_said_in_two_ways_is_still_for_h11_to_refuse(request_: bytes) -> None:
    async with two_devices() as (visitor, agents):
        await learn(visitor, agents["dev1"], to("dev1", "/learn", "host"))
        await visitor.send(request_)
        status = (await visitor.read_head()).split()[1]
        assert status in (b"400", b"403")


@pytest.mark.parametrize("way", ["kept", "direct"])
async def test_behind_a_trusted_proxy_requests_are_carried_with_what_it_says(way: str) -> None:
    with capture_logs() as logs:
        async with rig(trusted_fields=[]) as target:
            target.way = way
            await target.first_exchange()
            seen: set[int] = set()
            peer: Peer | None = None
            for client, proto in (("203.0.113.7", "https"), ("203.0.113.8", "http")):
                said = f"X-Forwarded-For: {client}\r\nX-Forwarded-Proto: {proto}\r\n"
                await target.visitor.send(get(f"/{proto}", said))
                peer = peer or await target.connection()
                head = await peer.read_head()
                assert b"Connection" not in head, "it went by h11"
                assert b"X-Forwarded-For: %b, 127.0.0.1\r\n" % client.encode() in head
                assert head.count(b"X-Forwarded-Proto: %b\r\n" % proto.encode()) == 1
                assert b"for=%b" % client.encode() in head
                await peer.send(OK + b"ok")
                await target.visitor.read_exactly(len(OK) + 2)
                seen.add(id(peer))
            assert len(seen) == 1
            await until_logged(target)
    lines = {line["path"]: line["visitor"] for line in logs if line.get("event") == "request"}
    assert (lines["/https"], lines["/http"]) == ("203.0.113.7", "203.0.113.8")


async def until_logged(target: Target) -> None:
    await target.visitor.stream.aclose()
    await trio.sleep(0.05)


@pytest.mark.parametrize("host", [b"tunnel.example.com", b"Tunnel.Example.com.:443"])
def test_the_field_names_the_device_where_the_host_is_the_domain_itself(host: bytes) -> None:
    request = RequestHead(b"GET", b"/", b"1.1", [(b"Host", host), (b"Tunnelmux-Device", b"dev1")])
    assert find_destination(request, "tunnel.example.com") == Destination("dev1")
    with pytest.raises(Refused, match="counts only where") as refused:
        find_destination(request, "example.org")
    assert refused.value.refusal.status == 403
