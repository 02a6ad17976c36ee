"""When a person is told of a lease's end, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tunnelmux.gateway.deadline import LEASE_OVER, Deadline


class Timer:
    def __init__(self, at: float, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.at, self.call, self.arguments = at, call, arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """An event loop of which the time is a number."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> Timer:
        self.timers.append(Timer(self.now + seconds, call, arguments))
        return self.timers[-1]

    def move_to(self, now: float) -> None:
        due = [timer for timer in self.timers if timer.at <= now]
        self.timers = [timer for timer in self.timers if timer.at > now]
        for timer in sorted(due, key=lambda timer: timer.at):
            if not timer.is_cancelled:
                self.now = timer.at
                timer.call(*timer.arguments)
        self.now = now


class Session:
    """What a session is told, and why it was cut."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.told: list[tuple[int, str]] = []

    def tell(self, sentence: str) -> None:
        self.told.append((round(self.loop.now), sentence))

    def cut(self, reason: str) -> None:
        self.told.append((round(self.loop.now), reason))


WARNED = [
    (3300, "your lease ends in 5 minutes"),
    (3540, "your lease ends in 1 minute"),
    (3600, LEASE_OVER),
]


@pytest.fixture
def running() -> tuple[Any, Session, Deadline]:
    loop: Any = Loop()
    session = Session(loop)
    deadline = Deadline(loop, session)
    deadline.set(datetime.now(UTC) + timedelta(seconds=3600))
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
    deadline.set(datetime.now(UTC) + timedelta(seconds=600))
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
    Deadline(loop, session).set(datetime.now(UTC) + timedelta(seconds=90))
    loop.move_to(100)
    assert session.told == [(30, "your lease ends in 1 minute"), (90, LEASE_OVER)]


def test_a_session_that_is_over_is_told_nothing(running: tuple[Any, Session, Deadline]) -> None:
    loop, session, deadline = running
    deadline.cancel()
    loop.move_to(5000)
    assert session.told == []
