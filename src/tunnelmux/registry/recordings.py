"""The list of recorded SSH sessions: who, where, when, and the state of the recording.

The recordings themselves are files of the gateway that made them. A record here has the data for a
list, and the file's SHA-256.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Self

import msgspec

from tunnelmux.registry.ids import Page

__all__ = ["IndexPoint", "Recorded", "RecordedEnd", "Recording", "Recordings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A session whose recording begins."""

    id: str
    """The id of the recording, and the name of its file."""
    device_id: str
    device_label: str
    user_id: str
    user_name: str
    account: str
    """The account on the device."""
    address: str
    """The address that the person's connection came from."""
    lease_id: str
    """The lease that allows the session; empty when the person's role does."""
    kind: str
    """`shell` or `exec`."""
    command: str
    gateway: str
    """The gateway that has the file."""
    began: datetime
    expires: datetime
    """When the gateway removes the file; the record goes with it."""

    def file(self, tenant_id: str) -> PurePath:
        """Its path in the folder of recordings. Beside it is a file of the same name with `.json`,
        which has the same data as this record."""
        return PurePath(tenant_id, f"{self.began.astimezone(UTC):%Y-%m-%d}", f"{self.id}.cast")


@dataclass(frozen=True, slots=True)
class IndexPoint:
    """A place in a recording's file from which a player can begin: a line of the file `.index`. The
    last one of a recording that has ended is its end."""

    seconds: float
    """Seconds from the recording's beginning to the event there."""
    played: float
    """The same with each pause cut to two seconds, as players do."""
    offset: int
    """Bytes of the file before that event."""
    columns: int
    rows: int

    @property
    def line(self) -> bytes:
        """As it is in the file."""
        numbers = (self.seconds, self.played, self.offset, self.columns, self.rows)
        return b"[%.6f, %.6f, %d, %d, %d]\n" % numbers

    @classmethod
    def read(cls, data: bytes) -> list[Self]:
        """The points of an index, without a last line that is not whole yet. Raises ValueError."""
        kind = tuple[float, float, int, int, int]
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        return [cls(*msgspec.json.decode(line, type=kind)) for line in whole]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEnd:
    """How a recording ended."""

    ended: datetime
    size: int
    """Bytes of the file."""
    sha256: str
    problem: str = ""
    """Why it is incomplete; empty when it is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording(Recorded):
    """A recording. Without `ended` it is still going on, or its gateway was killed."""

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
        """The newest first; with `text`, those with this text in the name of the device or person,
        the account or the command."""

    @abc.abstractmethod
    async def note_read(self, recording_id: str) -> Recording:
        """Note in the audit that the actor looks at it; raises NoSuchRecord."""
