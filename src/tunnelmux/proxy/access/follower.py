"""What changes in the registry mean for visitors: they are judged again, and some are cut."""

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
    """Keeps the gate true to the registry, and ends what may not go on."""

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
        """The registry is there, or back: changes may have been missed."""
        await self.grants.greet(registry)

    def note_away(self) -> None:
        """The registry does not answer."""
        self.grants.note_away()

    def devices_changed(self) -> int:
        """Rules of devices, or devices themselves, may have changed: how many visits ended."""
        self._gate.forget()
        return self._gate.cut_unadmitted(self._visits)

    async def apply(self, registry: Registry, change: Change) -> int:
        """A change that is not about a device: how many visits it ended. Raises RegistryError."""
        if change.kind not in _ABOUT_GRANTS:
            return 0
        before = self._cut
        await self.grants.apply(registry, change.kind, change.object_id)
        return self._cut - before

    async def reload(self, registry: Registry) -> None:
        """Everything may have changed. Raises RegistryError."""
        self.devices_changed()
        await self.grants.refresh_all(registry)

    async def run(self, registry: Registry) -> None:
        """Watch the times of grants, until cancelled."""
        await self.grants.run(registry)

    def _on_change(self, grant: Grant) -> None:
        self._cut += self._gate.cut_unadmitted(self._visits, grant)

    def _in_use(self) -> Iterator[Grant]:
        for visit in self._visits:
            if visit.by is not None and visit.by.grant is not None:
                yield visit.by.grant
