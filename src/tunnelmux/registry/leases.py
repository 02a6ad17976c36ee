"""Leases: access that ends by itself. Remote assistance is made of them."""

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
"""What an SSH session may do, each by itself: a terminal, a command, files, `-L` and `-J` to the
lease's services, the person's own SSH agent, X11."""

MAX_LEASE = timedelta(hours=12)
"""The furthest a lease's end may be away, at its making and with each extension. Who needs more
asks again: what is forgotten must not stay open over night."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """Who may do what with which services of a device, from when until when, and why."""

    device_id: str
    services: tuple[str, ...]
    rights: tuple[Right, ...] = ("shell", "exec")
    holder: str
    """The id of the user who may; empty for the holder of the device's code (`kind`)."""
    holder_name: str = ""
    reason: str
    recorded: bool = True
    """Sessions may go by the gateway, which keeps what is seen."""
    sealed: bool = False
    """Sessions may go past it (`ssh -J`): it sees ciphertext and notes who, when, bytes."""
    addresses: tuple[str, ...] = ()
    """Networks from which it may be used; empty for all."""
    starts: datetime
    ends: datetime
    max_uses: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(LeaseTerms):
    """Terms that were asked for, and what became of them."""

    id: str
    kind: LeaseKind
    """`person`: a user holds it. `code`: the device made it, for support without accounts."""
    approval: Approval
    """The word of another member of the tenant, where the requester may not decide."""
    consent: Consent
    """The word of the device, which is always asked."""
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
    """How many times; each is an entry of the audit."""

    def state(self, now: datetime) -> LeaseState:
        """What it is worth at this moment: something only while it is `running`."""
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
        """A new lease, and the change's number. The device is asked when it is `approved`, by
        the one who asks or by `decide`.

        Raises NoSuchRecord for the device, and RegistryRefused: `invalid`, or `device_refuses` for
        what the device has said that it would not take.
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
        """What lets this user use this device at this moment: the leases that are running, the
        one that ends last first."""

    @abc.abstractmethod
    async def decide(self, lease_id: str, approve: bool, reason: str = "") -> tuple[Lease, int]:
        """Approve a request, so that the device is asked, or end it.

        Raises RegistryRefused `own_request` for the one who made it, `lease_over`.
        """

    @abc.abstractmethod
    async def use(self, lease_id: str, details: dict[str, object] | None = None) -> Lease:
        """Count one use, where the lease is running, and write down `details`, as of a visit that
        begins; raises RegistryRefused `lease_over`."""

    @abc.abstractmethod
    async def note(self, lease_id: str, what: str, details: dict[str, object]) -> AuditEntry:
        """Write down what happened under a lease, living or not, as `lease.` and `what`: the end of
        a visit with its bytes, a command."""

    @abc.abstractmethod
    async def extend(self, lease_id: str, until: datetime) -> tuple[Lease, int]:
        """A later end, while it is not over, within what the device takes; raises RegistryRefused
        `lease_over`, `invalid`, `device_refuses`."""

    @abc.abstractmethod
    async def end(self, lease_id: str, reason: str) -> tuple[Lease, int]:
        """End it now; the lease and the change's number. Ending an ended one changes nothing."""

    @abc.abstractmethod
    async def report(
        self, lease_id: str, *, from_number: int = 1, limit: int = 200
    ) -> list[AuditEntry]:
        """All that was written down about it, from this number of the audit on, the oldest first;
        fewer than `limit` at the end."""
