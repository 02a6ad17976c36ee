"""What is under way over a hop ends with what it came by, at both nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.doors import open_doors
from support.guarded import PROGRAM
from support.redis_server import RedisServer
from support.streams import next_bytes
from support.tenants import TEST
from support.visiting import World, visiting
from support.visits_under_way import WEBSOCKET, begun, is_cut
from tunnelmux.proxy import RunningProxy
from tunnelmux.sessions import LocalHandle

HOST = "web--dev1.localhost"
PATIENCE = 45.0


@pytest.fixture(autouse=True)
def fast_beats(monkeypatch: pytest.MonkeyPatch, redis: RedisServer) -> None:
    monkeypatch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
    redis.command("FLUSHALL")


@asynccontextmanager
async def two_nodes(tmp_path: Path, redis: RedisServer, sessions: int) -> AsyncIterator[World]:
    """Visitors come to a; the agent has a session with b, or with both."""
    options = {"assists": tmp_path, "redis": redis.url, "tcp": "raw", "services": ("web", "raw")}
    if sessions == 1:
        async with visiting(tmp_path, **options) as world:
            yield world
    else:
        async with open_doors("a", "b") as doors, visiting(tmp_path, doors=doors, **options) as w:
            yield w


def streams_at(node: RunningProxy) -> int:
    handle = node.store.own_device("dev1")
    assert isinstance(handle, LocalHandle)
    return handle.session.stream_count


async def under_way(world: World, shown: dict[str, str]) -> list[trio.abc.Stream]:
    """A download by h11, one in the pump, and a WebSocket."""
    by_h11 = await begun(world, "/endless", shown, b"begun", HOST)
    await world.this.warm_up(shown, HOST)
    in_pump = await begun(world, "/endless", shown, b"begun", HOST)
    return [by_h11, in_pump, await begun(world, "/ws", shown | WEBSOCKET, b"\r\n\r\n", HOST)]


async def all_cut(streams: list[trio.abc.Stream]) -> None:
    with trio.fail_after(PATIENCE):
        for stream in streams:
            assert await is_cut(stream)


@pytest.mark.slow
@pytest.mark.parametrize("sessions", [1, 2])
async def test_visits_end_at_both_nodes(tmp_path: Path, redis: RedisServer, sessions: int) -> None:
    """With the lease, with the account, and with the device's token."""
    async with two_nodes(tmp_path, redis, sessions) as world:
        await world.set_rule("web", let_in=["lease"])
        await world.set_rule("raw", let_in=["public"])
        anna, berta, carl = [await world.person(name) for name in ("anna", "berta", "carl")]
        [lease, *_] = [await world.lease(person) for person in (anna, berta, carl)]
        shown = [await world.come_in(person, host=HOST) for person in (anna, berta, carl)]
        of_carl = await under_way(world, shown[2])
        [at_tcp] = world.this.proxy.tcp_addresses
        by_tcp = await trio.open_tcp_stream(at_tcp.host, at_tcp.port)
        await by_tcp.send_all(b"GET /endless HTTP/1.1\r\n\r\n")
        assert (await next_bytes(by_tcp, 4)) == b"HTTP"
        of_berta = await under_way(world, shown[1])
        has_it = world.this.entry if sessions == 1 else world.this.proxy
        before = streams_at(has_it)
        of_anna = await under_way(world, shown[0])

        await world.tenant.leases.end(lease.id, reason="done")
        await all_cut(of_anna)
        with trio.fail_after(PATIENCE):
            while streams_at(has_it) > before:  # noqa: ASYNC110  over the hop, too
                await trio.sleep(0.02)
        await world.registry.installation(TEST).users.set_enabled(berta.user.id, False)
        await all_cut(of_berta)
        with trio.fail_after(PATIENCE):
            while streams_at(has_it) > before - 3:  # noqa: ASYNC110
                await trio.sleep(0.02)
        for fields, status in zip(shown, ({401, 403}, {401, 403}, {200}), strict=True):
            answer = await world.this.ask("/x", PROGRAM | fields, host=HOST)
            assert answer.status in status
        await of_carl[2].send_all(b"still here")
        assert await next_bytes(of_carl[2], 10) == b"still here"

        await world.tenant.credentials.revoke(world.device_id)
        await all_cut([*of_carl, by_tcp])
        with trio.fail_after(PATIENCE):
            for node in (world.this.proxy, world.this.entry):
                while node.store.own_device("dev1") is not None:  # noqa: ASYNC110
                    await trio.sleep(0.02)
