"""Which sessions of people were recorded: who, where, when, and what became of the recording.

The recordings themselves are files of the gateway that made them; here is what a list shows, and
what the file is held to (`sha256`).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath

from tunnelmux.registry.ids import Page

__all__ = ["Recorded", "RecordedEnd", "Recording", "Recordings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A session of which a recording begins."""

    id: str
    """The recording's: its file is called so."""
    device_id: str
    device_label: str
    user_id: str
    user_name: str
    account: str
    """On the device."""
    address: str
    """Where the person's connection came from."""
    lease_id: str
    """What it rests on; empty where a role is enough."""
    kind: str
    """`shell` or `exec`."""
    command: str
    gateway: str
    """The gateway that has the file."""
    began: datetime
    expires: datetime
    """When the gateway removes the file; the record goes with it."""

    def file(self, tenant_id: str) -> PurePath:
        """Where it is in the folder of recordings; beside it is one of the same name and `.json`
        that says the same as this record."""
        return PurePath(tenant_id, f"{self.began.astimezone(UTC):%Y-%m-%d}", f"{self.id}.cast")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEnd:
    """How a recording ended."""

    ended: datetime
    size: int
    """Bytes of the file."""
    sha256: str
    problem: str = ""
    """Why it is not whole; empty where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Recorded):
    """A recording; without `ended` it goes on, or its gateway was killed."""

    ended: datetime | None
    size: int
    sha256: str
    problem: str


class Recordings(abc.ABC):
    """The recordings of this tenant."""

    @abc.abstractmethod
    async def begin(self, recorded: Recorded) -> None:
        """A recording begins. Raises NoSuchRecord for the device."""

    @abc.abstractmethod
    async def end(self, recording_id: str, end: RecordedEnd) -> None:
        """It has ended. Raises NoSuchRecord."""

    @abc.abstractmethod
    async def find(self, recording_id: str) -> Recording:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def page(
        self,
        *,
        device_id: str | None = None,
        user_id: str | None = None,
        lease_id: str | None = None,
        text: str = "",
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Recording]:
        """The newest first; with `text`, those that have it in the device, the person, the account
        or the command."""

    @abc.abstractmethod
    async def note_read(self, recording_id: str) -> Recording:
        """Write down that the actor looks at it; raises NoSuchRecord."""
