"""The audit: one entry for each change, chained by hash."""

from __future__ import annotations

import abc
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.registry.actor import Actor
from tunnelmux.registry.ids import Page, format_time

__all__ = ["FIRST_HASH", "AuditEntry", "AuditFilter", "AuditTrail", "ChainCheck", "hash_entry"]

FIRST_HASH = "0" * 64
"""What stands for the entry before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What was changed. `before` and `after` are JSON texts, empty where there was nothing."""

    number: int
    """From 1, without a gap, for each tenant."""
    at: datetime
    actor: Actor
    action: str
    object_kind: str
    object_id: str
    before: str
    after: str
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries a list is to hold; what is empty does not count."""

    action: str = ""
    """An action (`device.disable`) or the beginning of some (`device.`)."""
    object_id: str = ""
    actor_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCheck:
    """What a walk along the chain found."""

    entries: int
    broken_at: int | None
    """The number of the first entry that is not what was written, or is missing."""
    problem: str


def hash_entry(tenant_id: str, entry: AuditEntry) -> str:
    """The SHA-256 over all of an entry but its own hash, its tenant included, in hexadecimal."""
    content = [
        tenant_id,
        entry.number,
        format_time(entry.at),
        entry.actor.kind,
        entry.actor.id,
        entry.actor.name,
        entry.actor.address,
        entry.action,
        entry.object_kind,
        entry.object_id,
        entry.before,
        entry.after,
        entry.previous_hash,
    ]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class AuditTrail(abc.ABC):
    """The audit of one tenant."""

    @abc.abstractmethod
    async def page(
        self, *, where: AuditFilter | None = None, limit: int = 50, after: str | None = None
    ) -> Page[AuditEntry]:
        """The newest first."""

    @abc.abstractmethod
    async def export(self, *, from_number: int = 1, limit: int = 200) -> list[AuditEntry]:
        """Entries from this number on, the oldest first; fewer than `limit` at the end."""

    @abc.abstractmethod
    async def note(
        self,
        action: str,
        *,
        object_kind: str,
        object_id: str,
        details: dict[str, object] | None = None,
    ) -> AuditEntry:
        """Write down what happened outside the registry: a session closed, a command run."""

    @abc.abstractmethod
    async def verify(self) -> ChainCheck:
        """Walk along the whole chain, in pages."""
