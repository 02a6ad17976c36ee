"""TCP visitors in the pump: no task of their own, and every ending told apart all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog
import trio
import trio.lowlevel

from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux.config import LimitsConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session
from tunnelmux.relay import abort

AGREED = b"HTTP/1.1 200 OK\r\n\r\n"
REFUSAL = (
    b"HTTP/1.1 404 Not Found\r\nTunnelmux-Reason: unknown-service\r\n"
    b"Content-Length: 14\r\n\r\nNo ssh in here"
)


class Visit:
    """A visitor of the port, and the end of its stream that an agent sees."""

    def __init__(self, visitor: Peer, agent: Session) -> None:
        self.visitor = visitor
        self.agent = agent

    async def stream(self) -> Peer:
        with trio.fail_after(20):
            return Peer(await self.agent.accept_stream())


@asynccontextmanager
async def visit(limits: IngressLimits | None = None) -> AsyncIterator[Visit]:
    """A visitor whose device is there."""
    ingress = LimitsConfig(ingress=limits or IngressLimits())
    config = msgspec.structs.replace(proxy_config(tcp=("127.0.0.1:0",)), limits=ingress)
    with trio.fail_after(20):
        async with running(config) as proxy, agent_of(proxy, "dev1") as agent:
            (address,) = proxy.tcp_addresses
            stream = await trio.open_tcp_stream(*address)
            yield Visit(Peer(stream), agent)
            await stream.aclose()


async def test_bytes_flow_before_the_answer_and_half_closes_pass() -> None:
    with structlog.testing.capture_logs() as lines:
        async with visit() as one:
            await one.visitor.send(b"SSH-2.0-client\r\n")
            stream = await one.stream()
            assert await stream.read_head() == b"CONNECT ssh HTTP/1.1\r\nHost: ssh\r\n\r\n"
            assert await stream.read_exactly(16) == b"SSH-2.0-client\r\n"
            await one.visitor.end()
            assert await stream.read_all() == b""
            await stream.send(AGREED[:9])
            await one.agent.ping()
            await stream.send(AGREED[9:] + b"late answer")
            assert await one.visitor.read_exactly(11) == b"late answer"
            await stream.end()
            assert await one.visitor.read_all() == b""
    (line,) = [line for line in lines if line["event"] == "relay"]
    assert line.pop("seconds") >= 0
    assert line.pop("visitor").startswith("127.0.0.1:")
    assert line == {
        "event": "relay",
        "log_level": "info",
        "device": "dev1",
        "service": "ssh",
        "stream": 2,
        "bytes_in": 16,
        "bytes_out": 11,
    }


@pytest.mark.parametrize("pieces", [1, 40])
async def test_a_refusal_is_a_reset_and_one_line_says_why(pieces: int) -> None:
    with structlog.testing.capture_logs() as lines:
        async with visit() as one:
            await one.visitor.send(b"what the visitor says first")
            stream = await one.stream()
            step = len(REFUSAL) // pieces
            for at in range(0, len(REFUSAL), step):
                await stream.send(REFUSAL[at : at + step])
                await trio.lowlevel.checkpoint()
            await stream.end()
            with pytest.raises(trio.BrokenResourceError):
                await one.visitor.read_all()
    (line,) = [line for line in lines if line["event"].startswith("relay")]
    assert line["reason"] == "unknown-service"
    assert "No ssh in here" in line["problem"]


async def test_an_answer_with_fields_is_an_answer() -> None:
    """A peer that knows nothing of tunnelmux answers a CONNECT in its own way."""
    async with visit() as one:
        await one.visitor.send(b"question")
        stream = await one.stream()
        await stream.read_head()
        await stream.send(b"HTTP/1.1 200 Connection established\r\nServer: x\r\n\r\nanswer")
        assert await stream.read_exactly(8) == b"question"
        assert await one.visitor.read_exactly(6) == b"answer"
        await one.visitor.send(b"more")
        assert await stream.read_exactly(4) == b"more"
        await one.visitor.end()
        assert await stream.read_all() == b""
        await stream.end()
        assert await one.visitor.read_all() == b""


async def test_an_agent_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelmux.proxy.visitors.visit.AGENT_SLACK", 0.05)
    with structlog.testing.capture_logs() as lines:
        async with visit(IngressLimits(connect_timeout=0.05)) as one:
            await one.stream()
            with pytest.raises(trio.BrokenResourceError):
                await one.visitor.read_all()
    (line,) = [line for line in lines if line["event"] == "relay"]
    assert "no answer within" in line["problem"]


@pytest.mark.parametrize("visitor_breaks", [True, False])
async def test_a_reset_goes_through_to_the_other_side(visitor_breaks: bool) -> None:
    async with visit() as one:
        stream = await one.stream()
        await stream.read_head()
        await stream.send(AGREED + b"x")
        assert await one.visitor.read_exactly(1) == b"x"
        here, there = (one.visitor, stream) if visitor_breaks else (stream, one.visitor)
        await abort(here.stream)
        with pytest.raises(trio.BrokenResourceError):
            await there.read_all()


@pytest.mark.parametrize("agreed", [True, False])
async def test_a_lost_tunnel_is_a_reset(agreed: bool) -> None:
    async with visit() as one:
        stream = await one.stream()
        if agreed:
            await stream.send(AGREED + b"x")
            assert await one.visitor.read_exactly(1) == b"x"
        one.agent.abort()
        with pytest.raises(trio.BrokenResourceError):
            await one.visitor.read_all()


async def test_one_visitor_too_many_is_a_reset() -> None:
    async with visit(IngressLimits(max_visitors=1)) as one:
        stream = await one.stream()
        await stream.send(AGREED)
        address = one.visitor.stream.socket.getpeername()  # type: ignore[attr-defined]
        async with await trio.open_tcp_stream(*address) as second:
            with pytest.raises(trio.BrokenResourceError):
                await second.receive_some()
        await one.visitor.send(b"x")
        await stream.read_head()
        assert await stream.read_exactly(1) == b"x"
        await one.visitor.end()
        await stream.end()
        assert await one.visitor.read_all() == b""
        with trio.fail_after(20):
            while True:  # until the place is given back
                async with await trio.open_tcp_stream(*address) as third:
                    with trio.move_on_after(0.1):
                        await Peer(await one.agent.accept_stream()).read_head()
                        break
                    await third.aclose()
