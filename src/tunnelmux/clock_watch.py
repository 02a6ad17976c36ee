"""Notices that the wall clock was set.

What ends at a time of day is ended by a clock that cannot be set, for which the time that is left
is computed once. Where the wall clock was behind at that moment, it would end late by as much.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LOOK_INTERVAL", "ClockWatch", "earlier"]

LOOK_INTERVAL = 15.0
"""Seconds between two looks; so a clock that was set is noticed after 30 s at the latest."""

_SAME = 1.0
# Seconds by which two looks may differ where the clock was not set: they take their time.


class ClockWatch:
    """Compares the wall clock with one that cannot be set."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        """Both return seconds."""
        self._wall = wall
        self._steady = steady
        self._ahead: float | None = None

    def look(self) -> float | None:
        """By how many seconds the wall clock is ahead of the steady one, if it was so at the last
        look too: a clock that is wrong for a moment ends nothing. Call it each LOOK_INTERVAL."""
        before, self._ahead = self._ahead, self._wall() - self._steady()
        if before is None or abs(self._ahead - before) > _SAME:
            return None
        return self._ahead


def earlier(until: float, ends: float, ahead: float) -> float | None:
    """The moment on the steady clock for what ends at `ends` on the wall clock, if it is before
    `until`. Never a later one: setting a clock makes nothing longer."""
    moment = ends - ahead
    return moment if moment < until - _SAME else None
