"""The agents of a node that stops are told to go one after the other."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tunnelmux.errors import SessionClosed
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.succession import Succession


class OldAgent:
    """Its session takes no call that asks it to move."""

    def __init__(self) -> None:
        self.session = self
        self.told = -1.0

    async def open_stream(self) -> None:
        raise SessionClosed("older agents know no such call")

    def go_away(self) -> None:
        self.told = trio.current_time()


async def stop(count: int, grace: float = 60, *, has_others: bool = True) -> list[float]:
    """When each of so many agents was told to go, in seconds since the node was to stop."""
    agents: Any = [OldAgent() for _ in range(count)]
    tunnel: Any = SimpleNamespace(
        sessions=agents, settings=SimpleNamespace(ingress=IngressLimits())
    )
    cluster: Any = SimpleNamespace(has_others=has_others, leave=lambda: None)
    http: Any = None
    succession = Succession([], http, tunnel, None, None)
    began = trio.current_time()
    await succession.leave(cluster, began + grace)
    await succession.send_away(agents, began + grace)
    return [agent.told - began for agent in agents]


@pytest.mark.parametrize(("count", "least", "most"), [(1000, 3.0, 3.3), (3, 0.0, 0.2)])
async def test_many_agents_are_sent_away_over_some_seconds(
    count: int, least: float, most: float, autojump_clock: trio.testing.MockClock
) -> None:
    told = await stop(count)
    assert least <= told[-1] <= most
    assert all(0 < later - one < 0.1 for one, later in itertools.pairwise(told))


async def test_no_agent_waits_for_it_longer_than_the_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = await stop(1000, grace=1)
    assert 0 <= told[0] < told[200] < told[-1] <= 1.1


async def test_agents_of_the_only_node_are_told_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert set(await stop(1000, has_others=False)) == {0.0}
