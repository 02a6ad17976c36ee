"""How much the recordings of each tenant take together, and whether there is room for more.

The files are counted once an hour, when old ones are removed; in between, what this gateway writes
is added. So another gateway with the same folder is seen an hour late at most, and a gateway that
has just started does not keep its first sessions waiting for the count.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tunnelmux.observability import get_logger

__all__ = ["RecordingSpace", "Tidied", "keep_open", "on_disk", "remove_old"]

_log = get_logger("gateway")

_BLOCK = 4096
# Bytes: what file systems give out at least, also for a file of one byte.

_NEARLY = 0.8
# Of the limit: from there on the log says so, once an hour.

_SUFFIXES = (".cast", ".index", ".json")

_DRAFT = ".new"
# The suffix of a `.json` file that is being written; one that is old was left by a crash.


def on_disk(size: int) -> int:
    """The bytes that a file of this size takes on most disks."""
    return -(-size // _BLOCK) * _BLOCK


@dataclass(frozen=True, slots=True)
class Tidied:
    """What a look through the folder of recordings found."""

    removed: int
    """Files that were old enough to remove."""
    left: dict[str, int]
    """The bytes of those that stay, by the tenant's id."""


def keep_open(descriptor: int) -> None:
    """Mark this `.cast` file as one that is being written, until it is closed: no gateway with the
    same folder removes anything of it, however long nothing happens in the session."""
    with suppress(OSError):  # a network file system without locks: then its age alone counts
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _may_go(file: Path, oldest: float) -> bool:
    """Whether nothing was written of the recording of this old file since then, and nothing will
    be."""
    for ending in _SUFFIXES:
        with suppress(FileNotFoundError):
            if file.with_suffix(ending).stat().st_mtime >= oldest:
                return False
    try:
        with file.with_suffix(".cast").open("rb") as cast:
            fcntl.flock(cast, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # it is not there, or there are no locks
    return True


def remove_old(folder: Path, keep: float) -> Tidied:
    """Remove recordings that ended more than `keep` seconds ago, and count what is left."""
    removed = 0
    left: Counter[str] = Counter()
    oldest = time.time() - keep
    for file in folder.rglob("*") if folder.is_dir() else ():
        try:
            about = file.stat()
            if file.is_dir():
                continue
            is_old = about.st_mtime < oldest
            is_ours = file.suffix in _SUFFIXES and is_old and _may_go(file, oldest)
            if is_ours or (file.suffix == _DRAFT and is_old):
                file.unlink(missing_ok=True)
                removed += 1
                continue
        except FileNotFoundError:
            continue  # another gateway has removed or renamed it
        left[file.relative_to(folder).parts[0]] += on_disk(about.st_size)
    return Tidied(removed, dict(left))


@dataclass(slots=True)
class RecordingSpace:
    """Room for recordings. Used in one thread.

    `most` is how many bytes one tenant's may take together, and `min_free` how many must be free on
    the disk of `folder` for another to begin.
    """

    folder: Path
    most: int
    min_free: int
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    _taken: Counter[str] = field(default_factory=Counter)
    _since: Counter[str] = field(default_factory=Counter)

    def take(self, tenant: str, size: int) -> str:
        """Take so many bytes for this tenant. Answers why there is no room; empty where it is."""
        if self._taken[tenant] + size > self.most:
            return (
                f"all recordings of your tenant together reach {self.most} bytes "
                "(recording.max_bytes_per_tenant of the gateway): its operator can raise that or "
                "remove old recordings"
            )
        self._taken[tenant] += size
        self._since[tenant] += size
        return ""

    def begin(self, tenant: str, size: int) -> str:
        """The same for a new recording, whose folder is there: it needs a disk that is not nearly
        full, too, so that those that are going on can go on. Raises OSError."""
        free = self.free(self.folder)
        if free < self.min_free:
            return (
                f"only {free} bytes are free on the disk of the gateway's recordings "
                "(recording.min_free): its operator can remove something there"
            )
        return self.take(tenant, size)

    def give_back(self, tenant: str, size: int) -> None:
        """What `begin` took is not needed."""
        self._taken[tenant] -= size
        self._since[tenant] -= size

    def count(self) -> None:
        """The files are counted from now on."""
        self._since.clear()

    def counted(self, left: dict[str, int]) -> None:
        """So much was there. What was taken while it was counted may be in it already, and is
        added all the same until the next count."""
        self._taken = Counter(left) + self._since
        for tenant, size in self._taken.items():
            if size >= _NEARLY * self.most:
                _log.warning("recordings nearly full", tenant=tenant, bytes=size, most=self.most)
