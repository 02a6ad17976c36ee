"""Ends sessions, forwards and devices' connections at a time of day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime

from tunnelmux.clock_watch import LOOK_INTERVAL, ClockWatch, earlier

__all__ = ["LEASE_OVER", "WARNINGS", "Deadline"]

LEASE_OVER = "your lease has ended"

WARNINGS = (300.0, 60.0)
"""Seconds before the end at which a person is told."""


class Deadline:
    """Calls `end` once, at the moment that was set; and `tell` with each warning before it. The
    time that is left is measured by the event loop's clock, so that setting the machine's clock
    back makes nothing longer; where it was behind, and is set right, the end comes earlier."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: Callable[[], object],
        tell: Callable[[str], object] | None = None,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`wall` returns the seconds since 1970."""
        self._loop = loop
        self._end = end
        self._tell = tell
        self._wall = wall
        self._clock = ClockWatch(wall, loop.time)
        self._timer: asyncio.TimerHandle | None = None
        self._ends = self._until = 0.0
        self._warnings: list[float] = []

    def set(self, ends: datetime | None) -> None:
        """Set the moment of the end, in place of an earlier one; None for no end."""
        self.cancel()
        if ends is None:
            return
        self._ends = ends.timestamp()
        left = max(0.0, self._ends - self._wall())
        self._until = self._loop.time() + left
        self._warnings = [before for before in WARNINGS if self._tell and left > before]
        self._wait()

    def cancel(self) -> None:
        """Forget the end and the warnings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        ahead = self._clock.look()
        if ahead is not None:
            sooner = earlier(self._until, self._ends, ahead)
            self._until = self._until if sooner is None else sooner
        left = self._until - self._loop.time()
        due = left - self._warnings[0] if self._warnings else left
        self._timer = self._loop.call_later(min(LOOK_INTERVAL, max(0.0, due)), self._look)

    def _look(self) -> None:
        left = self._until - self._loop.time()
        if left <= 0:
            self._timer = None
            self._end()
            return
        passed = [before for before in self._warnings if left <= before]
        if passed and self._tell:
            self._warnings = self._warnings[len(passed) :]
            minutes = round(passed[-1] / 60)
            self._tell(f"your lease ends in {minutes} minute{'s' if minutes != 1 else ''}")
        self._wait()
