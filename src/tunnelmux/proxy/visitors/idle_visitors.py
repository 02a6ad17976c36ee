"""Which idle connections of visitors end when there is no room for a new one."""

from __future__ import annotations

import heapq
from collections import deque

import trio

from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.visit import VisitRegister

__all__ = ["IdleVisitors"]

_log = get_logger("proxy.http")

_INTERVAL = 1.0
# Seconds between two searches of all visitors, which limits their cost. What a search finds is used
# until the next one, so that all who come within this second get in.

_LOG_INTERVAL = 10.0
# Seconds between two log lines: a flood must not fill the log.


class IdleVisitors:
    """Ends idle connections, the oldest first, of an address or of the address that has most."""

    def __init__(self, visits: VisitRegister) -> None:
        self._visits = visits
        self._searched = float("-inf")
        self._found: dict[str, deque[int]] = {}  # numbers of visits, some of which are over
        self._largest: list[tuple[int, str]] = []  # a heap: minus how many, and of which address
        self._ended = 0
        self._due = float("-inf")

    def end_one_of(self, source: str) -> bool:
        """End the oldest of this address. True if there was one."""
        return self._end(source) or (self._search() and self._end(source))

    def end_one_for(self, source: str, crowd: int) -> bool:
        """Make room for a connection of this address, which has *crowd* already: end one of the
        address that has most, if those are more; else one of its own. True if there was one.
        """
        return (
            self._end_of_largest(crowd)
            or (self._search() and self._end_of_largest(crowd))
            or self._end(source)
        )

    def _search(self) -> bool:
        """Find the idle ones anew. False if the last search was just now."""
        now = trio.current_time()
        if now < self._searched + _INTERVAL:
            return False
        self._searched = now
        self._found = {
            source: deque(visit.number for visit in visits)
            for source, visits in self._visits.idle_by_address("http").items()
        }
        self._largest = [(-len(numbers), source) for source, numbers in self._found.items()]
        heapq.heapify(self._largest)
        return True

    def _end_of_largest(self, crowd: int) -> bool:
        while self._largest and -self._largest[0][0] > crowd:
            count, source = self._largest[0]
            has_ended = len(self._found[source]) == -count and self._end(source)
            left = len(self._found[source])
            if left:
                heapq.heapreplace(self._largest, (-left, source))
            else:
                heapq.heappop(self._largest)
            if has_ended:
                return True
        return False

    def _end(self, source: str) -> bool:
        numbers = self._found.get(source)
        while numbers:
            visit = self._visits.live.get(numbers.popleft())
            if visit is not None and visit.is_idle:
                visit.stop()
                self._tell(source)
                return True
        return False

    def _tell(self, source: str) -> None:
        self._ended += 1
        now = trio.current_time()
        if now >= self._due:
            _log.warning("idle visitors gave way", address=source, count=self._ended)
            self._ended, self._due = 0, now + _LOG_INTERVAL
