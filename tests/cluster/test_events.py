"""A back end that reads events at one node sees what happens at every node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from support.nodes import PATIENCE, Nodes
from support.redis_server import RedisServer
from tunnelmux.backend import ProxyClient
from tunnelmux.config import Address
from tunnelmux.sessions import SessionEvent

Told = tuple[str, SessionEvent | None]


def caller_of(nodes: Nodes, name: str) -> ProxyClient:
    return ProxyClient(f"http://{nodes[name].internal_address}")


async def take(events: AsyncIterator[Told], count: int) -> list[Told]:
    with trio.fail_after(PATIENCE):
        return [await anext(events) for _ in range(count)]


def kinds(events: list[Told]) -> list[tuple[str, str, str]]:
    return [(e.type, e.device_id, e.proxy_node_id) for _, e in events if e is not None]


@pytest.mark.slow
async def test_a_reader_goes_on_at_another_node_where_it_was(nodes: Nodes, web: Address) -> None:
    target = {"web": f"http://{web}"}
    happened = [
        ("connected", "dev1", "b"),
        ("connected", "dev2", "a"),
        ("lost", "dev2", "a"),
        ("lost", "dev1", "b"),
    ]
    async with (
        caller_of(nodes, "a").events() as at_a,
        caller_of(nodes, "b").events() as at_b,
    ):
        async with nodes.agent("b", target):
            assert kinds(await take(at_a, 1)) == happened[:1]
            async with nodes.agent("a", target, "dev2"):
                await take(at_a, 1)
            seen = await take(at_a, 1)
        seen += await take(at_a, 1)
        assert kinds(seen) == happened[2:]
        all_of_b = await take(at_b, 4)
        assert kinds(all_of_b) == happened
        assert [event_id for event_id, _ in all_of_b[2:]] == [event_id for event_id, _ in seen]
    first, _ = all_of_b[0]
    async with caller_of(nodes, "a").events(first) as again:
        assert kinds(await take(again, 3)) == happened[1:]
    # A node that has just begun knows them too.
    await nodes.start("c")
    async with caller_of(nodes, "c").events(first) as again:
        assert await take(again, 3) == all_of_b[1:]


@pytest.mark.slow
async def test_events_while_redis_is_away(nodes: Nodes, web: Address, redis: RedisServer) -> None:
    """Those of the node that is asked come at once; the others when Redis is back. Readers are told
    that something may be missing."""
    target = {"web": f"http://{web}"}
    async with (
        caller_of(nodes, "a").events() as at_a,
        caller_of(nodes, "b").events() as at_b,
        nodes.agent("b", target),
    ):
        assert kinds(await take(at_a, 1)) == [("connected", "dev1", "b")]
        await take(at_b, 1)
        redis.kill()
        try:
            assert [event for _, event in await take(at_a, 1)] == [None]
            assert [event for _, event in await take(at_b, 1)] == [None]
            own = nodes["b"].store.own_device("dev1")
            assert own is not None
            await own.close()
            assert ("lost", "dev1", "b") in kinds(await take(at_b, 1))
        finally:
            redis.start()
        with trio.fail_after(PATIENCE):
            while ("lost", "dev1", "b") not in kinds(await take(at_a, 1)):
                pass


AT, STREAM = "tunnelmux:events:at", "tunnelmux:events"
ODD: dict[str, list[list[str]]] = {
    "not json": [["HINCRBY", AT, "number", "1"], ["XADD", STREAM, "2-1", "event", "odd"]],
    "more than one call may read": [
        command
        for number in range(2, 22)
        for command in (
            ["HINCRBY", AT, "number", "1"],
            ["XADD", STREAM, f"{number}-1", "event", "x" * 1_000_000],
        )
    ],
    "a higher number than was counted": [["XADD", STREAM, "900-1", "odd", "odd"]],
    "no hash": [["SET", AT, "odd"]],
    "no stream": [["SET", STREAM, "odd"]],
    "no number": [["HSET", AT, "number", "-5"]],
    "the last number": [["HSET", AT, "number", "9" * 400]],
    "no epoch": [["HSET", AT, "epoch", "odd" * 1000]],
}


@pytest.mark.slow
async def test_what_another_program_writes_into_the_stream_harms_no_reader(
    nodes: Nodes, web: Address, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.event_stream._QUIET", 0.1)
    monkeypatch.setattr("tunnelmux.directory.event_stream._RETRY", 0.02)
    async with (
        nodes.agent("b", {"web": f"http://{web}"}),
        caller_of(nodes, "a").events() as at_a,
    ):
        own = nodes["b"].store.own_device("dev1")
        assert own is not None
        for odd, commands in ODD.items():
            redis.command("DEL", AT, STREAM)
            for command in commands:
                redis.command(*command)
            device = odd.replace(" ", "-")
            session = msgspec.structs.replace(own.summary(), device_id=device)
            nodes["b"].events.record("lost", session)
            with trio.fail_after(PATIENCE):
                while ("lost", device, "b") not in kinds(await take(at_a, 1)):
                    pass
