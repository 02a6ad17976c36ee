"""Failed log-ins, counted by address."""

from __future__ import annotations

from collections import OrderedDict

import trio

from tunnelmux.transports.admission import source_of

__all__ = ["Failures"]

_MOST_SOURCES = 10_000
# Addresses to remember; the one that failed longest ago is dropped first.


class Failures:
    """Knows the addresses that are refused because too many log-ins from there failed."""

    def __init__(self, most: int, period: float) -> None:
        self._most = most
        self._period = period
        self._sources: OrderedDict[str, list[float]] = OrderedDict()

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
        self._sources.pop(source_of(address), None)

    def is_barred(self, address: str) -> bool:
        """Whether connections from this address are refused now."""
        times = self._sources.get(source_of(address))
        if times is None or len(times) < self._most:
            return False
        return trio.current_time() - times[0] < self._period
