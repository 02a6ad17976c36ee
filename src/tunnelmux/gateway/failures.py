"""Failed log-ins, counted by address."""

from __future__ import annotations

from collections import OrderedDict

import trio

from tunnelmux.transports.admission import source_of

__all__ = ["Failures"]

_MOST_SOURCES = 10_000
# Addresses that are remembered; the one that failed longest ago is forgotten first.


class Failures:
    """Says which addresses are not listened to, because too many of their log-ins failed."""

    def __init__(self, most: int, period: float) -> None:
        self._most = most
        self._period = period
        self._sources: OrderedDict[str, list[float]] = OrderedDict()

    def count(self, address: str) -> None:
        """One log-in from there has failed."""
        source = source_of(address)
        times = self._sources.setdefault(source, [])
        times.append(trio.current_time())
        del times[: -self._most]
        self._sources.move_to_end(source)
        if len(self._sources) > _MOST_SOURCES:
            self._sources.popitem(last=False)

    def forgive(self, address: str) -> None:
        """A person there has logged in."""
        self._sources.pop(source_of(address), None)

    def is_barred(self, address: str) -> bool:
        """Whether an address has to wait."""
        times = self._sources.get(source_of(address))
        if times is None or len(times) < self._most:
            return False
        return trio.current_time() - times[0] < self._period
