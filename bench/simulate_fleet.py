"""A large cluster on a mock clock: what nodes say to their directory, and how long they take to
agree after a region is lost.

The nodes are the proxy's own `Membership`, one for each, over its own `PlaceBook`, which has the
rules of the directory in Redis. Simulated are the network, the agents, and Redis' time: it does one
call after another, each of which takes what was measured of a real one (`COSTS`).

A machine does not hold the ten million agents of 1,000 nodes by 10,000. So there are two runs:

    python -m bench.simulate_fleet                  # 1,000 nodes, with 20 agents each
    python -m bench.simulate_fleet --nodes 100 --agents 10000 --scale 10

The first has all that depends on the number of nodes. The second has the load of each node, and a
Redis ten times slower for ten times fewer nodes: so each node, and Redis, is as busy as with 1,000
nodes.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import trio
import trio.testing

from bench.processes import resident_kib
from bench.tree import ROOT

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))  # the directory behind a network is that of the tests

from support.far_directory import FarDirectory, Network
from tunnelmux.agent.backoff import Backoff
from tunnelmux.config.agent import BackoffConfig
from tunnelmux.directory import LEASE, Beat, LocalDirectory, Node, PlaceBook
from tunnelmux.directory.membership import Membership
from tunnelmux.limits import Limits
from tunnelmux.observability import configure_logs

SLOWEST = 0.005
"""Seconds that a message takes at most, one way."""

STEADY = 60.0
"""Seconds of which the messages are counted while nothing happens."""

GIVE_UP = 600.0
"""Seconds in which all must be well again."""

CERTIFICATE = "M" * 600
"""As long as that of a node, in Base64."""

START_WITHIN = 2.0
"""Seconds over which the nodes start: those between two beats."""

COSTS = {"claim": 15e-6, "release": 15e-6, "find": 15e-6, "beat": 25e-6, "republish": 15e-6}
"""Seconds of Redis' processor for a call (Redis 7.0, 2026-11-28: 40,000 claims, 2,000 beats)."""

COST_OF_A_NODE = 1.25e-6
"""Those for each node of the list that a beat is answered with when a node has come or gone."""


class Redis(Network):
    """The network, and the one thread of Redis; it counts. With *scale* Redis is that much
    slower."""

    def __init__(self, seed: int, scale: float) -> None:
        super().__init__(seed, slowest=SLOWEST)
        self._scale = scale
        self._free = 0.0
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.calls: Counter[str] = Counter()
        self.busy = 0.0
        """Seconds of processor time."""
        self.busiest: Counter[int] = Counter()
        """Calls by the second in which they came."""
        self.longest = 0.0
        """Seconds that a call waited for its turn at most."""
        self.list_bytes = 0
        """Bytes of the lists of nodes in the answers to beats, as JSON."""

    async def serve(self, call: str, answer: object) -> None:
        now = trio.current_time()
        self.calls[call] += 1
        self.busiest[int(now)] += 1
        cost = COSTS.get(call, 0.0)
        if isinstance(answer, Beat) and answer.nodes is not None:
            cost += COST_OF_A_NODE * len(answer.nodes)
            self.list_bytes += RECORD_BYTES * len(answer.nodes)
        cost *= self._scale
        self.busy += cost
        self.longest = max(self.longest, self._free - now)
        self._free = max(self._free, now) + cost
        await trio.sleep_until(self._free)


@dataclass(eq=False)
class Member:
    """One node."""

    name: str
    membership: Membership[str]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_lost: bool = False


def describe(number: int) -> Node:
    """The node of that number, as it describes itself."""
    host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Node(
        name=f"node-{number}",
        incarnation=f"{number:020x}",
        address=f"{host}:3803",
        certificate=CERTIFICATE,
        internal_url=f"http://{host}:3801",
        agent_url=f"wss://{host}/tunnel/connect",
    )


RECORD_BYTES = len(msgspec.json.encode(describe(1000)))


class Fleet:
    """Nodes by name, and the agents, each of which is at one of them."""

    def __init__(self, nodes: int, agents: int, seed: int, scale: float) -> None:
        self.redis = Redis(seed, scale)
        self.random = random.Random(seed)
        self.book = PlaceBook()
        self.members: list[Member] = []
        self.at: dict[str, Member] = {}
        self._nodes = nodes
        self._agents = agents

    async def start(self, nursery: trio.Nursery) -> None:
        """Start all nodes, and connect all agents."""
        for number in range(self._nodes):
            me = describe(number)
            near = LocalDirectory(self.book, me.name, me.incarnation)
            far = FarDirectory(near, self.redis, me.name)
            member = Member(me.name, Membership(far, me, lambda _session, _node: None))
            self.members.append(member)
            nursery.start_soon(self._run, member)
            await trio.sleep(START_WITHIN / self._nodes)
            for agent in range(self._agents):
                self.connect(f"device-{number}-{agent}", member)

    def connect(self, device: str, member: Member) -> None:
        """The device has a session there, of a new start of its agent."""
        self.at[device] = member
        member.membership.arrived(device, f"{self.random.getrandbits(64):x}", device)

    async def _run(self, member: Member) -> None:
        with member.scope:
            await member.membership.run()

    def lose(self, share: float) -> tuple[int, list[str]]:
        """Cut off so many of the nodes, as when a region has no power; how many, and what devices
        they had."""
        lost = self.members[: round(len(self.members) * share)]
        for member in lost:
            member.is_lost = True
            self.redis.cut.add(member.name)  # it says no goodbye
            member.scope.cancel()
        self.members = self.members[len(lost) :]
        return len(lost), [device for device, member in self.at.items() if member.is_lost]

    async def dial_again(self, devices: list[str]) -> None:
        """What agents do whose proxy fell silent: each notices by its keepalive, waits, and comes
        to any node."""
        limits, settings = Limits(), BackoffConfig()
        uniform, now = self.random.uniform, trio.current_time()

        def comes(_device: str) -> float:
            backoff = Backoff(settings.minimum, settings.maximum, settings.early, uniform=uniform)
            noticed = uniform(0, limits.keepalive_interval) + limits.keepalive_timeout
            return now + noticed + backoff.next_delay()

        for when, device in sorted((comes(device), device) for device in devices):
            await trio.sleep_until(when)
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

    def away(self) -> int:
        """The nodes that the directory has left without an answer."""
        return sum(one.membership.is_away for one in self.members)


async def simulate(
    nodes: int, agents: int, share: float, seed: int, scale: float = 1.0
) -> dict[str, float]:
    """The figures of one run."""
    told: dict[str, float] = {"nodes": nodes, "agents": nodes * agents}
    fleet = Fleet(nodes, agents, seed, scale)
    before = resident_kib([os.getpid()])
    async with trio.open_nursery() as nursery:
        await fleet.start(nursery)
        await until(lambda: all(one.membership.is_settled() for one in fleet.members))
        await until(fleet.all_agree)
        told["all_started_after_s"] = trio.current_time()
        grown = resident_kib([os.getpid()]) - before
        told["kib_per_agent"] = grown / (nodes * agents)
        fleet.redis.forget()
        await trio.sleep(STEADY)
        told["steady_calls_per_s"] = fleet.redis.calls.total() / STEADY
        told["steady_redis_percent"] = fleet.redis.busy / STEADY * 100
        await recover(fleet, told, nursery, share)
        nursery.cancel_scope.cancel()
    return told


async def recover(
    fleet: Fleet, told: dict[str, float], nursery: trio.Nursery, share: float
) -> None:
    """Lose that share of the nodes, and follow what happens."""
    redis, began = fleet.redis, trio.current_time()
    redis.forget()
    told["lost_nodes"], devices = fleet.lose(share)
    told["lost_agents"] = len(devices)
    nursery.start_soon(fleet.dial_again, devices)
    most_away = 0

    def agree() -> bool:
        nonlocal most_away
        most_away = max(most_away, fleet.away())
        return fleet.all_agree()

    await until(agree)
    told["nodes_agree_after_s"] = trio.current_time() - began
    missing = devices

    def all_found() -> bool:
        nonlocal missing
        agree()
        missing = [device for device in missing if not fleet.is_found(device)]
        return not missing

    await until(all_found, every=0.5)
    took = told["all_found_after_s"] = trio.current_time() - began
    told["nodes_without_an_answer_at_most"] = most_away
    told["claims_of_the_loss"] = redis.calls["claim"]
    told["busiest_second_calls"] = max(redis.busiest.values())
    told["redis_percent_meanwhile"] = redis.busy / took * 100
    told["longest_wait_for_redis_s"] = redis.longest
    told["lists_of_nodes_mb"] = redis.list_bytes / 1e6


async def until(is_so: Callable[[], bool], every: float = 0.1) -> None:
    """Return when that is so; look so often by the mock clock."""
    with trio.fail_after(GIVE_UP):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(every)


def _print(title: str, told: dict[str, float]) -> None:
    print(title)
    for name, value in told.items():
        shown = (
            f"{value:,.0f}" if abs(value) >= 100 or value == math.floor(value) else f"{value:.2f}"
        )
        print(f"  {name:32} {shown:>14}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=20, help="of each node")
    parser.add_argument("--scale", type=float, default=1.0, help="how much slower Redis is")
    parser.add_argument("--lost", type=float, default=1 / 3, help="share of the nodes that is lost")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    configure_logs("error", "json")  # each node says of each other one that it joined
    began = time.monotonic()
    clock = trio.testing.MockClock(autojump_threshold=0)
    told = trio.run(
        simulate, given.nodes, given.agents, given.lost, given.seed, given.scale, clock=clock
    )
    _print(f"simulated in {time.monotonic() - began:.0f} s (lease {LEASE:g} s)", told)


if __name__ == "__main__":
    main()
