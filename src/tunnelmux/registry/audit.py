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
"""The `previous_hash` of the first entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change. `before` and `after` are JSON texts, empty when there was nothing."""

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
    """Selects entries for a list; empty fields do not matter."""

    action: str = ""
    """An action (`device.disable`) or the beginning of several (`device.`)."""
    object_id: str = ""
    actor_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCheck:
    """The result of checking the whole chain."""

    entries: int
    """How many there are, those before `broken_at` if it is broken."""
    broken_at: int | None
    """The number of the first entry that was changed or is missing; None when all is well."""
    problem: str
    cut: int = 0
    """The number of the last entry that was deleted as too old; 0: none was."""


def hash_entry(tenant_id: str, entry: AuditEntry) -> str:
    """The SHA-256, in hexadecimal, of the tenant and all of an entry but its own hash."""
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
        """Entries from this number on, the oldest first: at most `limit`, none at the end."""

    @abc.abstractmethod
    async def note(
        self,
        action: str,
        *,
        object_kind: str,
        object_id: str,
        details: dict[str, object] | None = None,
    ) -> AuditEntry:
        """Add an entry for an event outside the registry: a session was closed, a command was
        run."""

    @abc.abstractmethod
    async def verify(self) -> ChainCheck:
        """Check the whole chain, page by page."""
