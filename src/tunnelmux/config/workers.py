"""What proxy.toml says of the processes that a proxy is."""

from __future__ import annotations

import os
import sys
from typing import Literal

import msgspec

from tunnelmux.config.rules import InvalidSetting

__all__ = ["MOST_WORKERS", "ProcessConfig"]

MOST_WORKERS = 64
"""Each is connected to each other one, and asked for each list: more is a task for nodes."""


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many processes this proxy is. A reload does not change it."""

    workers: int | Literal["auto"] = 1
    """Processes that serve, each on one core; `"auto"` is one for each core that this program may
    use. With more than one, a parent process binds the ports and starts them again when they end.
    Linux only."""

    def __post_init__(self) -> None:
        if self.workers != "auto" and not 1 <= self.workers <= MOST_WORKERS:
            raise InvalidSetting(
                "workers",
                f'{self.workers} cannot be: write 1 to {MOST_WORKERS}, or "auto" for the number of '
                "cores",
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
