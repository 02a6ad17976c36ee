from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmux.agent.backoff import EARLY_TRIES, HELD_LONG_ENOUGH, Backoff, ReplacedBackoff


def most(_low: float, high: float) -> float:
    return high


def least(low: float, _high: float) -> float:
    return low


def test_the_bound_doubles_up_to_the_maximum() -> None:
    backoff = Backoff(0.5, 30.0, uniform=most)
    early = [0.5, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    assert len(early) == EARLY_TRIES
    assert [backoff.next_delay() for _ in range(16)] == [*early, 4, 8, 16, 30, 30, 30]


def test_the_early_waits_are_never_above_the_maximum_nor_below_the_minimum() -> None:
    short = Backoff(0.5, 1.0, 2.0, uniform=most)
    assert [short.next_delay() for _ in range(12)] == [0.5] + [1.0] * 11
    long = Backoff(5.0, 30.0, 2.0, uniform=most)
    assert [long.next_delay() for _ in range(12)] == [5.0] * 10 + [10.0, 20.0]


@pytest.mark.parametrize("away", [0.5, 1.5, 3.0])
def test_of_a_fleet_whose_proxy_was_restarted_all_are_back_within_5_seconds(away: float) -> None:
    """Dials at a proxy that is away fail at once; they are spread over the time it takes."""
    dials: list[float] = []
    for seed in range(1000):
        backoff = Backoff(0.5, 30.0, uniform=random.Random(seed).uniform)
        now = backoff.next_delay()
        while now < away:
            dials.append(now)
            now += backoff.next_delay()
        assert now < away + 2.0
    # No herd: each tenth of a second sees a third of the fleet at the most.
    for tenth in range(int(away * 10)):
        assert sum(tenth / 10 <= at < (tenth + 1) / 10 for at in dials) < 350


def test_full_jitter_goes_down_to_nothing() -> None:
    backoff = Backoff(0.5, 30.0, uniform=least)
    assert [backoff.next_delay() for _ in range(9)] == [0] * 9


def test_a_hint_wins_and_is_spread_a_little() -> None:
    backoff = Backoff(0.5, 30.0, uniform=most)
    assert backoff.next_delay(7.0) == 7.5
    assert backoff.next_delay(120.0) == 120.5
    assert Backoff(0.5, 30.0, uniform=least).next_delay(7.0) == 7.0


def test_a_session_that_held_starts_it_anew() -> None:
    backoff = Backoff(0.5, 30.0, uniform=most)
    for _ in range(12):
        backoff.held(0.0)
        backoff.next_delay()
    backoff.held(HELD_LONG_ENOUGH)
    assert backoff.next_delay() == 0.5


def test_a_proxy_that_drops_every_session_at_once_is_dialled_ever_more_rarely() -> None:
    backoff = Backoff(0.5, 30.0, uniform=most)
    delays = []
    for _ in range(15):
        backoff.held(0.1)
        delays.append(backoff.next_delay())
    assert delays == [0.5, 1, *[2] * 8, 4, 8, 16, 30, 30]


def test_a_proxy_that_is_restarted_again_and_again_is_met_within_2_seconds_each_time() -> None:
    backoff = Backoff(0.5, 30.0, uniform=most)
    for _ in range(20):
        backoff.held(0.5)
        away = [backoff.next_delay() for _ in range(3)]
        assert away == [0.5, 1.0, 2.0]


def test_a_replaced_agent_keeps_away_for_longer_each_time() -> None:
    backoff = ReplacedBackoff(30.0, uniform=most)
    assert [backoff.next_delay(5.0) for _ in range(6)] == [30, 60, 120, 240, 300, 300]
    assert backoff.next_delay(599.0) == 300, "it took its turn"
    assert backoff.next_delay(601.0) == 30, "there was peace in between"
    assert ReplacedBackoff(30.0, uniform=least).next_delay(5.0) == 15


@given(
    seed=st.integers(),
    minimum=st.floats(0.001, 10),
    factor=st.floats(1, 1000),
    events=st.lists(st.sampled_from(["fail", "short", "long"]), max_size=40),
)
def test_a_delay_is_never_negative_and_never_above_the_maximum(
    seed: int, minimum: float, factor: float, events: list[str]
) -> None:
    maximum = minimum * factor
    backoff = Backoff(minimum, maximum, uniform=random.Random(seed).uniform)
    for event in events:
        if event == "fail":
            assert 0 <= backoff.next_delay() <= maximum
        else:
            backoff.held(HELD_LONG_ENOUGH if event == "long" else 0.0)
            if event == "long":
                assert backoff.next_delay() <= minimum


def test_the_delays_of_a_fleet_are_spread_over_the_whole_bound() -> None:
    delays = []
    for seed in range(1000):
        backoff = Backoff(0.5, 30.0, uniform=random.Random(seed).uniform)
        for _ in range(EARLY_TRIES + 3):
            backoff.next_delay()
        delays.append(backoff.next_delay())
    assert sum(delays) / 1000 == pytest.approx(15.0, rel=0.1)
