"""The benchmark of a fleet over two nodes: where its agents dial, and what it writes."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from bench.node_loss import __main__ as node_loss
from bench.node_loss import agents

from tunnelmux.errors import ConnectError, ConnectRefused

DESCRIBED = {
    "date": "2026-11-28T10:00:00Z",
    "commit": "abc1234",
    "kernel": "Linux 6",
    "cpu": "a processor",
    "cpus": 2,
    "memory_gib": 4.0,
    "python": "3.11.7",
    "load_average": [0.1, 0.2, 0.3],
}


@pytest.fixture
def dialled(monkeypatch):
    """What was dialled; `away` cannot be reached, `no` refuses."""
    urls = []

    @asynccontextmanager
    async def dial(url):
        urls.append(url)
        if url == "away":
            raise ConnectError("it is not there")
        if url == "no":
            raise ConnectRefused("no", status=403)
        yield url

    monkeypatch.setattr(agents, "dial", dial)
    return urls


async def test_the_balancer_leads_to_each_node_in_turn_and_past_one_that_is_away(dialled):
    balancer = agents.Balancer(["a", "b"])
    for _ in range(4):
        async with balancer.dial(agents.BALANCER) as there:
            assert there == dialled[-1]
    assert set(dialled[:2]) == {"a", "b"} and dialled[:2] == dialled[2:]
    balancer = agents.Balancer(["a", "away"])
    for _ in range(2):
        async with balancer.dial(agents.BALANCER) as there:
            assert there == "a"
    async with balancer.dial("b") as there:  # what the proxy told of
        assert there == "b"


async def test_a_node_that_refuses_has_answered(dialled):
    balancer = agents.Balancer(["no", "no"])
    with pytest.raises(ConnectRefused):
        async with balancer.dial(agents.BALANCER):
            pass
    assert dialled == ["no"]


def test_each_device_has_an_address_of_its_own():
    found = {agents.address_of(number) for number in range(10_000)}
    assert len(found) == 10_000
    assert {address.split(".")[0] for address in found} == {"127"}


def test_a_result_says_whether_the_goal_is_met(monkeypatch, tmp_path):
    monkeypatch.setattr(node_loss, "PARTIAL_RESULTS", tmp_path)
    result = {
        "machine": DESCRIBED,
        "command": "python -m bench.node_loss",
        "agents": 500,
        "samples": {
            "one session": {"all_at_the_other_after_s": 21.0, "kib_per_session_b": 50.04},
            "two sessions": {"all_at_the_other_after_s": 0.1, "loss_failed_requests": 0.0},
        },
    }
    path = node_loss.save(result, whole=False)
    assert path.name == "2026-11-28T100000-abc1234-fleet.json"
    text = path.with_suffix(".md").read_text()
    assert "| memory of a node for each session | 50.0 KiB | - |" in text
    assert "| requests of these visitors that failed | - | 0 |" in text
    assert "Goal: all are back within 20 s. It is missed: 21.0 s." in text
