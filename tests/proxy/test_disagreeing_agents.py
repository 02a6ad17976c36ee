"""Agents that agreed to raw connections and then do not: h11 asks anew, and nothing is left."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from support.carried_http import OK, WAYS, get
from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux.config import LimitsConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session

AGREED = b"HTTP/1.1 200 OK\r\n\r\n"
RELAYABLE = b"HTTP/1.1 200 OK\r\nTunnelmux-Relay: web\r\nContent-Length: 2\r\n\r\nok"
REFUSAL = (
    b"HTTP/1.1 502 Bad Gateway\r\nTunnelmux-Reason: target-refused\r\nContent-Length: 0\r\n\r\n"
)


class Site:
    """A visitor of the proxy, and its device's session in the test's own hands."""

    def __init__(self, visitor: Peer, agent: Session) -> None:
        self.visitor = visitor
        self.agent = agent

    async def stream(self) -> tuple[Peer, bytes]:
        """The next stream that the proxy opens, and the head it begins with."""
        with trio.fail_after(20):
            stream = Peer(await self.agent.accept_stream())
            return stream, await stream.read_head()


@asynccontextmanager
async def site(way: str, limits: IngressLimits | None = None) -> AsyncIterator[Site]:
    """With a visitor whose next request the pump would carry, in that way."""
    # Connections to targets that nobody uses are not kept: at the end there must be no stream left.
    short = dataclasses.replace(limits or IngressLimits(), target_idle_time=0.1)
    ingress = LimitsConfig(ingress=short)
    config = msgspec.structs.replace(proxy_config(), limits=ingress)
    with trio.fail_after(20):
        async with running(config) as proxy, agent_of(proxy, "dev1") as agent:
            assert proxy.http_address is not None
            for step in ["tested"] if way == "kept" else ["asked", "carried", "tested"]:
                async with await trio.open_tcp_stream(*proxy.http_address) as stream:
                    one = Site(Peer(stream), agent)
                    if step == "tested":
                        if way == "kept":
                            await learn(one)
                        yield one
                    else:
                        await learn(one, carried=step == "carried")
            while any(h.session.stream_count for h in proxy._tunnel.sessions):  # noqa: ASYNC110
                await trio.sleep(0.005)


async def learn(one: Site, *, carried: bool = False) -> None:
    """Serve one request, by which the proxy learns what the pump may carry."""
    await one.visitor.send(get("/"))
    stream, head = await one.stream()
    if carried:
        assert head == b"CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n"
        await stream.send(AGREED)
        head = await stream.read_head()
    assert head.startswith(b"GET / ")
    await stream.send(OK + b"ok" if carried else RELAYABLE)
    await one.visitor.read_until(b"ok")
    if not carried:
        await stream.stream.aclose()
        return
    await one.visitor.end()
    await stream.read_all()
    await stream.stream.aclose()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["end", "reset", "nothing"])
@pytest.mark.parametrize("said", [REFUSAL, b"SSH-2.0-x\r\n" * 3, AGREED[:9], AGREED[:1], b""])
async def test_the_request_is_served_in_another_way(said: bytes, end: str, way: str) -> None:
    async with site(way, IngressLimits(connect_timeout=0.2)) as one:
        await one.visitor.send(get("/1"))
        stream, head = await one.stream()
        assert head.startswith(b"CONNECT web HTTP/1.1\r\n")
        if said:
            await stream.send(said)
        if end == "end":
            await stream.end()
        elif end == "reset":
            stream.stream.reset()  # type: ignore[attr-defined]
        elif AGREED.startswith(said):
            # What may still become a yes is waited for, and nothing else is tried after that.
            head = await one.visitor.read_head()
            assert head.startswith(b"HTTP/1.1 504 ")
            assert b"Tunnelmux-Reason: target-timeout\r\n" in head
            with pytest.raises(trio.BrokenResourceError):
                await stream.read_all()
            await one.visitor.end()
            await one.visitor.read_all()
            return
        again, head = await one.stream()
        if head.startswith(b"CONNECT "):  # it asks once more, and believes the second time
            await again.send(REFUSAL)
            await again.end()
            again, head = await one.stream()
        assert head.startswith(b"GET /1 ")
        await again.send(OK + b"11")
        assert (await one.visitor.read_head()).startswith(b"HTTP/1.1 200 ")
        assert await one.visitor.read_exactly(2) == b"11"
        await again.stream.aclose()
        await one.visitor.end()
        assert await one.visitor.read_all() == b""


@pytest.mark.parametrize(
    "name", ["\u00e9".encode(), b"a b", b"web:22", b"../x", b"", b"127.0.0.1:22", b"x" * 500]
)
async def test_a_name_that_is_no_services_is_not_learnt(name: bytes) -> None:
    answer = RELAYABLE.replace(b": web", b": " + name)
    with trio.fail_after(20):
        async with running(proxy_config()) as proxy, agent_of(proxy, "dev1") as agent:
            assert proxy.http_address is not None
            for _ in range(3):  # the next ones would be carried
                async with await trio.open_tcp_stream(*proxy.http_address) as stream:
                    one = Site(Peer(stream), agent)
                    for path in ("/1", "/2"):
                        await one.visitor.send(get(path))
                        tunnel, head = await one.stream()
                        assert head.startswith(b"GET " + path.encode())
                        await tunnel.send(answer)
                        assert b"unnelmux" not in await one.visitor.read_head()
                        assert await one.visitor.read_exactly(2) == b"ok"
                        await tunnel.stream.aclose()
