"""The tunnel protocol that tunnelmux stays compatible with: one HTTP/1.1 request on each stream.

The Go relay and the Go agent here were written from that protocol's documents and know nothing of
tunnelmux; ours takes the other end.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest
import trio

from support.origin import Origin, Peer, reply, serving
from support.peer_process import pattern
from support.peers import build_program
from support.proxies import proxy_config, running
from support.visitor import fetch
from tunnelmux.agent import run_agent
from tunnelmux.config import (
    Address,
    AgentConfig,
    Device,
    ProxyConfig,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.proxy import RunningProxy

MIB = 1024 * 1024
TOKEN = "token-of-dev1"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class Program:
    """A Go program: what it prints is its only interface."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._unread = b""

    async def says(self, word: str) -> str:
        """The rest of its next line, which begins with *word*."""
        assert self.process.stdout is not None
        with trio.fail_after(30):
            while b"\n" not in self._unread:
                data = await self.process.stdout.receive_some()
                assert data, f"the program ended before it said {word}"
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        first, _, rest = line.decode().partition(" ")
        assert first == word, line
        return rest


@asynccontextmanager
async def started(name: str, *arguments: str) -> AsyncIterator[Program]:
    command = [*build_program("go", name), *arguments]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        yield Program(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # bounded: a killed process ends
            await process.wait()


async def echo(peer: Peer, head: bytes) -> None:
    """Answers with the body it got, and with the names of the header fields."""
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    lower = {name.lower(): value for name, value in fields.items()}
    size = int(lower.get(b"content-length", b"0"))
    await peer.send(reply(await peer.read_exactly(size)))


async def chunked(peer: Peer, _head: bytes) -> None:
    """A response of unknown length, in pieces."""
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Kind: pieces\r\n\r\n")
    for piece in (b"one ", b"two ", b"three"):
        await peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    await peer.send(b"0\r\n\r\n")


async def upgrade(peer: Peer, _head: bytes) -> None:
    """Switches protocols, and then says everything back in capitals."""
    await peer.send(SWITCHED)
    while data := await peer.stream.receive_some():
        await peer.send(data.upper())
    await peer.end()


async def big(peer: Peer, _head: bytes) -> None:
    await peer.send(reply(pattern(5 * MIB)))


@pytest.fixture
async def web() -> AsyncIterator[Address]:
    """A local web server, which stands behind the agent."""
    origin = Origin()
    origin.pages.update({b"/echo": echo, b"/chunked": chunked, b"/big": big, b"/upgrade": upgrade})
    async with serving(origin.handle) as address:
        yield address


# ------------------------------------------------------------------------- their relay, our agent


def agent_config(relay: int, *services: ServiceConfig) -> AgentConfig:
    return AgentConfig(
        proxy=ProxyEndpoint(url=f"ws://127.0.0.1:{relay}/tunnel/connect", token=Secret(TOKEN)),
        device=Device(name="dev1"),
        services=list(services),
    )


class Relay:
    """Their relay with our agent connected to it."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    async def forward(self, method: str, path: str, body: bytes = b"") -> dict[str, object]:
        """One POST /internal/forward/http, as the relay's back end makes it."""
        wanted = {"session_token": TOKEN, "method": method, "path": path}
        if body:
            wanted["body"] = base64.b64encode(body).decode()
        answer = await fetch(
            Address("127.0.0.1", self.port),
            "/internal/forward/http",
            method="POST",
            body=json.dumps(wanted).encode(),
        )
        result: dict[str, object] = json.loads(answer.body)
        return result


@pytest.fixture
async def relay(nursery: trio.Nursery, web: Address) -> AsyncIterator[Relay]:
    async with started("relay") as program:
        port = int(await program.says("port"))
        service = ServiceConfig(name="web", target=f"http://{web}")
        await nursery.start(run_agent, agent_config(port, service))
        assert await program.says("connected") == TOKEN
        yield Relay(program, port)
        nursery.cancel_scope.cancel()


def content(answer: dict[str, object]) -> bytes:
    assert answer.get("error") is None
    body = answer.get("body", "")
    assert isinstance(body, str)
    return base64.b64decode(body)


@pytest.mark.case(201, "reaches our agent's service", peer="Go relay")
async def test_go_relay_reaches_our_agents_service(relay: Relay) -> None:
    answer = await relay.forward("GET", "/")
    assert (answer["status"], content(answer)) == (200, b"hello\n")
    answer = await relay.forward("GET", "/no-such-page")
    assert (answer["status"], content(answer)) == (404, b"no such page\n")


@pytest.mark.case(202, "sends bodies and reads chunked and large responses", peer="Go relay")
async def test_go_relay_sends_bodies_and_reads_streams(relay: Relay) -> None:
    answer = await relay.forward("POST", "/echo", pattern(700_000))
    assert (answer["status"], content(answer)) == (200, pattern(700_000))
    answer = await relay.forward("GET", "/chunked")
    assert content(answer) == b"one two three"
    assert answer["headers"]["X-Kind"] == ["pieces"]  # type: ignore[index]
    assert content(await relay.forward("GET", "/big")) == pattern(5 * MIB)


@pytest.mark.case(203, "carries 50 requests at once", peer="Go relay")
async def test_go_relay_carries_many_requests_at_once(relay: Relay) -> None:
    async def one(i: int) -> None:
        assert content(await relay.forward("POST", "/echo", pattern(10_000, i))) == pattern(
            10_000, i
        )

    async with trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(one, i)


@pytest.mark.case(204, "gets a 502 when the service is down", peer="Go relay")
async def test_go_relay_is_told_when_the_target_is_down(nursery: trio.Nursery) -> None:
    async with started("relay") as program:
        port = int(await program.says("port"))
        service = ServiceConfig(name="web", target="http://127.0.0.1:1")
        await nursery.start(run_agent, agent_config(port, service))
        await program.says("connected")
        answer = await Relay(program, port).forward("GET", "/")
        assert answer["status"] == 502
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------- our proxy, their agent


@asynccontextmanager
async def their_agent(
    config: ProxyConfig, web: Address
) -> AsyncIterator[tuple[RunningProxy, Program]]:
    async with running(config) as proxy:
        url = f"ws://{proxy.tunnel_address}/tunnel/connect"
        async with started("agent", url, TOKEN, str(web)) as program:
            await program.says("connected")
            assert await proxy.store.wait_for_device("dev1", trio.current_time() + 30) is not None
            yield proxy, program


@pytest.fixture
async def proxy(web: Address) -> AsyncIterator[RunningProxy]:
    async with their_agent(proxy_config(), web) as (made, _):
        yield made


@pytest.mark.case(205, "serves a visitor of our proxy", peer="Go agent")
async def test_visitor_reaches_a_go_agent(proxy: RunningProxy) -> None:
    assert proxy.http_address is not None
    answer = await fetch(proxy.http_address)
    assert (answer.status, answer.body) == (200, b"hello\n")
    answer = await fetch(proxy.http_address, "/no-such-page")
    assert (answer.status, answer.body) == (404, b"no such page\n")


@pytest.mark.case(206, "passes bodies, chunked and large responses", peer="Go agent")
async def test_bodies_pass_through_a_go_agent(proxy: RunningProxy) -> None:
    assert proxy.http_address is not None
    answer = await fetch(proxy.http_address, "/echo", method="POST", body=pattern(700_000))
    assert (answer.status, answer.body) == (200, pattern(700_000))
    answer = await fetch(proxy.http_address, "/chunked")
    assert (answer.body, answer.headers["x-kind"]) == (b"one two three", "pieces")
    assert (await fetch(proxy.http_address, "/big")).body == pattern(5 * MIB)


@pytest.mark.case(207, "serves 50 visitors at once", peer="Go agent")
async def test_many_visitors_of_a_go_agent(proxy: RunningProxy) -> None:
    address = proxy.http_address
    assert address is not None

    async def one(i: int) -> None:
        body = pattern(10_000, i)
        assert (await fetch(address, "/echo", method="POST", body=body)).body == body

    async with trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(one, i)


@pytest.mark.case(208, "serves a visitor who keeps the connection", peer="Go agent")
async def test_a_kept_connection_uses_a_stream_for_each_request(proxy: RunningProxy) -> None:
    """A Go agent answers one request on a stream; a visitor may still keep its connection."""
    address = proxy.http_address
    assert address is not None
    visitor = h11.Connection(h11.CLIENT)
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        for _ in range(3):
            head = [("Host", "127.0.0.1"), ("Tunnelmux-Device", "dev1")]
            request = h11.Request(method="GET", target="/chunked", headers=head)
            await stream.send_all(visitor.send(request) or b"")
            await stream.send_all(visitor.send(h11.EndOfMessage()) or b"")
            body = b""
            with trio.fail_after(20):
                while not isinstance(event := visitor.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        visitor.receive_data(await stream.receive_some())
                    elif isinstance(event, h11.Data):
                        body += event.data
            assert body == b"one two three"
            visitor.start_next_cycle()


@pytest.mark.case(209, "passes an upgrade", peer="Go agent")
async def test_an_upgrade_passes_through_a_go_agent(proxy: RunningProxy) -> None:
    address = proxy.http_address
    assert address is not None
    with trio.fail_after(30):
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            visitor = Peer(stream)
            await visitor.send(
                b"GET /upgrade HTTP/1.1\r\nHost: 127.0.0.1\r\nTunnelmux-Device: dev1\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            assert (await visitor.read_head()).startswith(b"HTTP/1.1 101 ")
            for word in (b"one", b"two"):
                await visitor.send(word)
                assert await visitor.read_exactly(3) == word.upper()


@pytest.mark.case(210, "notices the end of our proxy", peer="Go agent")
async def test_a_go_agent_notices_the_end_of_our_proxy(web: Address) -> None:
    async with their_agent(proxy_config(), web) as (proxy, program):
        await proxy.drain(0.1)
        await program.says("gone")
