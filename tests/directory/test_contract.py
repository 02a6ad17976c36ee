"""What every directory keeps to, whichever it is."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from support.redis_server import RedisServer, run_redis
from tunnelmux.directory import (
    BEAT_INTERVAL,
    LEASE,
    Beat,
    Directory,
    Heard,
    Held,
    LocalDirectory,
    Node,
    PlaceBook,
    Swept,
)
from tunnelmux.directory.redis import RedisDirectory
from tunnelmux.directory.resp import Redis, Script, open_redis
from tunnelmux.directory.workers import DirectoryDesk, ExpectedDevices
from tunnelmux.errors import NodeNameTaken
from tunnelmux.proxy.workers.link import Link, Reply
from tunnelmux.proxy.workers.worker import Worker

KINDS = ["local", "workers", "redis"]


class Member:
    """One node of a cluster under test, and how it sees the directory."""

    def __init__(self, directory: Directory, me: Node) -> None:
        self.directory = directory
        self.me = me
        self.heard = Heard()
        self.nodes: dict[str, Node] = {}

    async def beat(self) -> Beat:
        beat = await self.directory.beat(self.me, self.heard)
        self.heard = beat.heard
        if beat.nodes is not None:
            self.nodes = beat.nodes
        return beat

    async def join(self) -> None:
        assert (await self.beat()).resync
        await self.directory.republish([])


class Cluster:
    """Makes members of one directory, and lets its time pass."""

    def __init__(
        self,
        make: Callable[[str, str], Directory],
        let_pass: Callable[[float], None],
        options: dict[str, int],
        told: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._make = make
        self.let_pass = let_pass
        self.told = told
        """The events that the directory told all nodes."""
        self.options = options

    async def join(self, name: str, incarnation: str = "1") -> Member:
        me = Node(name=name, incarnation=incarnation, address=f"{name}.example:3802")
        member = Member(self._make(name, incarnation), me)
        await member.join()
        return member


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with run_redis() as server:
        yield server


@pytest.fixture
def cluster_of() -> dict[str, int]:
    """The options of the directory."""
    return {}


@pytest.fixture(params=KINDS)
async def cluster(
    request: pytest.FixtureRequest, cluster_of: dict[str, int]
) -> AsyncIterator[Cluster]:
    if request.param in ("local", "workers"):
        now = time.time()

        def clock() -> float:
            return now

        def pass_locally(seconds: float) -> None:
            nonlocal now
            now += seconds

        told: list[str] = []

        async def told_locally() -> list[str]:
            return list(told)

        numbers: dict[str, Any] = dict(cluster_of)  # only those of places
        book = PlaceBook(clock, on_lost=told.append, **numbers)
        if request.param == "local":
            make = partial(LocalDirectory, book)
            yield Cluster(make, pass_locally, cluster_of, told_locally)
            return
        async with trio.open_nursery() as nursery:
            make_worker = partial(worker_of, nursery, book)
            yield Cluster(make_worker, pass_locally, cluster_of, told_locally)
            nursery.cancel_scope.cancel()
        return
    server = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    async with open_redis(server.url) as redis:
        clock_of_redis = RedisClock(server)
        yield Cluster(
            lambda name, start: RedisDirectory(redis, name, start, timeout=30, **cluster_of),
            clock_of_redis.let_pass,
            cluster_of,
            partial(events_in, redis),
        )


async def events_in(redis: Redis) -> list[str]:
    """The texts in the stream of events, the oldest first."""
    read = Script("return redis.call('XRANGE', 'tunnelmux:events', '-', '+')")
    return [fields[1] for _, fields in await redis.run(read, [], [])]


def worker_of(nursery: trio.Nursery, book: PlaceBook, name: str, start: str) -> Directory:
    """A worker's directory, with its parent at the other end of a Unix socket."""
    desk = DirectoryDesk(book, name, start, ExpectedDevices())

    class Parent:
        async def answer(self, what: str, body: bytes) -> Reply:
            assert what == "directory"
            return Reply(await desk.answer(body))

        def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:
            raise AssertionError(what, body, descriptors)

    ours, theirs = socket.socketpair()
    nursery.start_soon(Link(ours, Parent()).run)
    worker = Worker(theirs, name, start)
    nursery.start_soon(worker.run)
    directory = worker.directory
    directory._timeout = 30  # a busy machine is no parent that hangs
    return directory


class RedisClock:
    """Moves what Redis has noted of its own time into the past: its clock is the machine's."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def let_pass(self, seconds: float) -> None:
        moved = f"""
        local back = {int(seconds * 1000)}
        local live = redis.call('ZRANGE', 'tunnelmux:live', 0, -1, 'WITHSCORES')
        for i = 1, #live, 2 do redis.call('ZADD', 'tunnelmux:live', live[i + 1] - back, live[i]) end
        local died = redis.call('ZRANGE', 'tunnelmux:died', 0, -1, 'WITHSCORES')
        for i = 1, #died, 2 do redis.call('ZADD', 'tunnelmux:died', died[i + 1] - back, died[i]) end
        for _, key in ipairs({{'tunnelmux:last', 'tunnelmux:grace'}}) do
          local at = redis.call('GET', key)
          if at then redis.call('SET', key, string.format('%.0f', at - back)) end
        end
        return 1
        """
        self._server.command("EVAL", moved, "0")


async def beats(cluster: Cluster, seconds: float, *members: Member) -> None:
    """Let time pass while only these nodes live."""
    for _ in range(int(seconds / BEAT_INTERVAL)):
        cluster.let_pass(BEAT_INTERVAL)
        for member in members:
            await member.beat()


async def test_a_claim_is_found_by_all(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    assert await b.directory.find("dev1") == []
    claim = await a.directory.claim("dev1", "i1")
    assert claim.superseded == []
    [place] = await b.directory.find("dev1")
    assert (place.node, place.incarnation, place.instance) == ("a", "1", "i1")
    assert place.generation == claim.generation


async def test_two_sessions_of_one_agent_stand_beside_each_other(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    one = await a.directory.claim("dev1", "i1")
    two = await b.directory.claim("dev1", "i1")
    assert two.generation > one.generation
    assert two.superseded == []
    assert [place.node for place in await a.directory.find("dev1")] == ["b", "a"]
    assert (await a.beat()).superseded == []


async def test_a_restarted_agent_supersedes_all_its_places_at_once(cluster: Cluster) -> None:
    a, b, c = [await cluster.join(name) for name in "abc"]
    one = await a.directory.claim("dev1", "i1")
    two = await b.directory.claim("dev1", "i1")
    new = await c.directory.claim("dev1", "i2")
    assert {place.node for place in new.superseded} == {"a", "b"}
    assert [place.node for place in await a.directory.find("dev1")] == ["c"]
    assert (await a.beat()).superseded == [("dev1", one.generation)]
    assert (await b.beat()).superseded == [("dev1", two.generation)]
    # They were heard, and are not said again.
    assert (await a.beat()).superseded == []


async def test_what_was_not_heard_is_said_again(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    one = await a.directory.claim("dev1", "i1")
    await b.directory.claim("dev1", "i2")
    lost = await a.directory.beat(a.me, a.heard)
    again = await a.directory.beat(a.me, a.heard)
    assert lost.superseded == again.superseded == [("dev1", one.generation)]


async def test_a_late_goodbye_takes_nothing_newer_away(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    old = await a.directory.claim("dev1", "i1")
    new = await a.directory.claim("dev1", "i1")
    assert [place.generation for place in new.superseded] == [old.generation]
    assert not await a.directory.release("dev1", old.generation)
    assert not await b.directory.release("dev1", new.generation)
    assert [p.generation for p in await b.directory.find("dev1")] == [new.generation]
    assert await a.directory.release("dev1", new.generation)
    assert await b.directory.find("dev1") == []


async def test_a_generation_is_higher_than_what_the_node_knows(cluster: Cluster) -> None:
    a = await cluster.join("a")
    assert (await a.directory.claim("dev1", "i1", least=10**14)).generation == 10**14 + 1


async def test_a_node_that_is_silent_for_a_lease_is_dead(cluster: Cluster) -> None:
    a, b, c = [await cluster.join(name) for name in "abc"]
    await a.directory.claim("dev1", "i1")
    await b.beat()
    assert set(b.nodes) == {"a", "b", "c"}
    await beats(cluster, LEASE - BEAT_INTERVAL, b, c)
    assert [place.node for place in await b.directory.find("dev1")] == ["a"]
    await beats(cluster, BEAT_INTERVAL, b, c)
    assert await b.directory.find("dev1") == []
    await c.beat()
    assert set(b.nodes) == set(c.nodes) == {"b", "c"}
    assert await b.directory.sweep() == Swept(1)
    assert await b.directory.sweep() == Swept(0)
    assert await cluster.told() == []  # nothing was to be told


async def test_a_node_that_was_given_up_says_again_what_it_holds(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    one = await a.directory.claim("dev1", "i1")
    two = await a.directory.claim("dev2", "i2")
    await beats(cluster, LEASE, b)
    newer = await b.directory.claim("dev2", "i3")
    assert (await a.beat()).resync
    assert (await a.beat()).resync  # until it has
    held = [Held("dev1", "i1", one.generation), Held("dev2", "i2", two.generation)]
    await a.directory.republish(held)
    for _ in range(2):  # until it has said that it heard
        beat = await a.directory.beat(a.me, a.heard)
        assert (beat.resync, beat.superseded) == (False, [("dev2", two.generation)])
    assert [p.generation for p in await b.directory.find("dev1")] == [one.generation]
    assert [p.generation for p in await b.directory.find("dev2")] == [newer.generation]


async def test_a_node_that_leaves_is_not_waited_for(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await a.directory.claim("dev1", "i1")
    await a.directory.leave()
    assert await b.directory.find("dev1") == []
    await b.beat()
    assert set(b.nodes) == {"b"}


async def test_a_restarted_node_takes_the_place_of_the_one_before(cluster: Cluster) -> None:
    before, b = await cluster.join("a", "1"), await cluster.join("b")
    await before.directory.claim("dev1", "i1")
    after = await cluster.join("a", "2")
    assert await b.directory.find("dev1") == []
    await b.beat()
    assert b.nodes["a"] == after.me
    with pytest.raises(NodeNameTaken, match=r'another process .* node "a" .*: give each node'):
        await before.beat()


async def test_nodes_are_told_once_and_again_when_they_change(cluster: Cluster) -> None:
    a = await cluster.join("a")
    assert (await a.beat()).nodes is None
    b = await cluster.join("b")
    assert (await a.beat()).nodes == {"a": a.me, "b": b.me}
    assert (await a.beat()).nodes is None


@pytest.mark.parametrize("cluster_of", [{}, {"most_places": 2}], ids=["four", "two"])
async def test_a_device_keeps_so_many_places_and_no_more(cluster: Cluster) -> None:
    most = cluster.options.get("most_places", 4)
    members = [await cluster.join(name) for name in "abcde"]
    claims = [await member.directory.claim("dev1", "i1") for member in members]
    found = await members[0].directory.find("dev1")
    assert [place.node for place in found] == list("edcb")[:most]
    assert (await members[0].beat()).superseded == [("dev1", claims[0].generation)]
    assert (await members[4].beat()).superseded == []


async def test_a_node_is_found_as_it_describes_itself(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    url = "wss://a.example/tunnel/connect"
    a.me = msgspec.structs.replace(a.me, agent_url=url, domain="rack-1")
    await a.beat()
    assert (await b.beat()).nodes == {"a": a.me, "b": b.me}


async def test_one_of_two_sessions_ends_and_the_other_stays(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    one = await a.directory.claim("dev1", "i1")
    two = await b.directory.claim("dev1", "i1")
    assert await b.directory.release("dev1", two.generation)
    assert [place.node for place in await b.directory.find("dev1")] == ["a"]
    three = await b.directory.claim("dev1", "i1", least=two.generation)
    assert [p.generation for p in await a.directory.find("dev1")] == [
        three.generation,
        one.generation,
    ]
    await beats(cluster, LEASE, a)  # b is dead: what it had is not found, the other place is
    assert [place.node for place in await a.directory.find("dev1")] == ["a"]
    assert (await a.beat()).superseded == []


async def test_many_sessions_are_said_again_in_one_call(cluster: Cluster) -> None:
    a = await cluster.join("a")
    held = [Held(f"dev{number}", f"i{number}", 1000 + number) for number in range(1200)]
    with trio.fail_after(30):
        await a.directory.republish(held)
    assert (await a.beat()).superseded == []
    for number in (0, 599, 1199):
        [place] = await a.directory.find(f"dev{number}")
        assert (place.generation, place.instance) == (1000 + number, f"i{number}")


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_jumps_loses_no_living_node_and_keeps_no_dead_one(
    cluster: Cluster, hours: int
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    before = await b.directory.claim("dev1", "i1")
    cluster.let_pass(hours * 3600)
    await a.beat()
    await b.beat()
    [place] = await a.directory.find("dev1")
    assert place.generation == before.generation, "both live, though one was heard late"
    cluster.let_pass(hours * 3600)
    await beats(cluster, 3 * LEASE, a)
    assert await a.directory.find("dev1") == [], "b was not heard any more"
    after = await a.directory.claim("dev1", "i2", before.generation)
    assert after.generation > before.generation


LOST = '{"lost":"{device}","of":"{node}","since":{seconds},"odd":"{}"}'
"""What a sweep is to tell."""


def lost(device: str, node: str, seconds: float = LEASE) -> str:
    return f'{{"lost":"{device}","of":"{node}","since":{seconds:.0f},"odd":"{{}}"}}'


async def test_devices_of_a_node_that_died_are_told_lost_once(cluster: Cluster) -> None:
    a, b, c = [await cluster.join(name) for name in "abc"]
    await a.directory.claim("dev1", "i1")
    await a.directory.claim("dev2", "i2")
    await b.directory.claim("dev3", "i3")
    await beats(cluster, LEASE, b, c)
    assert await b.directory.sweep(LOST) == Swept(2, 2)
    assert await c.directory.sweep(LOST) == Swept(0)
    assert sorted(await cluster.told()) == [lost("dev1", "a"), lost("dev2", "a")]


async def test_several_nodes_that_sweep_at_once_tell_each_device_lost_once(
    cluster: Cluster,
) -> None:
    members = [await cluster.join(name) for name in "abcd"]
    a, *others = members
    devices = [f"dev{number}" for number in range(40)]
    for device in devices:
        await a.directory.claim(device, "i1")
    await beats(cluster, LEASE, *others)
    swept = []

    async def sweep(member: Member) -> None:
        swept.append(await member.directory.sweep(LOST))

    async with trio.open_nursery() as nursery:
        for member in others:
            nursery.start_soon(sweep, member)
    assert sum(one.lost for one in swept) == len(devices)
    assert sorted(await cluster.told()) == sorted(lost(device, "a") for device in devices)


async def test_a_device_that_is_at_another_node_too_is_not_lost(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await a.directory.claim("dev1", "i1")
    await b.directory.claim("dev1", "i1")
    await beats(cluster, LEASE, b)
    assert await b.directory.sweep(LOST) == Swept(1)
    assert await cluster.told() == []


@pytest.mark.parametrize("instance", ["i1", "i2"], ids=["same agent", "another agent"])
async def test_a_device_that_came_back_before_the_sweep_is_not_lost(
    cluster: Cluster, instance: str
) -> None:
    a, b, c = [await cluster.join(name) for name in "abc"]
    await a.directory.claim("dev1", "i1")
    await beats(cluster, LEASE, b, c)
    back = await b.directory.claim("dev1", instance)
    assert await b.directory.release("dev1", back.generation)  # which `b` tells itself
    assert await c.directory.sweep(LOST) == Swept(0)
    assert await cluster.told() == []


async def test_devices_of_a_node_that_left_are_told_by_itself(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await a.directory.claim("dev1", "i1")
    await a.directory.leave()
    assert (await b.beat()).died == []
    cluster.let_pass(LEASE)
    assert await b.directory.sweep(LOST) == Swept(1)
    assert await cluster.told() == []


async def test_who_died_is_told_with_the_nodes(cluster: Cluster) -> None:
    await cluster.join("a")
    b = await cluster.join("b")
    await beats(cluster, LEASE - BEAT_INTERVAL, b)
    cluster.let_pass(BEAT_INTERVAL)
    beat = await b.beat()
    assert set(beat.nodes or ()) == {"b"}
    assert [(one.node, one.incarnation) for one in beat.died] == [("a", "1")]
    await beats(cluster, 60, b)
    c = await cluster.join("c")
    assert (await c.directory.beat(c.me, Heard())).died == []  # it is long ago


async def test_a_node_that_is_killed_and_started_at_once_loses_its_devices(
    cluster: Cluster,
) -> None:
    """Not at once: the process before may live, and tell of its sessions itself."""
    before, b = await cluster.join("a", "1"), await cluster.join("b")
    await before.directory.claim("dev1", "i1")
    cluster.let_pass(BEAT_INTERVAL)
    after = await cluster.join("a", "2")
    assert await b.directory.sweep(LOST) == Swept(0, is_done=False)
    await beats(cluster, LEASE, b, after)
    assert await b.directory.sweep(LOST) == Swept(1, 1)
    assert await cluster.told() == [lost("dev1", "a", LEASE + BEAT_INTERVAL)]


async def test_a_process_whose_name_was_taken_tells_of_its_sessions_itself(
    cluster: Cluster,
) -> None:
    before, b = await cluster.join("a", "1"), await cluster.join("b")
    await before.directory.claim("dev1", "i1")
    after = await cluster.join("a", "2")
    with pytest.raises(NodeNameTaken):
        await before.beat()
    await beats(cluster, LEASE, b, after)
    assert await b.directory.sweep(LOST) == Swept(1)
    assert await cluster.told() == []


async def test_a_node_that_wakes_up_hears_what_was_told_lost(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    one = await a.directory.claim("dev1", "i1")
    two = await a.directory.claim("dev2", "i2")
    three = await a.directory.claim("dev3", "i3")
    assert not (await a.beat()).was_given_up
    await b.directory.claim("dev3", "i3")
    await beats(cluster, LEASE, b)
    await b.directory.sweep(LOST)
    await b.directory.claim("dev2", "i9")
    beat = await a.beat()
    assert (beat.resync, beat.was_given_up) == (True, True)
    missed: list[str] = []
    held = [
        Held("dev1", "i1", one.generation),
        Held("dev2", "i2", two.generation),
        Held("dev3", "i3", three.generation),
    ]
    await a.directory.republish(held, missed.extend)
    assert missed == ["dev1"], "the others are at `b`"
    beat = await a.beat()
    assert (beat.resync, beat.was_given_up) == (False, False)
    # It may die once more.
    await beats(cluster, LEASE, b)
    assert await b.directory.sweep(LOST) == Swept(2, 1)
    assert sorted(await cluster.told()) == [lost("dev1", "a")] * 2 + [lost("dev2", "a")]


async def test_a_node_that_wakes_up_before_the_sweep_has_lost_nothing(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    one = await a.directory.claim("dev1", "i1")
    await beats(cluster, LEASE, b)
    assert (await a.beat()).was_given_up
    assert await b.directory.sweep(LOST) == Swept(0)
    missed: list[str] = []
    await a.directory.republish([Held("dev1", "i1", one.generation)], missed.extend)
    assert missed == []
    assert await cluster.told() == []
