"""What proxy.toml says of the processes that a proxy is."""

from __future__ import annotations

import os
import sys
from typing import Literal

import msgspec

from tunnelmux.config.rules import InvalidSetting

__all__ = ["MOST_WORKERS", "WORKER_TIMEOUT", "ProcessConfig"]

MOST_WORKERS = 64
"""Each is connected to each other one, and asked for each list: more is a task for nodes."""


WORKER_TIMEOUT = 6.0
"""Seconds: far more than one turn of a busy worker's loop takes, and less than the 10 s after which
a visitor who was handed over to it is given up."""

_SHORTEST_TIMEOUT, _LONGEST_TIMEOUT = 2.0, 86_400.0
# Seconds. Less is a busy machine's pause; more is for who looks into a worker with a debugger.


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processes that this proxy is. A reload does not change them."""

    workers: int | Literal["auto"] = 1
    """Processes that serve, each on one core; `"auto"` is one for each core that this program may
    use. With more than one, a parent process binds the ports and starts them again when they end.
    Linux only."""

    worker_timeout: float = WORKER_TIMEOUT
    """Seconds in which a worker must answer its parent. One that hangs gets no agents and visitors
    after half of it; after all of it, it is killed and started again, and its devices connect to
    the others. A machine or parent that was stopped itself does not count."""

    def __post_init__(self) -> None:
        if self.workers != "auto" and not 1 <= self.workers <= MOST_WORKERS:
            raise InvalidSetting(
                "workers",
                f'{self.workers} cannot be: write 1 to {MOST_WORKERS}, or "auto" for the number of '
                "cores",
            )
        if not _SHORTEST_TIMEOUT <= self.worker_timeout <= _LONGEST_TIMEOUT:
            raise InvalidSetting(
                "worker_timeout",
                f"{self.worker_timeout:g} is not from {_SHORTEST_TIMEOUT:g} to "
                f"{_LONGEST_TIMEOUT:g} seconds",
            )
        if self.count > 1 and sys.platform != "linux":
            raise InvalidSetting("workers", "more than one needs Linux: leave it at 1")

    @property
    def count(self) -> int:
        """How many there are."""
        if self.workers != "auto":
            return self.workers
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        return min(cores, MOST_WORKERS)
