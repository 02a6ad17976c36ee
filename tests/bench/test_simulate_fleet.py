"""The simulation of a large cluster, small."""

from __future__ import annotations

import pytest
import trio
from bench.simulate_fleet import COST_OF_A_NODE, COSTS, Redis, describe, simulate
from trio.testing import MockClock

from tunnelmux.directory import LEASE, Beat, Heard


async def test_nodes_agree_after_the_lease_and_each_lost_agent_is_claimed_once(
    autojump_clock: MockClock,
) -> None:
    told = await simulate(nodes=6, agents=3, share=1 / 3, seed=1)
    # A beat of each node in 2 s, and the one sweep after the start.
    assert told["steady_calls_per_s"] == pytest.approx(3.0, abs=0.2)
    assert told["steady_redis_percent"] == pytest.approx(3 * COSTS["beat"] * 100, rel=0.1)
    assert told["lost_agents"] == told["claims_of_the_loss"] == 6
    assert LEASE - 2.0 <= told["nodes_agree_after_s"] <= LEASE + 2.5
    assert told["nodes_without_an_answer_at_most"] == 0


async def test_redis_does_one_call_after_another(autojump_clock: MockClock) -> None:
    redis = Redis(1, scale=1000)
    claim = COSTS["claim"] * 1000
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(redis.serve, "claim", None)
    assert trio.current_time() - began == pytest.approx(10 * claim)
    assert redis.longest == pytest.approx(9 * claim)
    assert redis.busy == pytest.approx(10 * claim)
    nodes = {str(number): describe(number) for number in range(100)}
    await redis.serve("beat", Beat(Heard(), [], nodes, resync=False))
    assert redis.busy == pytest.approx(10 * claim + 1000 * (COSTS["beat"] + 100 * COST_OF_A_NODE))
    assert redis.calls == {"claim": 10, "beat": 1}
