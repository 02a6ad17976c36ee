"""A large cluster on a mock clock: what nodes say to their directory, and how long they take to
agree after a region is lost.

`python -m bench.simulate_fleet --nodes 1000 --agents 20` runs the proxy's own `Membership`, one for
each node, over its own `PlaceBook`, which has the rules of the directory in Redis; only the network
between them and the agents are simulated. What grows with the number of agents is measured for one
agent and multiplied: a machine does not hold the ten million of 1,000 nodes by 10,000.
"""

from __future__ import annotations

import argparse
import math
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
import trio.testing

from tunnelmux.agent.backoff import Backoff
from tunnelmux.config.agent import BackoffConfig
from tunnelmux.directory import (
    LEASE,
    Beat,
    Claim,
    Directory,
    Heard,
    Held,
    LocalDirectory,
    Node,
    Place,
    PlaceBook,
)
from tunnelmux.directory.membership import Membership
from tunnelmux.limits import Limits
from tunnelmux.observability import configure_logs

SLOWEST = 0.005
"""Seconds that a message takes at most, one way."""

STEADY = 60.0
"""Seconds of which the messages are counted while nothing happens."""

GIVE_UP = 300.0
"""Seconds in which all must be well again."""

CERTIFICATE = "M" * 600
"""As long as that of a node, in Base64."""


@dataclass
class Traffic:
    """What went to the directory and came from it."""

    calls: Counter[str] = field(default_factory=Counter)
    list_bytes: int = 0
    """Bytes of the lists of nodes in the answers to beats, as JSON."""
    busiest: Counter[int] = field(default_factory=Counter)
    """Calls by the second in which they were made."""

    def count(self, name: str) -> None:
        self.calls[name] += 1
        self.busiest[int(trio.current_time())] += 1


class Far(Directory):
    """The directory as one node reaches it; it counts."""

    def __init__(self, near: Directory, traffic: Traffic, rng: random.Random) -> None:
        self._near = near
        self._traffic = traffic
        self._random = rng

    async def _ask(self, name: str, *arguments: Any) -> Any:
        self._traffic.count(name)
        await trio.sleep(self._random.uniform(0, SLOWEST))
        answer = await getattr(self._near, name)(*arguments)
        await trio.sleep(self._random.uniform(0, SLOWEST))
        return answer

    async def claim(self, device: str, instance: str, least: int = 0) -> Claim:
        claim: Claim = await self._ask("claim", device, instance, least)
        return claim

    async def release(self, device: str, generation: int) -> bool:
        return bool(await self._ask("release", device, generation))

    async def find(self, device: str) -> list[Place]:
        return list(await self._ask("find", device))

    async def beat(self, me: Node, heard: Heard) -> Beat:
        beat: Beat = await self._ask("beat", me, heard)
        if beat.nodes is not None:
            self._traffic.list_bytes += sum(map(_size, beat.nodes.values()))
        return beat

    async def republish(self, held: Sequence[Held]) -> None:
        await self._ask("republish", held)

    async def sweep(self) -> int:
        return int(await self._ask("sweep"))

    async def leave(self) -> None:
        """A node that is lost says no goodbye."""


def _size(node: Node) -> int:
    return len(msgspec.json.encode(node))


@dataclass(eq=False)
class Member:
    """One node."""

    name: str
    membership: Membership[str]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_lost: bool = False


class Fleet:
    """Nodes by name, and the agents, each of which is at one of them."""

    def __init__(self, nodes: int, agents: int, seed: int) -> None:
        self.traffic = Traffic()
        self.random = random.Random(seed)
        self.book = PlaceBook()
        self.members: list[Member] = []
        self.at: dict[str, Member] = {}
        self._nodes = nodes
        self._agents = agents

    async def start(self, nursery: trio.Nursery) -> None:
        """Start all nodes, spread over the seconds between two beats, and connect all agents."""
        for number in range(self._nodes):
            name = f"node-{number}"
            me = Node(
                name=name,
                incarnation=f"{number:020x}",
                address=f"10.{number >> 8 & 255}.{number & 255}.7:3803",
                certificate=CERTIFICATE,
                internal_url=f"http://10.{number >> 8 & 255}.{number & 255}.7:3801",
            )
            near = LocalDirectory(self.book, name, me.incarnation)
            far = Far(near, self.traffic, self.random)
            member = Member(name, Membership(far, me, lambda _session, _node: None))
            self.members.append(member)
            nursery.start_soon(self._run, member)
            await trio.sleep(2.0 / self._nodes)
            for agent in range(self._agents):
                self.connect(f"device-{number}-{agent}", member)

    def connect(self, device: str, member: Member) -> None:
        """The device has a session there, of a new start of its agent."""
        before = self.at.get(device)
        if before is not None and not before.is_lost:
            before.membership.left(device, device)
        self.at[device] = member
        member.membership.arrived(device, f"{self.random.getrandbits(64):x}", device)

    async def _run(self, member: Member) -> None:
        with member.scope:
            await member.membership.run()

    async def lose(self, share: float) -> tuple[list[Member], list[str]]:
        """Cut off so many of the nodes, as when a region has no power; who, and what they had."""
        lost = self.members[: round(len(self.members) * share)]
        for member in lost:
            member.is_lost = True
            member.scope.cancel()
        self.members = self.members[len(lost) :]
        return lost, [device for device, member in self.at.items() if member.is_lost]

    async def dial_again(self, device: str) -> None:
        """What an agent does whose proxy fell silent: it notices by its keepalive, and waits."""
        limits, settings = Limits(), BackoffConfig()
        backoff = Backoff(
            settings.minimum, settings.maximum, settings.early, uniform=self.random.uniform
        )
        await trio.sleep(self.random.uniform(0, limits.keepalive_interval))
        await trio.sleep(limits.keepalive_timeout + backoff.next_delay())
        self.connect(device, self.random.choice(self.members))

    def is_found(self, device: str) -> bool:
        """Whether visitors of all nodes would be led to where it is."""
        member = self.at[device]
        places = self.book.find(device)
        return not member.is_lost and bool(places) and places[0].node == member.name

    def all_agree(self) -> bool:
        """Whether each node knows of all that live, and of no other."""
        alive = len(self.members)
        return all(len(one.membership.nodes) == alive for one in self.members)


async def simulate(nodes: int, agents: int, share: float, seed: int) -> dict[str, float]:
    """The figures of one run."""
    told: dict[str, float] = {"nodes": nodes, "agents": nodes * agents}
    fleet = Fleet(nodes, agents, seed)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    async with trio.open_nursery() as nursery:
        await fleet.start(nursery)
        await until(lambda: all(one.membership.is_settled() for one in fleet.members))
        await until(fleet.all_agree)
        now, _ = tracemalloc.get_traced_memory()
        told["bytes_per_agent"] = (now - before) / max(1, nodes * agents)
        tracemalloc.stop()
        await steady(fleet, told)
        lost, devices = await fleet.lose(share)
        await recover(fleet, told, nursery, lost, devices)
        nursery.cancel_scope.cancel()
    return told


async def steady(fleet: Fleet, told: dict[str, float]) -> None:
    """Count what is said while nothing happens."""
    traffic = _counts_anew(fleet)
    await trio.sleep(STEADY)
    told["steady_calls_per_s"] = traffic.calls.total() / STEADY


async def recover(
    fleet: Fleet,
    told: dict[str, float],
    nursery: trio.Nursery,
    lost: list[Member],
    devices: list[str],
) -> None:
    """Follow what happens once these nodes are gone."""
    traffic, began = _counts_anew(fleet), trio.current_time()
    for device in devices:
        nursery.start_soon(fleet.dial_again, device)
    told["lost_nodes"], told["lost_agents"] = len(lost), len(devices)
    await until(fleet.all_agree)
    told["nodes_agree_after_s"] = trio.current_time() - began
    await until(lambda: all(map(fleet.is_found, devices)))
    told["all_found_after_s"] = trio.current_time() - began
    told["calls_of_the_loss"] = traffic.calls.total()
    told["claims_of_the_loss"] = traffic.calls["claim"]
    told["busiest_second_calls"] = max(traffic.busiest.values())
    told["lists_of_nodes_mb"] = traffic.list_bytes / 1e6


def _counts_anew(fleet: Fleet) -> Traffic:
    """Forget what was counted; the nodes go on counting in the same object."""
    traffic = fleet.traffic
    traffic.calls.clear()
    traffic.busiest.clear()
    traffic.list_bytes = 0
    return traffic


async def until(is_so: Any) -> None:
    """Return when that is so; look ten times a second of the mock clock."""
    with trio.fail_after(GIVE_UP):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.1)


def extrapolated(told: dict[str, float], nodes: int, agents: int) -> dict[str, float]:
    """What that means for so many nodes and agents of each: claims and memory grow with the agents,
    beats with the nodes, lists of nodes with the square of these."""
    more_nodes = nodes / told["nodes"]
    lost = told["lost_agents"] / told["agents"] * nodes * agents
    limits, early = Limits(), BackoffConfig().minimum
    window = limits.keepalive_interval + early
    return {
        "nodes": nodes,
        "agents": nodes * agents,
        "steady_calls_per_s": told["steady_calls_per_s"] * more_nodes,
        "directory_gb": told["bytes_per_agent"] * nodes * agents / 1e9,
        "claims_of_the_loss": lost,
        "claims_per_s_while_they_dial": lost / window,
        "lists_of_nodes_mb": told["lists_of_nodes_mb"] * more_nodes**2,
    }


def _print(title: str, told: dict[str, float]) -> None:
    print(title)
    for name, value in told.items():
        shown = (
            f"{value:,.0f}" if abs(value) >= 100 or value == math.floor(value) else f"{value:.2f}"
        )
        print(f"  {name:32} {shown:>14}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--agents", type=int, default=50, help="of each node")
    parser.add_argument("--lost", type=float, default=1 / 3, help="share of the nodes that is lost")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    configure_logs("error", "json")  # each node says of each other one that it joined
    began = time.monotonic()
    clock = trio.testing.MockClock(autojump_threshold=0)
    told = trio.run(simulate, given.nodes, given.agents, given.lost, given.seed, clock=clock)
    _print(f"simulated in {time.monotonic() - began:.0f} s (lease {LEASE:g} s)", told)
    _print("extrapolated", extrapolated(told, 1000, 10_000))


if __name__ == "__main__":
    main()
