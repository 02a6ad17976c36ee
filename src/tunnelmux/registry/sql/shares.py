"""Bounds how many entries of the audit one person, device or tenant causes in a day: they stay for
years, in the database of all tenants."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import datetime, timedelta

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.actor import Actor
from tunnelmux.registry.record_limits import RecordLimits

__all__ = ["DailyShares"]

_DAY = timedelta(days=1)

_MOST_COUNTED = 65_536
# Persons, devices and tenants that are counted at once; the one that did nothing for longest is
# forgotten.

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

    def __init__(self, limits: RecordLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._counted: OrderedDict[str, tuple[datetime, int]] = OrderedDict()

    def take(self, actor: Actor, action: str, now: datetime, tenant_id: str | None) -> None:
        """One more entry, of this tenant's audit. Raises RegistryRefused `too_many` where it is one
        too many for a day. Our own programs have no share."""
        if action.rpartition(".")[2] in _ALWAYS or actor.kind == "program":
            return
        with self._lock:
            shares = {}
            for subject, (most, whose) in self._budgets(actor, tenant_id).items():
                since, number = self._counted.get(subject, (now, 0))
                if not timedelta() <= now - since < _DAY:
                    since, number = now, 0
                if number >= most:
                    raise RegistryRefused(
                        f"{most} changes of {whose} were written down within a day: go on at "
                        f"{since + _DAY:%Y-%m-%d %H:%M} UTC",
                        code="too_many",
                    )
                shares[subject] = since, number + 1
            for subject, share in shares.items():
                self._counted[subject] = share
                self._counted.move_to_end(subject)
            while len(self._counted) > _MOST_COUNTED:
                self._counted.popitem(last=False)

    def _budgets(self, actor: Actor, tenant_id: str | None) -> dict[str, tuple[int, str]]:
        """What an entry counts against, each with its most and with words for it."""
        limits = self._limits
        budgets = {}
        if who := actor.user_id or actor.id:
            budgets[who] = limits.audit_per_day, "one person or device"
        if tenant_id is not None:
            most = limits.audit_per_day_of_tenant
            if actor.kind == "device":
                # The people of a tenant go on working where its devices have used up theirs.
                budgets[f"devices {tenant_id}"] = max(1, most // 2), "a tenant's devices"
            budgets[f"tenant {tenant_id}"] = most, "one tenant"
        return budgets
