"""Apply changes of the registry to visitors: check their access again, and cut visits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.grants import Grants
from tunnelmux.proxy.access.proofs import Grant
from tunnelmux.proxy.access.sign_in import SignIn
from tunnelmux.proxy.visitors.visit import VisitRegister
from tunnelmux.registry import Change, Registry

if TYPE_CHECKING:
    from tunnelmux.proxy.tunnels.leases import LeaseBook

__all__ = ["AccessFollower"]

_ABOUT_GRANTS = frozenset({"user", "tenant", "browser_session", "link", "key"})


class AccessFollower:
    """Keeps the gate up to date with the registry, and ends visits that are not allowed
    any more."""

    def __init__(
        self,
        gate: Gate,
        visits: VisitRegister,
        leases: LeaseBook | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._gate = gate
        self._visits = visits
        self._cut = 0
        self.grants = Grants(self._on_change, self._in_use, now=now)
        gate.sign_in = SignIn(self.grants, leases, now=now)

    async def greet(self, registry: Registry) -> None:
        """The registry answers, maybe again: changes may have been missed."""
        await self.grants.greet(registry)

    def note_away(self) -> None:
        """The registry does not answer."""
        self.grants.note_away()

    def devices_changed(self) -> int:
        """Devices or their rules may have changed. Returns how many visits this ended."""
        self._gate.forget()
        return self._gate.cut_unadmitted(self._visits)

    async def apply(self, registry: Registry, change: Change) -> int:
        """Apply a change that is not about a device. Returns how many visits it ended. Raises
        RegistryError.
        """
        if change.kind not in _ABOUT_GRANTS:
            return 0
        before = self._cut
        await self.grants.apply(registry, change.kind, change.object_id)
        return self._cut - before

    async def reload(self, registry: Registry) -> None:
        """Read everything again. Raises RegistryError."""
        self.devices_changed()
        await self.grants.refresh_all(registry)

    async def run(self, registry: Registry) -> None:
        """Refresh grants and end expired ones, until cancelled."""
        await self.grants.run(registry)

    def _on_change(self, grant: Grant) -> None:
        self._cut += self._gate.cut_unadmitted(self._visits, grant)

    def _in_use(self) -> Iterator[Grant]:
        for visit in self._visits:
            if visit.by is not None and visit.by.grant is not None:
                yield visit.by.grant
