"""Another node, with the certificate that the directory has, which asks for more than any needs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
import trio

from support.nodes import Nodes, running_nodes
from support.origin import Origin, serving
from support.redis_server import RedisServer, run_redis
from tunnelmux.config import Address, LimitsConfig
from tunnelmux.errors import SessionError
from tunnelmux.limits import INITIAL_WINDOW, IngressLimits
from tunnelmux.mux import Session
from tunnelmux.proxy.cluster.hops import Hops
from tunnelmux.proxy.cluster.node import hop_limits


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


@pytest.fixture
async def nodes(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    async with running_nodes(
        redis, limits=LimitsConfig(ingress=IngressLimits(max_hops_per_node=2))
    ) as nodes:
        yield nodes


@pytest.fixture
async def web() -> AsyncIterator[Address]:
    async with serving(Origin().handle) as address:
        yield address


async def dial(nodes: Nodes) -> Session:
    """One more connection of node a to node b."""
    hops: Hops = nodes["a"].store.hops  # type: ignore[attr-defined]
    return await hops.dial(hops.membership.nodes["b"])


async def has_stream(session: Session) -> bool:
    """Whether the other end serves this connection."""
    while not session.is_closed:
        try:
            stream = await session.open_stream()
            await stream.send_all(b"GET /odd HTTP/1.1\r\nHost: b\r\n\r\n")
            return b"400" in await stream.receive_some()
        except (SessionError, trio.BrokenResourceError):  # it ends under way
            await trio.sleep(0.01)
    return False


async def test_a_node_gets_so_many_connections_and_no_more(nodes: Nodes, web: Address) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}):
        with trio.fail_after(30), structlog.testing.capture_logs() as logs:
            assert (await nodes.get("a")).status == 200  # by the one connection that there is
            second = await dial(nodes)
            assert await has_stream(second)
            assert not await has_stream(await dial(nodes))
            assert (await nodes.get("a")).status == 200
            [line] = [line for line in logs if line["event"] == "hop refused"]
            assert line["cause"] == (
                "node a has 2 connections to this one already (limits.max_hops_per_node)"
            )
            second.end()
            while not await has_stream(await dial(nodes)):  # noqa: ASYNC110  once that has ended
                await trio.sleep(0.01)


async def test_a_stream_for_another_session_of_the_device_is_refused(
    nodes: Nodes, web: Address
) -> None:
    async with nodes.agent("b", {"web": f"http://{web}"}):
        with trio.fail_after(30):
            assert (await nodes.get("a")).status == 200
            session = await dial(nodes)
            members = nodes["b"].store.membership  # type: ignore[attr-defined]
            generation = members.generation_of("dev1")
            for named, status in ((generation, b"200"), (generation - 1, b"503"), (0, b"503")):
                # Two spellings: the first is read in compiled code, the other one by a task.
                for more in (b"", b"X-Odd: 1\r\n"):
                    stream = await session.open_stream()
                    await stream.send_all(
                        b"CONNECT dev1 HTTP/1.1\r\nHost: dev1\r\n%b"
                        b"Tunnelmux-Generation: %d\r\n\r\n" % (more, named)
                    )
                    answer = bytes(await stream.receive_some())
                    assert answer.startswith(b"HTTP/1.1 " + status), (named, more)
                    stream.reset()


async def test_a_node_that_is_asked_asks_no_third_one(nodes: Nodes, web: Address) -> None:
    """Though it finds the device there in the directory, as the asking node does."""
    await nodes.start("c")
    async with nodes.agent("c", {"web": f"http://{web}"}):
        with trio.fail_after(30):
            assert (await nodes.get("b")).status == 200
            generation = nodes["c"].store.membership.generation_of("dev1")  # type: ignore[attr-defined]
            session = await dial(nodes)
            for asked in (b"GET /v1/devices/dev1", b"CONNECT dev1"):
                stream = await session.open_stream()
                await stream.send_all(
                    b"%b HTTP/1.1\r\nHost: b\r\nTunnelmux-Generation: %d\r\n\r\n"
                    % (asked, generation)
                )
                answer = bytes(await stream.receive_some())
                assert answer.startswith(b"HTTP/1.1 503"), asked
                assert b"device-moved" in answer, asked
                stream.reset()


async def test_strangers_from_many_addresses_do_not_keep_a_node_out(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has begun a handshake, and none has more places than another."""
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    limits = LimitsConfig(ingress=IngressLimits(max_handshakes=4))
    async with running_nodes(redis, limits=limits) as nodes, contextlib.AsyncExitStack() as stack:
        hops: Hops = nodes["a"].store.hops  # type: ignore[attr-defined]
        host, _, port = hops.membership.nodes["b"].address.rpartition(":")
        with trio.fail_after(30):
            for number in range(4):
                stranger = await trio.open_tcp_stream(
                    host, int(port), local_address=f"127.0.2.{number + 1}"
                )
                await stack.enter_async_context(stranger)
                await stranger.send_all(bytes.fromhex("1603010200"))  # of a ClientHello
            doors = nodes["b"].cluster.doors  # type: ignore[union-attr]
            assert doors is not None
            cluster = doors.admission
            while cluster.silent or len(cluster) < 4:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
            assert await has_stream(await dial(nodes))


async def test_a_node_that_comes_and_goes_does_not_fill_the_log(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 3)
    with trio.fail_after(30), structlog.testing.capture_logs() as logs:
        for _ in range(8):
            session = await dial(nodes)
            while not await has_stream(session):  # once that has ended
                session = await dial(nodes)
            session.end()
            while not session.is_closed:  # noqa: ASYNC110
                await trio.sleep(0.01)
    events = [line["event"] for line in logs]
    assert events.count("hop opened") == 3
    assert events.count("hop ended") <= 3
    assert [line["of"] for line in logs if line["event"] == "lines left out"][:1] == ["hop opened"]


async def test_strangers_at_the_door_of_nodes_do_not_fill_the_log(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.observability.repeated._OF_SOURCE", 3)
    hops: Hops = nodes["a"].store.hops  # type: ignore[attr-defined]
    host, _, port = hops.membership.nodes["b"].address.rpartition(":")
    with trio.fail_after(30), structlog.testing.capture_logs() as logs:
        for _ in range(8):
            stranger = await trio.open_tcp_stream(host, int(port))
            await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                while await stranger.receive_some():
                    pass
            await stranger.aclose()
        while not any(line["event"] == "lines left out" for line in logs):  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert await has_stream(await dial(nodes))
    assert [line["event"] for line in logs].count("hop refused") == 3
    [line] = [line for line in logs if line["event"] == "lines left out"]
    assert (line["of"], line["source"]) == ("hop refused", "127.0.0.1")


def test_a_session_between_nodes_takes_all_that_was_granted() -> None:
    """It has the streams of many devices: readers of one that stopped would reset another's."""
    limits = LimitsConfig()
    hop = hop_limits(limits)
    assert hop.max_streams == limits.ingress.max_hop_streams
    assert hop.max_unread_bytes >= hop.max_streams * INITIAL_WINDOW
