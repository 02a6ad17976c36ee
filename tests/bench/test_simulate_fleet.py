"""The simulation of a large cluster, small."""

from __future__ import annotations

import pytest
from bench.simulate_fleet import extrapolated, simulate
from trio.testing import MockClock

from tunnelmux.directory import LEASE


async def test_nodes_agree_after_the_lease_and_each_lost_agent_is_claimed_once(
    autojump_clock: MockClock,
) -> None:
    told = await simulate(nodes=6, agents=3, share=1 / 3, seed=1)
    assert told["steady_calls_per_s"] == pytest.approx(3.0, abs=0.2)  # a beat of each node in 2 s
    assert told["lost_agents"] == told["claims_of_the_loss"] == 6
    assert LEASE - 2.0 <= told["nodes_agree_after_s"] <= LEASE + 2.5
    more = extrapolated(told, 60, 30)
    assert more["steady_calls_per_s"] == pytest.approx(30.0, abs=2.0)
    assert more["claims_of_the_loss"] == 600
