"""An agent keeps a second session on another node, so that no node's end leaves it without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from support.doors import Doors, open_doors
from support.nodes import Nodes, running_nodes
from support.origin import Origin, slow_page
from support.redis_server import RedisServer
from tunnelmux.agent import RunningAgent
from tunnelmux.config import Address

PATIENCE = 45.0
DOMAINS = {"a": "rack-1", "b": "rack-1", "c": "rack-2"}


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    async with open_doors("a", "b", "c") as doors:
        yield doors


@asynccontextmanager
async def cluster(redis: RedisServer, doors: Doors, *names: str) -> AsyncIterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunnelmux.directory.membership.BEAT_INTERVAL", 0.1)
        async with running_nodes(redis, names, doors=doors, domains=DOMAINS) as nodes:
            yield nodes


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  the condition is another's state
            await trio.sleep(0.01)


def on(agent: RunningAgent) -> set[str]:
    """The nodes that the agent has sessions with."""
    return {now.node for now in agent.sessions_now}


async def found(nodes: Nodes, name: str, count: int, device: str = "dev1") -> None:
    """Return when the directory has so many places of the device."""
    directory = nodes[name].store.membership._directory  # type: ignore[attr-defined]
    with trio.fail_after(PATIENCE):
        while len(await directory.find(device)) != count:  # noqa: ASYNC110  no event says so
            await trio.sleep(0.01)


async def test_a_second_session_in_another_failure_domain(
    redis: RedisServer, doors: Doors, web: Address
) -> None:
    async with (
        cluster(redis, doors, "a", "b", "c") as nodes,
        nodes.agent_at(doors.url("a"), {"web": f"http://{web}"}) as agent,
    ):
        await until(lambda: on(agent) == {"a", "c"})
        await found(nodes, "b", 2)
        for name in ("a", "b", "c"):
            assert (await nodes.get(name)).body == b"hello\n"
        # Each node lists its own session, and no session was taken for another's successor.
        for name, count in (("a", 1), ("b", 0), ("c", 1)):
            summaries = await nodes[name].store.list()
            assert [one.proxy_node_id for one in summaries] == [name] * count
            assert nodes[name].events.counts == ({"connected": 1} if count else {})
        # Another agent with the token supersedes both at once.
        async with nodes.agent_at(doors.url("b"), {"web": f"http://{web}"}) as other:
            await until(lambda: not on(agent))
            await until(lambda: on(other) == {"b", "c"})
            assert (await nodes.get("a")).body == b"hello\n"


async def test_of_two_older_agents_at_two_nodes_the_newer_one_stays(
    redis: RedisServer, doors: Doors, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not say that they are two, as those of today do."""
    monkeypatch.setattr("tunnelmux.agent.tunnels.INSTANCE_FIELD", b"X-Older")
    async with (
        cluster(redis, doors, "a", "b") as nodes,
        nodes.agent("a", {"web": f"http://{web}"}),
        nodes.agent("b", {"web": f"http://{web}"}),
    ):
        first = nodes["a"].events
        await until(lambda: first.counts["lost"] > 0)


async def test_a_visitor_is_led_to_the_nearest_session(
    redis: RedisServer, doors: Doors, web: Address
) -> None:
    """Not to the newest: that is c's."""
    async with (
        cluster(redis, doors, "a", "b", "c") as nodes,
        nodes.agent_at(doors.url("a"), {"web": f"http://{web}"}) as agent,
    ):
        await until(lambda: on(agent) == {"a", "c"})
        await found(nodes, "b", 2)
        there = await nodes["b"].store.find_device("dev1")
        assert there is not None
        assert there.elsewhere == "a"


async def test_with_one_session_configured_there_is_one(
    redis: RedisServer, doors: Doors, web: Address
) -> None:
    targets = {"web": f"http://{web}"}
    async with (
        cluster(redis, doors, "a", "b") as nodes,
        nodes.agent_at(doors.url("a"), targets, sessions=1) as agent,
        nodes.agent_at(doors.url("a"), targets, device="dev2") as other,
    ):
        await until(lambda: on(other) == {"a", "b"})
        assert [(now.node, now.url) for now in agent.sessions_now] == [("", doors.url("a"))]
        await found(nodes, "b", 1)


async def test_agents_are_told_of_a_node_that_joins(
    redis: RedisServer, doors: Doors, web: Address
) -> None:
    async with (
        cluster(redis, doors, "a") as nodes,
        nodes.agent_at(doors.url("a"), {"web": f"http://{web}"}) as agent,
    ):
        await until(lambda: on(agent) == {"a"})
        await nodes.start("b")
        await until(lambda: on(agent) == {"a", "b"})


async def test_a_node_that_ends_leaves_no_gap(
    redis: RedisServer, doors: Doors, web: Address
) -> None:
    """Visitors at a third node, which has no session of the device, notice nothing."""
    doors.to_any = ["a", "c"]
    async with (
        cluster(redis, doors, "a", "b", "c") as nodes,
        nodes.agent_at(doors.url(), {"web": f"http://{web}"}) as agent,
    ):
        await until(lambda: on(agent) == {"a", "c"})
        await found(nodes, "b", 2)
        for gone, others in (("c", {"a", "b"}), ("a", {"b", "c"})):
            assert (await nodes.get("b")).body == b"hello\n"
            nodes.stop(gone)
            for _ in range(3):
                answer = await nodes.get("b")
                assert (answer.status, answer.body) == (200, b"hello\n")
            if gone == "c":
                await until(lambda: on(agent) == {"a", "b"})
                await nodes.start("c")
            else:
                # The balancer leads to c now, which is told of by b too.
                await until(lambda: on(agent) == others)  # noqa: B023


async def test_a_balancer_that_leads_to_the_same_node_makes_no_second_session_there(
    redis: RedisServer, doors: Doors, web: Address
) -> None:
    doors.to_any = ["a", "b"]
    async with (
        cluster(redis, doors, "a", "b") as nodes,
        nodes.agent_at(doors.url(), {"web": f"http://{web}"}) as agent,
    ):
        await until(lambda: on(agent) == {"a", "b"})
        stays = nodes["b"].store.own_device("dev1")
        nodes.stop("a")
        refused = nodes["b"]._tunnel.figures.refused  # what is not shown elsewhere
        await until(lambda: refused["already-here"] >= 2)
        assert nodes["b"].store.own_device("dev1") is stays
        assert on(agent) == {"b"}
        assert (await nodes.get("b")).body == b"hello\n"
        await nodes.start("a")
        await until(lambda: on(agent) == {"a", "b"})
        assert nodes["b"].store.own_device("dev1") is stays


async def test_an_agent_that_is_told_to_go_dials_first(
    redis: RedisServer, doors: Doors, origin: Origin, web: Address
) -> None:
    """A node drains while a long answer holds its session. The next one is made meanwhile."""
    asked, go_on = slow_page(origin)
    answers: list[bytes] = []
    async with (
        cluster(redis, doors, "a", "b", "c") as nodes,
        nodes.agent_at(doors.url("a"), {"web": f"http://{web}"}) as agent,
        trio.open_nursery() as nursery,
    ):
        await until(lambda: on(agent) == {"a", "c"})

        async def visit() -> None:
            answers.append((await nodes.get("a", "/slow")).body)

        nursery.start_soon(visit)
        await asked.wait()
        nursery.start_soon(nodes["a"].drain, 60)
        # proxy.url leads to a node that takes no agents any more; b is known.
        await until(lambda: on(agent) == {"b", "c"})
        assert answers == []
        go_on.set()
        await until(lambda: answers == [b"slow"])
        assert on(agent) == {"b", "c"}
        await until(lambda: agent.figures.sessions_now == 2)
