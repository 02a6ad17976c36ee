"""Ends sessions and forwards when their lease ends, by this machine's own clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["LEASE_OVER", "WARNINGS", "Deadline"]

LEASE_OVER = "your lease has ended"

WARNINGS = (300.0, 60.0)
"""Seconds before the end at which a person is told."""


class _Use(Protocol):
    def cut(self, reason: str, /) -> None: ...


class Deadline:
    """Ends one session or forward; warns before by its method `tell`, where it has one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, use: _Use) -> None:
        self._loop = loop
        self._use = use
        self._timers: list[asyncio.TimerHandle] = []

    def set(self, ends: datetime | None) -> None:
        """Set the moment of the end, in place of an earlier one; None for no end."""
        self.cancel()
        if ends is None:
            return
        left = (ends - datetime.now(UTC)).total_seconds()
        for before in WARNINGS:
            if left > before:
                self._timers.append(self._loop.call_later(left - before, self._warn, before))
        self._timers.append(self._loop.call_later(max(0.0, left), self._end))

    def cancel(self) -> None:
        """Forget the end and the warnings."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _warn(self, before: float) -> None:
        tell = getattr(self._use, "tell", None)
        if tell is not None:
            minutes = round(before / 60)
            tell(f"your lease ends in {minutes} minute{'s' if minutes != 1 else ''}")

    def _end(self) -> None:
        self._use.cut(LEASE_OVER)
