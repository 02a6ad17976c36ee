"""One node loses its way to Redis, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from support.http_rig import Peer
from support.nodes import PATIENCE, Nodes, running_nodes
from support.origin import Origin, reply, serving
from support.redis_server import RedisServer
from tunnelmux.relay import abort, relay

LEASE = 0.6


class Way:
    """To Redis; it can be cut."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._scopes: set[trio.CancelScope] = set()
        self.is_cut = False

    async def lead(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if not self.is_cut:
                await relay(stream, await trio.open_unix_socket(self._redis.socket))
        self._scopes.discard(scope)
        await abort(stream)

    def cut(self) -> None:
        self.is_cut = True
        for scope in self._scopes:
            scope.cancel()


@asynccontextmanager
async def cluster(redis: RedisServer, way: Way) -> AsyncIterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "membership.BEAT_INTERVAL": 0.1,
            "membership.LEASE": LEASE,
            "redis.LEASE": LEASE,
        }.items():
            patch.setattr(f"tunnelmux.directory.{name}", value)
        patch.setattr("tunnelmux.proxy.cluster.hops._BELIEVED", 0.1)
        async with (
            serving(way.lead) as address,
            running_nodes(redis, ("a", "b", "c"), redis_urls={"b": f"redis://{address}"}) as nodes,
        ):
            yield nodes


def named(name: str) -> Origin:
    async def page(peer: Peer, _head: bytes) -> None:
        await peer.send(reply(name.encode()))

    origin = Origin()
    origin.pages[b"/"] = page
    return origin


async def gone(nodes: Nodes, name: str) -> None:
    """Return when the others count the node as dead. By then it does not count its sessions as the
    newest any more."""
    membership = nodes[name].store.membership  # type: ignore[attr-defined]
    with trio.fail_after(PATIENCE):
        while any(name in nodes.known_to(other) for other in nodes.by_name if other != name):  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert membership.believes_until <= trio.current_time()


@pytest.mark.slow
async def test_devices_of_a_node_without_redis_are_reached_until_they_are_elsewhere(
    redis: RedisServer,
) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    way = Way(redis)
    async with (
        serving(named("first").handle) as first,
        serving(named("second").handle) as second,
        serving(echo) as ssh,
        cluster(redis, way) as nodes,
        nodes.agent("b", {"web": f"http://{first}", "ssh": f"tcp://{ssh}"}),
    ):
        for name in ("a", "c"):
            assert (await nodes.get(name)).body == b"first"
        [address] = nodes["a"].tcp_addresses
        async with await trio.open_tcp_stream(address.host, address.port) as visitor:
            await visitor.send_all(b"before")
            assert await Peer(visitor).read_exactly(6) == b"before"
            own = nodes["b"].store.own_device("dev1")
            assert own is not None
            way.cut()
            with trio.move_on_after(3 * LEASE):
                while True:
                    for name in ("a", "b", "c"):
                        answer = await nodes.get(name)
                        assert (answer.status, answer.body) == (200, b"first")
            await gone(nodes, "b")
            assert (await nodes.get("a")).body == b"first"
            await visitor.send_all(b"goes on")
            assert await Peer(visitor).read_exactly(7) == b"goes on"

        # Another agent with the token connects where the directory is reached.
        async with nodes.agent("a", {"web": f"http://{second}"}):
            assert (await nodes.get("a")).body == b"second"
            with trio.fail_after(PATIENCE):
                while (await nodes.get("c")).body != b"second":
                    pass
            assert not own.is_closed
            way.is_cut = False
            with trio.fail_after(PATIENCE):
                while not own.is_closed:  # noqa: ASYNC110  the directory tells with a beat
                    await trio.sleep(0.01)
            assert "replaced by a new connection" in own.end_reason
            for name in ("a", "b", "c"):
                assert (await nodes.get(name)).body == b"second"
