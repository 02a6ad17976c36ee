"""Values in Redis that none of our scripts writes: nodes notice them, and get over them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.redis_server import RedisServer, run_redis
from tunnelmux.directory import Beat, Heard, Held, Node
from tunnelmux.directory.redis import RedisDirectory, _shard
from tunnelmux.directory.resp import open_redis
from tunnelmux.errors import DirectoryAway

LAST_ID = "18446744073709551615"  # of either part of a stream's id
FAR = "9223372036854775807"  # the largest that Redis counts to
LIVE = "tunnelmux:live"
INBOX = "tunnelmux:inbox:a|1"
PLACES = _shard("dev1")
PLANTED = f"999999999999999|b|1|{'i' * 40}"

KEYS = {
    **dict.fromkeys(["live", "incarnations", "nodes", "version", "complete", "writes"]),
    **dict.fromkeys(["died", "last", "grace", "inbox:a|1", PLACES.removeprefix("tunnelmux:")]),
}

ODD = {
    **{f"{key} is a list": [("DEL", f"tunnelmux:{key}"), ("RPUSH", f"tunnelmux:{key}", "x")]
       for key in KEYS},
    **{f"{key} is {value[:9]}": [("SET", f"tunnelmux:{key}", value)]
       for key in ("version", "last", "grace") for value in ("odd", "inf", "-1", FAR, "9" * 400)},
    "a lease of nobody": [("ZADD", LIVE, "1", "odd")],
    "a lease without a name": [("ZADD", LIVE, "1", "")],
    "the death of an odd one": [("ZADD", "tunnelmux:died", "1", "odd", "inf", "b|1")],
    "writes are odd": [("HSET", "tunnelmux:writes", "a|1", "odd")],
    "writes are at their end": [("HSET", "tunnelmux:writes", "a|1", FAR)],
    "the inbox is full": [("XADD", INBOX, f"{LAST_ID}-{LAST_ID}", "odd", "message")],
    "a millisecond is full": [("XADD", INBOX, f"99999999999999-{LAST_ID}", "odd", "message")],
    "a message is huge": [("XADD", INBOX, "*", "device", "x" * 20_000_000)],
    "all are superseded": [("XADD", INBOX, "*", "device", "dev1", "generation", "9" * 400)],
    "a generation is the last": [("HSET", PLACES, "dev1", PLANTED)],
    "there are many places": [("HSET", PLACES, "dev1", ";".join(["7|b|1|i"] * 100_000))],
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


class Member:
    """A node with one device, which says what it holds when it is asked for."""

    def __init__(self, directory: RedisDirectory, name: str) -> None:
        self.directory = directory
        self.me = Node(name=name, incarnation="1")
        self.held: list[Held] = []
        self.heard = Heard()
        self.superseded: list[tuple[str, int]] = []
        self.nodes: set[str] = set()

    async def beat(self) -> Beat | None:
        try:
            beat = await self.directory.beat(self.me, self.heard)
            if beat.resync:
                await self.directory.republish(self.held)
        except DirectoryAway:
            return None
        self.heard = beat.heard
        self.superseded += beat.superseded
        if beat.nodes is not None:
            self.nodes = set(beat.nodes)
        return beat

    async def claim(self, instance: str, least: int = 0) -> int:
        claim = await self.directory.claim("dev1", instance, least)
        self.held = [Held("dev1", instance, claim.generation)]
        return claim.generation


@pytest.mark.parametrize("planted", ODD.values(), ids=ODD)
async def test_nodes_get_over_an_odd_value(
    server: RedisServer, planted: list[tuple[str, ...]]
) -> None:
    server.command("FLUSHALL")
    async with open_redis(server.url) as redis:
        a, b = (Member(RedisDirectory(redis, name, "1", timeout=30), name) for name in "ab")
        for member in (a, b, a):
            assert await member.beat() is not None
        before = await a.claim("i1")
        for command in planted:
            server.command(*command)
        for member in (a, b, a, b):  # what can be lost is said again by then
            beat = await member.beat()
        assert beat is not None
        assert not beat.resync
        assert a.nodes == b.nodes == {"a", "b"}

        first = await a.claim("i2", before)
        assert first > before
        assert [place.node for place in await b.directory.find("dev1")] == ["a"]
        second = await b.claim("i3", first)
        assert second > first
        assert [place.node for place in await a.directory.find("dev1")] == ["b"]
        a.superseded.clear()
        a.held = []
        last = await a.beat()
        assert last is not None
        assert ("dev1", first) in a.superseded
        assert not last.resync
        a.superseded.clear()
        assert await a.beat() is not None
        assert a.superseded == []  # heard once
