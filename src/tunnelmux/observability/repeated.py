"""Log lines that a peer can cause any number of: some of each minute are written, the rest are
counted, so that a flood fills neither disk nor the view of who reads the log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Literal

from tunnelmux.observability.logs import get_logger

__all__ = ["BoundedLines", "RepeatedLines"]

_log = get_logger("log")

_PERIOD = 60.0

_OF_SOURCE = 30
# Lines about one source in a minute: enough to see what it tries.

_IN_ALL = 300
# Lines about all of them in a minute, some 90 MB a day.

_SUMMARY_AFTER = 10.0
# Seconds between two lines that say how many were left out.

_SOURCES_TOLD_APART = 256


class RepeatedLines:
    """Decides which lines of one event are written. The others are counted, and a line says so at
    once and then every ten seconds: `lines left out`. `in_all` is how many lines a minute may have
    about all sources; `clock` answers seconds from any moment.
    """

    def __init__(
        self,
        event: str,
        *,
        in_all: float = _IN_ALL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._event = event
        self._most_in_all = in_all
        self._clock = clock
        self._began = float("-inf")
        self._written: Counter[str] = Counter()
        self._in_all = 0
        self._left_out: Counter[str] = Counter()
        self._count = 0
        self._due = float("-inf")

    def may_write(self, source: str) -> bool:
        """Whether a line about this source, an address or a name, is written now; if not, it is
        counted.
        """
        now = self._clock()
        if now >= self._began + _PERIOD:
            self._began, self._in_all = now, 0
            self._written.clear()
        if self._in_all < self._most_in_all and self._written[source] < _OF_SOURCE:
            self._written[source] += 1
            self._in_all += 1
            return True
        self._count += 1
        if source in self._left_out or len(self._left_out) < _SOURCES_TOLD_APART:
            self._left_out[source] += 1
        if now >= self._due:
            self._tell()
            self._due = now + _SUMMARY_AFTER
        return False

    def _tell(self) -> None:
        source, most = self._left_out.most_common(1)[0]
        _log.warning(
            "lines left out", of=self._event, count=self._count, source=source, of_source=most
        )
        self._left_out.clear()
        self._count = 0


class BoundedLines:
    """Writes lines of one component, of each event so many in a minute about one source: a person,
    a device, an address or a server."""

    def __init__(self, component: str) -> None:
        self._log = get_logger(component)
        self._of: dict[str, RepeatedLines] = {}

    def write(
        self,
        event: str,
        source: str,
        *,
        level: Literal["info", "warning", "error"] = "info",
        **fields: object,
    ) -> None:
        """Write this line, or count it."""
        if event not in self._of:
            self._of[event] = RepeatedLines(event)
        if self._of[event].may_write(source):
            getattr(self._log, level)(event, **fields)
