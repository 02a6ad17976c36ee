"""Nodes that tell each other through a directory which is slow, loses answers, and forgets."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from support.far_directory import FarDirectory, Network
from tunnelmux.directory import LEASE, Claim, LocalDirectory, Node, PlaceBook, Swept
from tunnelmux.directory.membership import Membership
from tunnelmux.errors import DirectoryAway


class Cluster:
    """Nodes of one book, each behind the network."""

    def __init__(self, nursery: trio.Nursery, network: Network | None = None) -> None:
        self.nursery = nursery
        self.network = network or Network()
        self.told: list[str] = []
        """What was told of devices that are lost."""
        self.missed: list[tuple[str, str]] = []
        """Sessions that others may have been told lost, though their node lives."""
        self.book = PlaceBook(on_lost=self.told.append)
        self.closed: list[tuple[str, str]] = []

    async def join(self, name: str, incarnation: str = "1") -> Membership[str]:
        near = LocalDirectory(self.book, name, incarnation)
        far = FarDirectory(near, self.network, name)
        me = Node(name=name, incarnation=incarnation)
        member = Membership[str](
            far,
            me,
            lambda session, _by: self.closed.append((name, session)),
            on_missed=lambda session: self.missed.append((name, session)),
            lost=lambda: "{device} of {node}",
        )
        await self.nursery.start(member.run)
        return member

    def places(self, device: str = "dev1") -> list[str]:
        return [place.node for place in self.book.find(device)]


@pytest.fixture
def cluster(nursery: trio.Nursery) -> Cluster:
    return Cluster(nursery)


async def test_a_session_is_found_by_the_other_node_and_gone_after_its_end(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    a.arrived("dev1", "i1", "session")
    await trio.sleep(0.1)
    [place] = await b.find("dev1")
    assert (place.node, place.generation) == ("a", a.generation_of("dev1"))
    assert await a.find("dev1") == []  # it is here
    a.left("dev1", "session")
    await trio.sleep(0.1)
    assert await b.find("dev1") == []


async def test_the_older_session_is_closed_where_it_is(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    a.arrived("dev1", "i1", "old")
    await trio.sleep(0.1)
    b.arrived("dev1", "i2", "new")
    await trio.sleep(0.1)
    assert cluster.places() == ["b"]
    await trio.sleep(2.5)  # a beat
    assert cluster.closed == [("a", "old")]
    a.left("dev1", "old")  # and its late goodbye changes nothing
    await trio.sleep(1)
    assert cluster.places() == ["b"]


async def test_a_claim_without_an_answer_leaves_nothing_behind(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a = await cluster.join("a")
    done = trio.Event()
    near, claim = LocalDirectory(cluster.book, "a", "1"), LocalDirectory.claim

    async def unanswered(self: LocalDirectory, *arguments: Any) -> Claim:
        await claim(near, *arguments)
        done.set()
        await trio.sleep_forever()
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalDirectory, "claim", unanswered)
        a.arrived("dev1", "i1", "session")
        await done.wait()
    assert cluster.places() == ["a"]
    a.left("dev1", "session")
    await trio.sleep(5)
    assert cluster.places() == []
    assert a.is_settled()


async def test_without_the_directory_what_was_last_known_is_answered(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    a.arrived("dev1", "i1", "session")
    await trio.sleep(0.1)
    assert [place.node for place in await b.find("dev1")] == ["a"]
    cluster.network.cut = {"a", "b"}
    await trio.sleep(30)
    assert b.is_away
    began = trio.current_time()
    assert [place.node for place in await b.find("dev1")] == ["a"]
    assert trio.current_time() == began  # nobody waits for it
    # What happened meanwhile is said afterwards.
    a.left("dev1", "session")
    b.arrived("dev1", "i1", "other")
    await trio.sleep(1)
    cluster.network.cut = set()
    await trio.sleep(3)
    assert cluster.places() == ["b"]
    assert cluster.closed == []


async def test_a_lost_directory_is_filled_again(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    for number in range(50):
        a.arrived(f"dev{number}", f"i{number}", f"session{number}")
    await trio.sleep(1)
    before = a.generation_of("dev7")
    cluster.book.__init__()  # type: ignore[misc]
    await trio.sleep(3)
    assert all(cluster.places(f"dev{number}") == ["a"] for number in range(50))
    assert a.generation_of("dev7") == before
    b.arrived("dev7", "i99", "newer")
    await trio.sleep(1)
    assert b.generation_of("dev7") > before


async def test_a_device_that_the_directory_does_not_take_is_said_and_tried_again(
    cluster: Cluster, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def refuse(*_: object) -> Claim:
        nonlocal tries
        tries += 1
        raise DirectoryAway("Redis: OOM command not allowed")

    a = await cluster.join("a")
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(FarDirectory, "claim", refuse)
        a.arrived("dev1", "i1", "session")
        await trio.sleep(200)
    lines = [line for line in logs if line["event"] == "device not written to the directory"]
    assert {(line["device"], line["cause"]) for line in lines} == {
        ("dev1", "Redis: OOM command not allowed")
    }
    assert 30 <= len(lines) < tries  # so many in a minute of the real clock
    await trio.sleep(5)
    assert cluster.places() == ["a"]


async def test_a_dead_node_is_told_of_and_its_places_swept(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    a.arrived("dev1", "i1", "session")
    await trio.sleep(2.5)
    assert set(b.nodes) == {"a", "b"}
    cluster.network.cut = {"a"}
    with trio.fail_after(LEASE + 3):
        while "a" in b.nodes:
            await b.wait_change(trio.current_time() + 10)
    assert await b.find("dev1") == []
    await trio.sleep(3)
    assert cluster.book.sweep() == Swept(0)  # `b` did it
    assert cluster.told == ["dev1 of a"]


async def test_a_node_that_wakes_up_is_told_which_sessions_were_told_lost(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    a.arrived("dev1", "i1", "session1")
    a.arrived("dev2", "i2", "session2")
    a.arrived("dev3", "i3", "session3")
    await trio.sleep(2.5)
    cluster.network.cut = {"a"}
    await trio.sleep(LEASE + 5)
    assert sorted(cluster.told) == ["dev1 of a", "dev2 of a", "dev3 of a"]
    assert cluster.missed == []
    a.left("dev3", "session3")  # meanwhile, without the directory
    b.arrived("dev2", "i9", "elsewhere")
    await trio.sleep(1)
    cluster.network.cut = set()
    await trio.sleep(5)
    assert cluster.missed == [("a", "session1")]
    assert (cluster.places("dev1"), cluster.places("dev2")) == (["a"], ["b"])
    assert cluster.closed == [("a", "session2")]
    # What the directory has lost itself was not told lost.
    cluster.book.__init__(on_lost=cluster.told.append)  # type: ignore[misc]
    await trio.sleep(5)
    assert cluster.places("dev1") == ["a"]
    assert (len(cluster.told), len(cluster.missed)) == (3, 1)


async def test_a_node_that_wakes_up_and_is_not_answered_counts_all_as_told_lost(
    cluster: Cluster, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next answer would not say it again. That a device connected may be told twice."""
    republish, calls = FarDirectory.republish, 0

    async def unanswered(self: FarDirectory, held: Any, missed: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await republish(self, held, lambda _devices: None)
            missed([one.device for one in held])
            raise DirectoryAway("no answer came")
        await republish(self, held, missed)

    a, _b = await cluster.join("a"), await cluster.join("b")
    a.arrived("dev1", "i1", "session1")
    await trio.sleep(2.5)
    cluster.network.cut = {"a"}
    await trio.sleep(LEASE + 5)
    monkeypatch.setattr(FarDirectory, "republish", unanswered)
    cluster.network.cut = set()
    await trio.sleep(5)
    assert cluster.told == ["dev1 of a"]
    assert cluster.missed == [("a", "session1")]
    assert cluster.places() == ["a"]


async def test_the_log_says_whether_a_node_died_or_left(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    await cluster.join("a")
    await cluster.join("b")
    with capture_logs() as logs:
        async with trio.open_nursery() as inner:
            cluster.nursery = inner
            await cluster.join("c")
            await trio.sleep(2.5)
            inner.cancel_scope.cancel()
        await trio.sleep(2.5)
        cluster.network.cut = {"b"}
        await trio.sleep(LEASE + 5)
    gone = [line for line in logs if line["event"] == "node gone"]
    assert {(line["node"], line["log_level"], line["cause"]) for line in gone} == {
        ("c", "info", "it has left the cluster"),
        ("b", "warning", "it was not heard for 6 s: it was killed, hangs, or is cut off"),
    }


async def test_places_are_swept_once_for_each_node_that_is_gone(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    """A sweep looks at all places, of which there may be millions."""
    for name in "abc":
        await cluster.join(name)
    sweeps = []
    sweep = cluster.book.sweep

    def counted(lost: str) -> Swept:
        sweeps.append(trio.current_time())
        return sweep(lost)

    cluster.book.sweep = counted  # type: ignore[method-assign]
    await trio.sleep(600)
    assert len(sweeps) == 1  # what was there before they came
    cluster.network.cut = {"c"}
    await trio.sleep(600)
    assert len(sweeps) == 2
    await cluster.join("b", "2")  # the program was started again
    await trio.sleep(600)
    assert len(sweeps) == 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])
async def test_no_two_nodes_believe_in_the_newest_session_for_longer_than_a_lease(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Half an hour of agents that go from node to node, over a network that loses and delays, and
    is cut between a node and the directory now and then."""
    dice = random.Random(seed)
    network = Network(seed, loss=0.03, slowest=0.3)
    devices = [f"dev{number}" for number in range(5)]
    newest: dict[str, str] = {}
    longest = 0.0
    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery, network)
        members = [await cluster.join(name) for name in "abcd"]
        outdated_since: dict[tuple[str, str], float] = {}

        async def agents() -> None:
            for number in range(400):
                await trio.sleep(dice.expovariate(1 / 4))
                device, member = dice.choice(devices), dice.choice(members)
                member.arrived(device, f"i{number}", f"{device}/{number}")
                newest[device] = member.me.name

        async def troubles() -> None:
            while True:
                await trio.sleep(dice.expovariate(1 / 30))
                network.cut = {dice.choice(members).me.name}
                await trio.sleep(dice.uniform(1, 15))
                network.cut = set()

        async def watch() -> None:
            nonlocal longest
            while True:
                await trio.sleep(0.1)
                now = trio.current_time()
                for device in devices:
                    places = cluster.book.find(device)
                    top = places[0].generation if places else 0
                    for member in members:
                        held, sure = member.generation_of(device), member.believes_until > now
                        key = member.me.name, device
                        if held and held < top and sure:
                            since = outdated_since.setdefault(key, now)
                            longest = max(longest, now - since)
                        else:
                            outdated_since.pop(key, None)

        nursery.start_soon(troubles)
        nursery.start_soon(watch)
        await agents()
        await trio.sleep(60)
        network.cut, network.loss = set(), 0.0
        await trio.sleep(20)
        # All is as it should be when the trouble is over: one place each, where the agent is.
        for device in devices:
            [place] = cluster.book.find(device)
            [holder] = [m.me.name for m in members if m.generation_of(device)]
            assert place.node == holder
        nursery.cancel_scope.cancel()
    assert 0 < longest <= LEASE
