"""How long an HTTP visitor may take in the pump: to the moment, by a clock that the test moves."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
import trustme

from support.carried_http import OK, Target, get, rig
from support.http_rig import Peer
from support.proxies import agent_of, proxy_config, running
from tunnelmux.config import LimitsConfig
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.visitors.visit import VisitRegister, Wait

LIMITS = IngressLimits(
    handshake_timeout=2.0,
    head_timeout=2.0,
    connect_timeout=2.0,
    response_timeout=3.0,
    body_stall=3.0,
    idle_timeout=4.0,
)
POST = b"POST /up HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "way", "direct")


@contextlib.asynccontextmanager
async def by_hand(clock: trio.testing.MockClock) -> AsyncIterator[None]:
    """The clock stands still but for the test; behind the block, ends take their time."""
    try:
        yield
    finally:
        clock.rate = 10.0


async def until(visits: VisitRegister, state: Wait | None) -> None:
    """Wait until the one HTTP visit waits for this; with None, until it is over."""
    while [visit.state for visit in visits if visit.way == "http"] != ([state] if state else []):
        await trio.lowlevel.checkpoint()


async def nothing_by(
    clock: trio.testing.MockClock, visits: VisitRegister, seconds: float, state: Wait
) -> None:
    """So much time passes, and the visit goes on waiting."""
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.01)
    await until(visits, state)


async def test_silence(mock_clock: trio.testing.MockClock) -> None:
    async with rig(LIMITS) as target, by_hand(mock_clock):
        await target.first_exchange()
        visits = target.proxy.visits
        await until(visits, "silent")
        await nothing_by(mock_clock, visits, 1.875, "silent")
        mock_clock.jump(0.125)
        assert await target.visitor.read_all() == b""
        await until(visits, "leaving")
        await nothing_by(mock_clock, visits, 4.875, "leaving")
        mock_clock.jump(0.125)
        await until(visits, None)


async def test_a_connection_that_is_kept(mock_clock: trio.testing.MockClock) -> None:
    async with rig(LIMITS) as target, by_hand(mock_clock):
        await target.first_exchange()
        visits = target.proxy.visits
        await nothing_by(mock_clock, visits, 1.875, "silent")
        peer, _ = await target.ask(get("/"))
        await peer.send(OK + b"ok")
        assert await target.visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        await until(visits, "idle")
        await nothing_by(mock_clock, visits, 3.875, "idle")
        mock_clock.jump(0.125)
        assert await target.visitor.read_all() == b""


async def test_a_head(mock_clock: trio.testing.MockClock) -> None:
    """408 comes at the end of the time, and not when h11 has waited once more."""
    async with rig(LIMITS) as target, by_hand(mock_clock):
        await target.first_exchange()
        visits = target.proxy.visits
        await nothing_by(mock_clock, visits, 1.5, "silent")
        await target.visitor.send(b"GET / HTTP/1.1\r\nHost: dev1")
        await until(visits, "reading")
        await nothing_by(mock_clock, visits, 1.0, "reading")
        await target.visitor.send(b".localhost\r\n")
        await nothing_by(mock_clock, visits, 0.875, "reading")
        mock_clock.jump(0.125)
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Tunnelmux-Reason: head-timeout\r\n" in head


async def test_a_body(mock_clock: trio.testing.MockClock) -> None:
    async with rig(LIMITS) as target, by_hand(mock_clock):
        await target.first_exchange()
        visits = target.proxy.visits
        await target.ask(POST)
        await until(visits, "sending")
        await nothing_by(mock_clock, visits, 2.875, "sending")
        seen = visits.of_device("dev1")[0].bytes[0]
        await target.visitor.send(b"x")
        while visits.of_device("dev1")[0].bytes[0] == seen:
            await trio.lowlevel.checkpoint()
        await nothing_by(mock_clock, visits, 2.875, "sending")
        mock_clock.jump(0.125)
        assert (await target.visitor.read_head()).startswith(b"HTTP/1.1 408 ")


async def test_an_answer(mock_clock: trio.testing.MockClock) -> None:
    """From the end of the request, and anew from each interim answer."""
    async with rig(LIMITS) as target, by_hand(mock_clock):
        await target.first_exchange()
        visits = target.proxy.visits
        peer, _ = await target.ask(POST)
        await nothing_by(mock_clock, visits, 1.0, "sending")
        await target.visitor.send(b"0123456789")
        await until(visits, "waiting")
        await nothing_by(mock_clock, visits, 2.875, "waiting")
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        assert await target.visitor.read_head() == b"HTTP/1.1 103 Early Hints\r\n\r\n"
        await nothing_by(mock_clock, visits, 2.875, "waiting")
        mock_clock.jump(0.125)
        head = await target.visitor.read_head()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b"Tunnelmux-Reason: target-timeout\r\n" in head


async def test_a_target_that_takes_no_connection(mock_clock: trio.testing.MockClock) -> None:
    """504 comes at the end of the time, and not when h11 has tried once more."""
    config = msgspec.structs.replace(proxy_config(), limits=LimitsConfig(ingress=LIMITS))
    async with running(config) as proxy, agent_of(proxy) as agent, by_hand(mock_clock):
        assert proxy.http_address is not None
        visitor = Peer(await trio.open_tcp_stream(*proxy.http_address))
        await visitor.send(get("/1"))
        stream = Peer(await agent.accept_stream())
        await stream.read_head()
        await stream.send(OK.replace(b"OK\r\n", b"OK\r\nTunnelmux-Relay: web\r\n") + b"ok")
        await stream.end()
        assert await visitor.read_exactly(len(OK) + 2) == OK + b"ok"
        await visitor.send(get("/2"))
        stream = Peer(await agent.accept_stream())
        assert (await stream.read_head()).startswith(b"CONNECT web ")
        await nothing_by(mock_clock, proxy.visits, 1.875, "agreeing")
        mock_clock.jump(0.125)
        head = await visitor.read_head()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b"Tunnelmux-Reason: target-timeout\r\n" in head
        await visitor.stream.aclose()


async def test_a_handshake(mock_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("dev1.localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with rig(LIMITS, tls=(tmp_path, trust)) as target, by_hand(mock_clock):
        visits = target.proxy.visits
        await until(visits, "handshake")
        await nothing_by(mock_clock, visits, 1.875, "handshake")
        mock_clock.jump(0.125)
        await until(visits, None)
