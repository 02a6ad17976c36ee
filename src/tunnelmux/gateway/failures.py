"""Failed log-ins, counted by address."""

from __future__ import annotations

from collections import OrderedDict

import trio

from tunnelmux.transports.admission import source_of

__all__ = ["Failures"]

_MOST_SOURCES = 10_000
# Addresses to remember of either kind; the oldest is dropped first.

_KNOWN = 86_400.0
# Seconds for which an address is known for a good log-in.


class Failures:
    """Knows the addresses from which too many log-ins failed: their connections wait for a turn
    (`SlowLane`).

    One where a person has logged in within a day is not among them: many people may share it, and
    those whose log-ins fail should cost the others no time. What it may have at once is limited.
    """

    def __init__(self, most: int, period: float) -> None:
        self._most = most
        self._period = period
        self._sources: OrderedDict[str, list[float]] = OrderedDict()
        self._good: OrderedDict[str, float] = OrderedDict()

    def count(self, address: str) -> None:
        """Count a failed log-in from this address."""
        source = source_of(address)
        times = self._sources.setdefault(source, [])
        times.append(trio.current_time())
        del times[: -self._most]
        self._sources.move_to_end(source)
        if len(self._sources) > _MOST_SOURCES:
            self._sources.popitem(last=False)

    def forgive(self, address: str) -> None:
        """Forget the failures of this address: a person there has logged in."""
        source = source_of(address)
        self._sources.pop(source, None)
        self._good[source] = trio.current_time()
        self._good.move_to_end(source)
        if len(self._good) > _MOST_SOURCES:
            self._good.popitem(last=False)

    def are_too_many(self, address: str) -> bool:
        """Whether connections from this address wait for a turn now."""
        source, now = source_of(address), trio.current_time()
        times = self._sources.get(source)
        if times is None or len(times) < self._most or now - times[0] >= self._period:
            return False
        good = self._good.get(source)
        return good is None or now - good >= _KNOWN
