"""Leases: access with an end. Remote assistance is made of them."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tunnelmux.registry.audit import AuditEntry
from tunnelmux.registry.ids import Page

__all__ = [
    "MAX_LEASE",
    "RIGHTS",
    "Approval",
    "Consent",
    "Lease",
    "LeaseKind",
    "LeaseState",
    "LeaseTerms",
    "Leases",
    "Right",
]

Consent = Literal["asked", "given", "refused"]
Approval = Literal["not_needed", "asked", "given", "refused"]
LeaseKind = Literal["person", "code"]
LeaseState = Literal["requested", "waiting", "running", "later", "ended", "expired", "used_up"]

Right = Literal["shell", "exec", "sftp", "forward", "agent", "x11"]

RIGHTS: tuple[Right, ...] = ("shell", "exec", "sftp", "forward", "agent", "x11")
"""What an SSH session may do, each granted separately: a terminal, a command, files, `-L` and `-J`
to the lease's services, forwarding of the person's own SSH agent, X11."""

MAX_LEASE = timedelta(hours=12)
"""The furthest away that a lease's end may be, when it is made and at each extension. For more, ask
again: a forgotten lease must not stay open over night."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """Who may use which services of a device, with which rights, from when until when, and why."""

    device_id: str
    services: tuple[str, ...]
    rights: tuple[Right, ...] = ("shell", "exec")
    holder: str
    """The id of the user who holds the lease; empty for the holder of the device's code
    (`kind`)."""
    holder_name: str = ""
    reason: str
    recorded: bool = True
    """Whether sessions may end at the gateway, which records them."""
    sealed: bool = False
    """Whether sessions may pass through the gateway encrypted (`ssh -J`): it sees ciphertext only,
    and notes user, time and bytes."""
    addresses: tuple[str, ...] = ()
    """Networks from which it may be used; empty for any."""
    starts: datetime
    ends: datetime
    max_uses: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(LeaseTerms):
    """A requested lease and its state."""

    id: str
    kind: LeaseKind
    """`person`: a user holds it. `code`: the device made it, for support without accounts."""
    approval: Approval
    """The decision of another member of the tenant, if the requester may not decide alone."""
    consent: Consent
    """The decision of the device, which is always asked."""
    decided_by: str
    decided: datetime | None
    uses: int
    created_by: str
    created_by_name: str
    created: datetime
    ended: datetime | None
    ended_by: str
    ended_by_name: str
    end_reason: str
    extended: int
    """How many times it was extended; each is an entry of the audit."""

    def state(self, now: datetime) -> LeaseState:
        """Its state at this time. It gives access only while it is `running`."""
        if self.ended is not None:
            return "ended"
        if now >= self.ends:
            return "expired"
        if self.max_uses is not None and self.uses >= self.max_uses:
            return "used_up"
        if self.approval == "asked":
            return "requested"
        if self.consent == "asked":
            return "waiting"
        return "running" if now >= self.starts else "later"


class Leases(abc.ABC):
    """The leases of this tenant. One that has ended never comes back."""

    @abc.abstractmethod
    async def add(self, terms: LeaseTerms, *, approved: bool) -> tuple[Lease, int]:
        """A new lease, and the change's number. The device is asked once the lease is `approved`,
        at once or later by `decide`.

        Raises NoSuchRecord for the device, and RegistryRefused: `invalid`, or `device_refuses` when
        the device has reported that it would not accept it.
        """

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
    async def running(self, *, holder: str, device_id: str) -> list[Lease]:
        """The leases by which this user may use this device now; the one that ends last comes
        first."""

    @abc.abstractmethod
    async def decide(self, lease_id: str, approve: bool, reason: str = "") -> tuple[Lease, int]:
        """Approve a request, so that the device is asked, or end it.

        Raises RegistryRefused `own_request` when the actor made the request, `lease_over`.
        """

    @abc.abstractmethod
    async def use(self, lease_id: str, details: dict[str, object] | None = None) -> Lease:
        """Count one use of a running lease, for example a visit that begins, and note `details` in
        the audit; raises RegistryRefused `lease_over`."""

    @abc.abstractmethod
    async def note(self, lease_id: str, what: str, details: dict[str, object]) -> AuditEntry:
        """Add an audit entry `lease.<what>` about a lease, also one that is over: the end of a
        visit with its bytes, a command."""

    @abc.abstractmethod
    async def extend(self, lease_id: str, until: datetime) -> tuple[Lease, int]:
        """Give a lease that is not over a later end, which the device must accept; raises
        RegistryRefused `lease_over`, `invalid`, `device_refuses`."""

    @abc.abstractmethod
    async def end(self, lease_id: str, reason: str) -> tuple[Lease, int]:
        """End it now; returns the lease and the change's number. An ended one does not change."""

    @abc.abstractmethod
    async def report(
        self, lease_id: str, *, from_number: int = 1, limit: int = 200
    ) -> list[AuditEntry]:
        """The audit entries about a lease, from this number on, the oldest first; fewer than
        `limit` at the end."""
