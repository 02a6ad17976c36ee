"""When a person is told of a lease's end, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tunnelmux.gateway.deadline import LEASE_OVER, Deadline

BEGINS = datetime(2030, 1, 1, tzinfo=UTC)


class Timer:
    def __init__(self, at: float, call: Callable[..., object]) -> None:
        self.at, self.call = at, call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """An event loop of which the time is a number. `behind` is how many seconds the clock on the
    wall is wrong."""

    def __init__(self) -> None:
        self.now = 0.0
        self.behind = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def wall(self) -> float:
        return BEGINS.timestamp() + self.now - self.behind

    def call_later(self, seconds: float, call: Callable[..., object]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def move_to(self, now: float) -> None:
        while due := [timer for timer in self.timers if timer.at <= now]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            if not timer.is_cancelled:
                timer.call()
        self.now = now


class Session:
    """What a session is told, and that it was cut."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.told: list[tuple[int, str]] = []

    def tell(self, sentence: str) -> None:
        self.told.append((round(self.loop.now), sentence))

    def cut(self) -> None:
        self.told.append((round(self.loop.now), LEASE_OVER))


def deadline_of(loop: Any, session: Session) -> Deadline:
    return Deadline(loop, session.cut, session.tell, wall=loop.wall)


def after(seconds: float) -> datetime:
    """This long after the beginning, by a clock that is right."""
    return BEGINS + timedelta(seconds=seconds)


WARNED = [
    (3300, "your lease ends in 5 minutes"),
    (3540, "your lease ends in 1 minute"),
    (3600, LEASE_OVER),
]


@pytest.fixture
def running() -> tuple[Any, Session, Deadline]:
    loop: Any = Loop()
    session = Session(loop)
    deadline = deadline_of(loop, session)
    deadline.set(after(3600))
    return loop, session, deadline


def test_a_person_is_told_5_minutes_and_1_minute_before_the_end(
    running: tuple[Any, Session, Deadline],
) -> None:
    loop, session, _ = running
    for second in range(0, 4000, 10):
        loop.move_to(second)
    assert session.told == WARNED


def test_a_new_end_takes_the_place_of_the_old_one_with_its_warnings(
    running: tuple[Any, Session, Deadline],
) -> None:
    loop, session, deadline = running
    loop.move_to(3400)
    deadline.set(after(4000))
    loop.move_to(5000)
    assert session.told == [
        WARNED[0],
        (3700, "your lease ends in 5 minutes"),
        (3940, "your lease ends in 1 minute"),
        (4000, LEASE_OVER),
    ]


def test_what_begins_late_is_told_of_what_is_left_only() -> None:
    loop: Any = Loop()
    session = Session(loop)
    deadline_of(loop, session).set(after(90))
    loop.move_to(100)
    assert session.told == [(30, "your lease ends in 1 minute"), (90, LEASE_OVER)]


def test_a_session_that_is_over_is_told_nothing(running: tuple[Any, Session, Deadline]) -> None:
    loop, session, deadline = running
    deadline.cancel()
    loop.move_to(5000)
    assert session.told == []


def test_one_without_a_way_to_tell_is_ended_all_the_same() -> None:
    loop: Any = Loop()
    session = Session(loop)
    Deadline(loop, session.cut, wall=loop.wall).set(after(3600))
    loop.move_to(5000)
    assert session.told == [(3600, LEASE_OVER)]


def test_a_clock_that_was_an_hour_behind_and_is_set_right_ends_nothing_late() -> None:
    loop: Any = Loop()
    session = Session(loop)
    loop.behind = 3600
    deadline_of(loop, session).set(after(3600))
    loop.move_to(1000)
    loop.behind = 0
    loop.move_to(9000)
    assert session.told == WARNED


def test_what_is_over_by_a_clock_set_right_ends_soon() -> None:
    loop: Any = Loop()
    session = Session(loop)
    loop.behind = 3600
    deadline_of(loop, session).set(after(60))
    loop.move_to(100)
    loop.behind = 0
    loop.move_to(9000)
    ((at, sentence),) = session.told
    assert (100 < at <= 130, sentence) == (True, LEASE_OVER)


@pytest.mark.parametrize("behind", [3600, -3600])
def test_a_clock_that_is_wrong_for_a_moment_moves_no_end(
    running: tuple[Any, Session, Deadline], behind: float
) -> None:
    loop, session, _ = running
    loop.move_to(1000)
    loop.behind = behind
    loop.move_to(1010)
    loop.behind = 0
    loop.move_to(5000)
    assert session.told == WARNED


def test_a_clock_that_is_set_back_makes_nothing_longer(
    running: tuple[Any, Session, Deadline],
) -> None:
    loop, session, _ = running
    loop.move_to(1000)
    loop.behind = 3600
    loop.move_to(5000)
    assert session.told == WARNED
