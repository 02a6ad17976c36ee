"""How long the registry keeps what is over."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Keeping"]

_DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Times in seconds."""

    records: float = 90 * _DAY
    """How long access tokens, invitations, install keys, credentials of devices and leases stay in
    lists after their end. An install key stays as long as there are devices that came by it."""
    audit: float | None = 1096 * _DAY
    """How long an entry of the audit is kept; None: for ever."""
