"""SIGTERM lets what runs finish and takes nothing new; SIGHUP changes what is served, live."""

from __future__ import annotations

import hashlib
import signal

import pytest
import trio

from support.http_rig import Peer
from support.origin import Origin, numbered_blocks, serving
from support.proxies import free_port
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes

SIZE = 4 << 20
REQUEST = b"GET %s HTTP/1.1\r\nHost: dev1.localhost\r\n\r\n"


class SlowDownload:
    """A page whose second half waits for `release`."""

    def __init__(self, origin: Origin) -> None:
        self.release = trio.Event()
        self.body = b"".join(numbered_blocks(SIZE))
        origin.pages[b"/slow"] = self._serve

    async def _serve(self, peer: Peer, _head: bytes) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        await peer.send(self.body[: SIZE // 2])
        await self.release.wait()
        await peer.send(self.body[SIZE // 2 :])

    async def begin(self, tunnel: Tunnel) -> Peer:
        """A visitor that has read the first half of it."""
        visitor = Peer(await tunnel.visit())
        await visitor.send(REQUEST % b"/slow")
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 ")
        first = await visitor.read_exactly(SIZE // 2)
        assert first == self.body[: SIZE // 2]
        return visitor

    async def finish(self, visitor: Peer) -> None:
        """See that the other half comes, and is right."""
        self.release.set()
        rest = await visitor.read_exactly(SIZE // 2)
        wanted = hashlib.sha256(self.body).digest()
        assert hashlib.sha256(self.body[: SIZE // 2] + rest).digest() == wanted


@pytest.fixture
async def download(origin: Origin) -> SlowDownload:
    return SlowDownload(origin)


async def test_proxy_lets_a_download_finish_and_takes_nothing_new(
    tunnel: Tunnel, web: Address, download: SlowDownload
) -> None:
    await tunnel.start_proxy(more="[drain]\ngrace = 20.0")
    agent = await tunnel.start_agent({"web": f"http://{web}"})
    await tunnel.still_works()
    with trio.fail_after(30):
        visitor = await download.begin(tunnel)
        idle = Peer(await tunnel.visit())
        await idle.send(REQUEST % b"/")
        assert (await idle.read_until(b"hello\n")).startswith(b"HTTP/1.1 200 ")
        tunnel.proxy.send_signal(signal.SIGTERM)
        await tunnel.proxy.logged("stopping")
        # A connection that waits for its next request is closed in order, so that a client knows
        # its request was never begun; and nobody listens any more.
        assert await idle.read_all() == b""
        await idle.stream.aclose()
        for address in (tunnel.at_http, tunnel.at_tunnel):
            with pytest.raises(OSError, match="all attempts to connect"):
                await tunnel.visit(address)
        await download.finish(visitor)
        assert await visitor.read_all() == b""
        await visitor.stream.aclose()
        assert await tunnel.proxy.wait() == 0
        drained = await tunnel.proxy.logged("drained")
        # The download's, and that of the idle connection if the pump carried it.
        assert drained["streams"] in {1, 2}
        assert drained["cut"] == 0
        # The agent is not refused: it waits for the proxy to come back.
        await agent.logged("not connected")


async def test_proxy_cuts_what_outlasts_its_grace_and_never_as_if_it_were_whole(
    tunnel: Tunnel, web: Address, download: SlowDownload
) -> None:
    await tunnel.start_proxy(more="[drain]\ngrace = 0.5")
    await tunnel.start_agent({"web": f"http://{web}"})
    with trio.fail_after(30):
        visitor = await download.begin(tunnel)
        since = trio.current_time()
        tunnel.proxy.send_signal(signal.SIGTERM)
        with pytest.raises(trio.BrokenResourceError):
            await visitor.read_all()
        assert await tunnel.proxy.wait() == 0
        assert 0.5 < trio.current_time() - since < 15
        drained = await tunnel.proxy.logged("drained")
        assert (drained["streams"], drained["cut"]) == (1, 1)
    await visitor.stream.aclose()


async def test_second_sigterm_ends_at_once_with_status_1(
    tunnel: Tunnel, web: Address, download: SlowDownload
) -> None:
    await tunnel.start_proxy(more="[drain]\ngrace = 60.0")
    await tunnel.start_agent({"web": f"http://{web}"})
    with trio.fail_after(30):
        visitor = await download.begin(tunnel)
        tunnel.proxy.send_signal(signal.SIGTERM)
        await tunnel.proxy.logged("stopping")
        tunnel.proxy.send_signal(signal.SIGTERM)
        assert await tunnel.proxy.wait() == 1
    await visitor.stream.aclose()


async def test_agent_lets_a_download_finish_and_takes_nothing_new(
    tunnel: Tunnel, web: Address, download: SlowDownload
) -> None:
    await tunnel.start_proxy()
    agent = await tunnel.start_agent({"web": f"http://{web}"}, more="[drain]\ngrace = 20.0")
    with trio.fail_after(30):
        visitor = await download.begin(tunnel)
        agent.send_signal(signal.SIGTERM)
        await agent.logged("draining", streams=1)
        answer = await tunnel.fetch()
        assert (answer.status, answer.reason) == (503, "device-draining")
        assert "retry-after" in answer.headers
        await download.finish(visitor)
        await visitor.stream.aclose()
        assert await agent.wait() == 0
        await tunnel.proxy.logged("session ended", level="info", device="dev1")


async def test_sighup_changes_devices_and_ports_and_drops_nothing_that_runs(
    tunnel: Tunnel, web: Address, origin: Origin, download: SlowDownload
) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    ports = [free_port() for _ in range(2)]
    first, second = (f"127.0.0.1:{port}" for port in ports)
    async with serving(echo) as target:
        services = {"web": f"http://{web}", "echo": f"tcp://{target}"}
        await tunnel.start_proxy(devices=["dev1"], tcp=[(first, "dev1", "echo")])
        agent = await tunnel.start_agent(services)
        with trio.fail_after(30):
            loading = await download.begin(tunnel)
            visitor = Peer(await tunnel.visit(await tunnel.at_tcp()))
            await visitor.send(b"before")
            assert await visitor.read_exactly(6) == b"before"

            since = len(tunnel.proxy.events)
            configuration = tunnel.proxy_file(
                devices=["dev1", "dev2"],
                tcp=[(second, "dev2", "echo")],
            )
            tunnel.daemons.write(tunnel.daemons.file("proxy-1"), configuration)
            tunnel.proxy.send_signal(signal.SIGHUP)
            await tunnel.proxy.logged("configuration reloaded", since=since)
            assert await tunnel.proxy.listening("ingress.tcp[0].listen", since=since) == Address(
                "127.0.0.1", ports[1]
            )
            await tunnel.proxy.logged("no longer listening", since=since, address=first)
            with pytest.raises(OSError, match="all attempts to connect"):
                await tunnel.visit(Address("127.0.0.1", ports[0]))

            # The new device and the new port work …
            await tunnel.start_agent(services, device="dev2")
            newcomer = Peer(await tunnel.visit(Address("127.0.0.1", ports[1])))
            await newcomer.send(b"new")
            assert await newcomer.read_exactly(3) == b"new"
            await tunnel.still_works("dev2")
            # … and the old session, the stream of the port that is gone, and the download go on.
            await visitor.send(b"after")
            assert await visitor.read_exactly(5) == b"after"
            await download.finish(loading)
            await tunnel.still_works("dev1")
        for daemon in (tunnel.proxy, agent):
            assert "session ended" not in [line["event"] for line in daemon.events]
        for peer in (visitor, newcomer, loading):
            await peer.stream.aclose()


async def test_sighup_with_a_bad_file_is_one_line_and_changes_nothing(
    tunnel: Tunnel, web: Address
) -> None:
    await tunnel.start_proxy()
    await tunnel.start_agent({"web": f"http://{web}"})
    file = tunnel.daemons.file("proxy-1")
    tunnel.daemons.write(file, tunnel.proxy_file() + "[ingres.http]\n")
    tunnel.proxy.send_signal(signal.SIGHUP)
    line = await tunnel.proxy.logged("configuration not reloaded; the one before stays")
    assert line["error"] == f'{file}: ingres: is not a known key: did you mean "ingress"?'
    await tunnel.still_works()
