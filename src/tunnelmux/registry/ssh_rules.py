"""What a tenant decides about its people's SSH sessions, and whose certificates it trusts."""

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
    """Whether recordings hold what people type, too: passwords are in it."""
    on_recording_failure: RecordingFailure = ""
    """Whether a session ends that cannot be recorded any more; empty: as the gateway says."""
    user_authorities: tuple[str, ...] = ()
    """Public keys, a line each: who has a certificate by one of them for an e-mail address of a
    member is that member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedUser:
    """The member that a certificate names, in the one tenant that trusts its authority."""

    tenant_id: str
    user_id: str


class TenantSsh(abc.ABC):
    """The rules of this tenant."""

    @abc.abstractmethod
    async def find(self) -> SshRules:
        """The rules; those of a tenant that never said anything are the defaults."""

    @abc.abstractmethod
    async def change(
        self,
        *,
        record_input: bool | None = None,
        on_recording_failure: RecordingFailure | None = None,
        user_authorities: list[str] | None = None,
    ) -> SshRules:
        """Change what is given, and leave the rest; raises RegistryRefused `invalid`, `too_many`.
        Sessions by the certificates of an authority that is taken out end."""

    @abc.abstractmethod
    async def trusts(self, fingerprint: str) -> bool:
        """Whether certificates by the authority of this fingerprint are good here."""
