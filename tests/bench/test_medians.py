"""Many samples as one figure."""

from __future__ import annotations

import pytest
from bench.medians import median, quantile, spread, summarize


def test_one_wild_sample_does_not_move_the_median():
    assert median([10.0, 11.0, 9000.0]) == 11.0


def test_spread_is_half_the_range_as_a_share_of_the_median():
    assert spread([9.0, 10.0, 11.0]) == pytest.approx(0.1)
    assert spread([5.0]) == 0.0
    assert spread([0.0, 0.0]) == 0.0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)]
)
def test_quantile_is_a_value_that_was_measured(share, expected):
    assert quantile([float(number) for number in range(100, 0, -1)], share) == expected


def test_summary_has_every_metric_that_any_round_has():
    samples = [{"rps": 1.0}, {"rps": 3.0, "p99_ms": 7.0}]
    assert summarize(samples) == {
        "rps": {"median": 2.0, "spread": 0.5},
        "p99_ms": {"median": 7.0, "spread": 0.0},
    }
