"""The list of changes, for processes that keep a copy, and what each proxy did about a change."""

from __future__ import annotations

import abc
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Change", "ChangeKind", "ChangeWatch", "Changes", "Effect", "Effects"]

ChangeKind = Literal[
    "tenant", "device", "lease", "token", "user", "pairing", "browser_session", "link", "key"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something about this object changed; the reader fetches the object to see its new state."""

    number: int
    """Grows by one with each change, in the order in which they were committed."""
    at: datetime
    tenant_id: str
    kind: ChangeKind
    object_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one proxy did about a change."""

    proxy_id: str
    proxy_name: str
    sessions: int
    """Sessions it ended."""
    visits: int
    """Visits it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What all proxies did about a change."""

    done: list[Effect]
    """From the proxies that ended something."""
    missing: list[str]
    """The names of living proxies that have not confirmed the change."""

    @property
    def sessions(self) -> int:
        """Sessions ended in all."""
        return sum(effect.sessions for effect in self.done)

    @property
    def visits(self) -> int:
        """Visits ended in all."""
        return sum(effect.visits for effect in self.done)


class ChangeWatch(abc.ABC):
    """Wakes a reader when there may be new changes."""

    @abc.abstractmethod
    async def wait(self) -> None:
        """Return when something may have changed since the last call, within a second of the change
        and often sooner. It may return without a change. It does not raise when the database is
        away: the next read will.
        """


class Changes(abc.ABC):
    """The numbered list of changes, of all tenants."""

    @abc.abstractmethod
    async def latest(self) -> int:
        """The number of the last change; 0 when there was none."""

    @abc.abstractmethod
    async def after(self, number: int, *, limit: int = 500) -> list[Change] | None:
        """The changes after this number, in order. None when some of them were deleted already
        (after an hour): then the caller must read everything again."""

    @abc.abstractmethod
    def watch(self) -> AbstractAsyncContextManager[ChangeWatch]:
        """Watch for changes, with a connection of its own, for the length of the block."""

    @abc.abstractmethod
    async def effects(self, number: int, *, within: float = 2.0) -> Effects:
        """What the proxies did about a change; waits up to `within` seconds for all living ones."""
