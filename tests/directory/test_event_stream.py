"""The stream of all nodes' events when Redis loses some, and when a reader is too slow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.redis_server import RedisServer, run_redis
from tunnelmux.directory import Heard, Held, Node
from tunnelmux.directory.event_stream import EventStream
from tunnelmux.directory.redis import RedisDirectory
from tunnelmux.directory.resp import open_redis

PATIENCE = 30.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


class Reader:
    """One node: what it was told, as `("epoch", number)` and `(number, text)`."""

    def __init__(self, history: int) -> None:
        self.told: list[tuple[object, object]] = []
        self.stream = EventStream(history, self._restart, self._take)

    def _restart(self, epoch: str, number: int) -> None:
        self.told.append((epoch, number))

    def _take(self, number: int, text: str) -> None:
        self.told.append((number, text))

    async def has(self, text: str) -> int:
        """The event's number, once it was told."""
        with trio.fail_after(PATIENCE):
            while True:
                for number, found in self.told:
                    if found == text:
                        assert isinstance(number, int)
                        return number
                await trio.sleep(0.01)

    @property
    def restarts(self) -> list[tuple[object, object]]:
        return [one for one in self.told if isinstance(one[0], str)]


@asynccontextmanager
async def node(server: RedisServer, history: int = 10) -> AsyncIterator[Reader]:
    reader = Reader(history)
    async with open_redis(server.url) as redis, trio.open_nursery() as nursery:
        await nursery.start(reader.stream.run, redis)
        yield reader
        nursery.cancel_scope.cancel()


async def test_a_replica_that_lacked_events_begins_another_epoch(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelmux.directory.event_stream._QUIET", 0.1)  # no connection breaks
    async with node(server) as one, node(server) as other:
        for text in ("first", "second", "third"):
            one.stream.publish(text)
        for reader in (one, other):
            await reader.has("third")
            assert len(reader.restarts) == 1
        # What a replica has that was one event behind.
        server.command("XDEL", "tunnelmux:events", "3-1")
        server.command("HSET", "tunnelmux:events:at", "number", "2", "run", "that of the primary")
        server.command("XSETID", "tunnelmux:events", "2-1")
        other.stream.publish("other third")
        for reader in (one, other):
            assert await reader.has("other third") == 3
            (before, _), (after, _) = reader.restarts
            assert before != after
        assert one.restarts[-1] == other.restarts[-1]


async def test_what_is_not_kept_any_more_is_a_gap(server: RedisServer) -> None:
    async with node(server) as one:
        for number in range(1, 6):
            one.stream.publish(f"event {number}")
        await one.has("event 5")
    server.command("XTRIM", "tunnelmux:events", "MAXLEN", "2")
    async with node(server) as late:
        assert await late.has("event 5") == 5
        [(epoch, number)] = late.restarts
        assert number == 3
        assert late.told[1:] == [(4, "event 4"), (5, "event 5")]
        # It reads on behind what was dropped meanwhile.
        server.command("HINCRBY", "tunnelmux:events:at", "number", "4")
        late.stream.publish("event 10")
        assert await late.has("event 10") == 10
        assert late.restarts[1:] == [(epoch, 9)]


async def test_no_more_waits_for_redis_than_is_kept(server: RedisServer) -> None:
    async with node(server, history=3) as one:
        server.kill()
        with trio.fail_after(PATIENCE):
            while len(one.restarts) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        for number in range(1, 8):
            one.stream.publish(f"event {number}")
        assert one.told[-1] == (7, "event 7")
        server.start()
        async with node(server) as other:
            await other.has("event 7")
            assert [text for _, text in other.told[1:]] == ["event 5", "event 6", "event 7"]


@pytest.mark.slow
async def test_readers_follow_when_more_devices_are_lost_than_events_are_kept(
    server: RedisServer,
) -> None:
    devices, history = 3000, 1024
    held = [Held(f"dev{number}", "i1", 1 + number) for number in range(devices)]
    async with node(server, history) as reader, open_redis(server.url) as redis:
        dead, living = (
            RedisDirectory(redis, name, "1", timeout=30, event_history=history) for name in "ab"
        )
        await dead.beat(Node(name="a", incarnation="1"), Heard())
        await dead.republish(held)
        server.command("ZADD", "tunnelmux:live", "1", "a|1")
        await living.beat(Node(name="b", incarnation="1"), Heard())
        with trio.fail_after(PATIENCE):
            assert (await living.sweep("{device}")).lost == devices
            while len(reader.told) < devices + 1:  # noqa: ASYNC110  no event says so
                await trio.sleep(0.01)
        assert len(reader.restarts) == 1, "a gap"
        assert {text for _, text in reader.told[1:]} == {one.device for one in held}


async def test_the_last_events_of_a_node_that_ends_are_told(server: RedisServer) -> None:
    async with node(server) as other:
        async with node(server) as one:
            one.stream.publish("goodbye")
        await other.has("goodbye")
