"""The clock that leases end by: it cannot be set, and goes on while the machine sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Moment", "SteadyClock"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _since_boot() -> float:
    # CLOCK_BOOTTIME counts while the machine is suspended, as a lease's time must.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment ahead, as it is kept in a file over restarts."""

    boot_id: str
    at: float
    """On the clock of that boot."""
    wall: float
    """The same on the clock on the wall, seconds since 1970."""
    left: float
    """Seconds to it when it was written down."""


class SteadyClock:
    """Seconds that only go forward. `wall` is the clock on the wall, which may be wrong."""

    def __init__(
        self,
        now: Callable[[], float] = _since_boot,
        wall: Callable[[], float] = time.time,
        boot_id: Callable[[], str] = _boot_id,
    ) -> None:
        self.now = now
        self.wall = wall
        self._boot_id = boot_id

    def keep(self, at: float) -> Moment:
        """A moment of this clock, for a file."""
        left = at - self.now()
        return Moment(boot_id=self._boot_id(), at=at, wall=self.wall() + left, left=left)

    def recall(self, kept: Moment) -> float:
        """The moment on this clock again, never later than it was.

        Within one boot it is the same. After another one only the clock on the wall tells how much
        time has passed, and where that was set back, no less is taken than was left: so an end
        comes late at most by the time between the writing and the restart.
        """
        if kept.boot_id and kept.boot_id == self._boot_id():
            return min(kept.at, self.now() + kept.left)
        left = min(kept.wall - self.wall(), kept.left)
        return self.now() + left
