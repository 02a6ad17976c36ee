"""A tenant's rules for SSH sessions, and the authorities whose certificates it trusts."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal

__all__ = ["CertifiedUser", "RecordingFailure", "SshRules", "TenantSsh"]

RecordingFailure = Literal["", "stop", "continue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SshRules:
    """The rules of one tenant."""

    record_input: bool = False
    """Whether recordings also hold what people type, passwords included."""
    on_recording_failure: RecordingFailure = ""
    """Whether a session ends when it can no longer be recorded; empty: the gateway's setting."""
    user_authorities: tuple[str, ...] = ()
    """Public keys of certificate authorities, a line each. Their certificates for a member's e-mail
    address identify that member."""
    addresses: tuple[str, ...] = ()
    """Networks from which people may use the gateway; empty for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedUser:
    """The member that a certificate names, in the one tenant that trusts its authority."""

    tenant_id: str
    user_id: str


class TenantSsh(abc.ABC):
    """The rules of this tenant."""

    @abc.abstractmethod
    async def find(self) -> SshRules:
        """The rules; the defaults if the tenant never changed any."""

    @abc.abstractmethod
    async def change(
        self,
        *,
        record_input: bool | None = None,
        on_recording_failure: RecordingFailure | None = None,
        user_authorities: list[str] | None = None,
        addresses: list[str] | None = None,
    ) -> SshRules:
        """Change the given rules only; raises RegistryRefused `invalid`, `too_many`. Removing an
        authority ends the sessions of its certificates, and addresses end those from others."""

    @abc.abstractmethod
    async def trusts(self, fingerprint: str) -> bool:
        """Whether the tenant trusts the authority with this fingerprint."""
