"""Leases: access that ends by itself."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunnelmux.registry.ids import Page

__all__ = ["Consent", "Lease", "LeaseState", "LeaseTerms", "Leases"]

Consent = Literal["not_needed", "asked", "given", "refused"]
LeaseState = Literal["waiting", "running", "later", "ended", "expired", "used_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """Who may reach which services of a device, from when until when, and why."""

    device_id: str
    services: tuple[str, ...]
    holder: str
    """The user id of the one who may."""
    holder_name: str = ""
    reason: str
    recorded: bool
    """True: the gateway keeps what is seen; False: sealed, it sees ciphertext only."""
    consent: Consent
    starts: datetime
    ends: datetime
    max_uses: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(LeaseTerms):
    """Terms that were granted, and what became of them."""

    id: str
    uses: int
    created_by: str
    created: datetime
    ended: datetime | None
    ended_by: str
    end_reason: str
    extended: int
    """How many times; each is an entry of the audit."""

    def state(self, now: datetime) -> LeaseState:
        """What it is worth at this moment."""
        if self.ended is not None:
            return "ended"
        if now >= self.ends:
            return "expired"
        if self.max_uses is not None and self.uses >= self.max_uses:
            return "used_up"
        if self.consent == "asked":
            return "waiting"
        return "running" if now >= self.starts else "later"


class Leases(abc.ABC):
    """The leases of this tenant. One that has ended never comes back."""

    @abc.abstractmethod
    async def add(self, terms: LeaseTerms) -> Lease:
        """A new lease; raises NoSuchRecord for the device, RegistryRefused `invalid`."""

    @abc.abstractmethod
    async def find(self, lease_id: str) -> Lease:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def page(
        self,
        *,
        device_id: str | None = None,
        holder: str | None = None,
        living: bool = False,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Lease]:
        """The newest first; `living`: only those that are not over."""

    @abc.abstractmethod
    async def consent(self, lease_id: str, given: bool) -> Lease:
        """The device's answer; a refusal ends the lease. RegistryRefused `lease_over`."""

    @abc.abstractmethod
    async def use(self, lease_id: str) -> Lease:
        """Count one use, where the lease is running; raises RegistryRefused `lease_over`."""

    @abc.abstractmethod
    async def extend(self, lease_id: str, until: datetime) -> Lease:
        """A later end, while it is not over; raises RegistryRefused `lease_over`, `invalid`."""

    @abc.abstractmethod
    async def end(self, lease_id: str, reason: str) -> tuple[Lease, int]:
        """End it now; the lease and the change's number. Ending an ended one changes nothing."""
