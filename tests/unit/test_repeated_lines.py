"""Log lines that strangers can cause any number of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tunnelmux.observability import RepeatedLines


class Flood:
    """Lines of one event, and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines = RepeatedLines("login failed", clock=lambda: self.now)
        self.told: list[Any] = []

    def written(self, source: str, count: int) -> int:
        return sum(self.lines.may_write(source) for _ in range(count))

    def summaries(self) -> list[tuple[int, str, int]]:
        """Those that came since the last call."""
        found = [(line["count"], line["source"], line["of_source"]) for line in self.told]
        assert all(
            (line["event"], line["of"]) == ("lines left out", "login failed") for line in self.told
        )
        self.told.clear()
        return found


@pytest.fixture
def flood() -> Iterator[Flood]:
    flood = Flood()
    with capture_logs() as flood.told:
        yield flood


def test_one_address_leaves_room_for_the_others(flood: Flood) -> None:
    assert flood.written("192.0.2.1", 1000) == 30
    assert flood.written("192.0.2.2", 30) == 30
    assert flood.summaries() == [(1, "192.0.2.1", 1)]
    flood.now += 60
    assert flood.written("192.0.2.1", 1) == 1


def test_the_count_of_what_was_left_out_comes_every_ten_seconds(flood: Flood) -> None:
    flood.written("192.0.2.1", 131)
    flood.now += 10
    flood.written("192.0.2.2", 31)
    assert flood.summaries() == [(1, "192.0.2.1", 1), (101, "192.0.2.1", 100)]
    flood.now += 9
    flood.written("192.0.2.1", 5)
    assert flood.summaries() == []


def test_many_addresses_together_have_a_limit_and_cost_little_memory(flood: Flood) -> None:
    addresses = [f"10.0.{number // 250}.{number % 250}" for number in range(5000)]
    assert sum(flood.written(address, 1) for address in addresses) == 300
    assert len(flood.lines._written) + len(flood.lines._left_out) < 1000
    flood.now += 10
    flood.written("10.0.1.1", 1)
    assert [count for count, _, _ in flood.summaries()] == [1, 4700]
