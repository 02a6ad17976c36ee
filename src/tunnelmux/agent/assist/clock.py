"""The clock for the ends of leases: it cannot be set, and runs while the machine sleeps."""

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
    """A future moment in a form that survives restarts."""

    boot_id: str
    at: float
    """On the steady clock of that boot."""
    wall: float
    """The same on the wall clock, in seconds since 1970."""
    left: float
    """Seconds left at the time of writing."""


class SteadyClock:
    """A clock in seconds that never goes back. `wall` is the wall clock, which may be wrong."""

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
        """The moment in its form for a file."""
        left = at - self.now()
        return Moment(boot_id=self._boot_id(), at=at, wall=self.wall() + left, left=left)

    def recall(self, kept: Moment) -> float:
        """The moment on this clock again, never with more time left than was written. Within one
        boot it is exact. After a reboot the wall clock tells how much time has passed; if that was
        set back, the time left at writing counts: so a lease ends late at most by the time between
        writing and restart.
        """
        if kept.boot_id and kept.boot_id == self._boot_id():
            return min(kept.at, self.now() + kept.left)
        left = min(kept.wall - self.wall(), kept.left)
        return self.now() + left
