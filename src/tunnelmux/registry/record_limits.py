"""How many records there may be: so that no member, device or tenant fills the database of all."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RecordLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordLimits:
    """The most that there may be of each kind. The configuration says why; see `ApiLimits` and
    `RegistryAddress`."""

    audit_per_day: int = 20_000
    """Entries of the audit of one person or device in a day, in each program."""
    audit_per_day_of_tenant: int = 500_000
    """The same of one tenant, of which its devices together have half."""
    access_tokens_per_person: int = 200
    ssh_keys_per_person: int = 50
    leases_per_person: int = 50
    """Of one device."""
    leases_per_device: int = 500
    links_per_device: int = 1000
    pairing_codes_per_tenant: int = 1000
    install_keys_per_tenant: int = 200
    invitations_per_tenant: int = 1000
