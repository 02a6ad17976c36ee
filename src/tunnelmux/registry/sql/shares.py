"""Bounds how many entries of the audit one person or device causes in a day: they stay for years,
in the database of all tenants."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import datetime, timedelta

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.actor import Actor

__all__ = ["DailyShares"]

_MOST_A_DAY = 20_000
# Entries of one person or device, in each of our programs: a script that goes through 10,000
# devices twice, some 20 MB.

_DAY = timedelta(days=1)

_MOST_COUNTED = 65_536
# Persons and devices that are counted at once; the one that did nothing for longest is forgotten.

_ALWAYS = frozenset(
    {
        *("cut", "deny", "disable", "end", "quarantine", "remove", "rest", "revoke"),
        *("files", "forward", "session"),
    }
)
# What takes a right away, or tells of what was begun: that is never refused, and there is no more
# of it than was begun before.


class DailyShares:
    """Counts for all transactions of a process, which are in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: OrderedDict[str, tuple[datetime, int]] = OrderedDict()

    def take(self, actor: Actor, action: str, now: datetime) -> None:
        """One more entry. Raises RegistryRefused `too_many` where it is one too many for a day.
        Our own programs have no share."""
        who = actor.user_id or (actor.id if actor.kind == "device" else "")
        if not who or action.rpartition(".")[2] in _ALWAYS:
            return
        with self._lock:
            since, number = self._counted.get(who, (now, 0))
            if not timedelta() <= now - since < _DAY:
                since, number = now, 0
            if number >= _MOST_A_DAY:
                raise RegistryRefused(
                    f"{_MOST_A_DAY} changes of one person or device were written down within a "
                    f"day: go on at {since + _DAY:%Y-%m-%d %H:%M} UTC",
                    code="too_many",
                )
            self._counted[who] = since, number + 1
            self._counted.move_to_end(who)
            if len(self._counted) > _MOST_COUNTED:
                self._counted.popitem(last=False)
