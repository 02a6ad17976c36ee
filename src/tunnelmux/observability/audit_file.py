"""The audit's file: it rotates by size, and keeps recent records."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tunnelmux.errors import ConfigError
from tunnelmux.limits import AuditLimits
from tunnelmux.observability.logs import get_logger

__all__ = ["LineFile"]

_log = get_logger("audit")

_PRIVATE = 0o600
# Commands tell much about their machines, and may contain secrets by mistake.


def free_space(folder: Path) -> int:
    """Bytes that this user can still write on the path's file system."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class LineFile:
    """Appends lines to `path`, which only its owner can read.

    A line that would make the file larger than `max_bytes` goes into a new one: `path` becomes
    `path.1`, `path.1` becomes `path.2`, and so on. `keep` old files stay, and more while they are
    younger than `keep_for` and the disk is not nearly full. When another program has moved the file
    away, a new one is opened, so logrotate works too. Raises ConfigError when the file cannot be
    opened.
    """

    def __init__(
        self,
        path: Path,
        limits: AuditLimits,
        *,
        clock: Callable[[], float] = time.time,
        free: Callable[[Path], int] = free_space,
    ) -> None:
        self.path = path
        self._limits = limits
        self._clock = clock
        self._free = free
        self._file = -1
        self._is_torn = False
        self._is_told = False
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"audit.file: {path} cannot be written ({error.strerror}): make its folder, and "
                "give this program's user write access to it"
            ) from error

    def write(self, line: bytes) -> None:
        """Add a line, which ends with a line feed. Raises OSError."""
        if self._is_full(line):
            # When several processes use one file, one of them rotates it, and the others find the
            # new file.
            self._rotate_alone(line)
        if (
            self._is_torn
        ):  # the previous line is incomplete: end it, or this one would be unreadable
            line = b"\n" + line
        # One write, so that lines of two processes on one file do not mix.
        written = os.write(self._file, line)
        self._is_torn = written < len(line)
        if self._is_torn:
            raise OSError(f"only {written} of {len(line)} bytes were written")

    def _rotate_alone(self, line: bytes) -> None:
        """Rotate, unless another process does so now: then this line goes into the old file."""
        import fcntl  # not on every platform, and only needed with an audit

        try:
            # Without waiting: all that this process does would stand still meanwhile.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._note_locked()
            return
        if self._is_full(line):
            self._rotate()
        else:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _note_locked(self) -> None:
        # Another of our processes is done at once; a file twice as large has waited for long.
        if not self._is_told and self._size() > 2 * self._limits.max_bytes:
            self._is_told = True
            _log.warning(
                "audit not rotated",
                file=str(self.path),
                cause="another process keeps it locked",
                effect="it grows over audit.max_bytes",
            )

    def _is_full(self, line: bytes) -> bool:
        size = self._size()
        return bool(size) and size + len(line) > self._limits.max_bytes

    def close(self) -> None:
        """Close it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self.path, flags, _PRIVATE)

    def _size(self) -> int:
        """The file's size; reopens the path first if it is another file now."""
        try:
            there = os.stat(self.path)  # noqa: PTH116  per command: no Path object for it
            if self._file >= 0 and os.path.samestat(there, os.fstat(self._file)):
                return there.st_size
        except FileNotFoundError:
            pass
        self._open()
        return os.fstat(self._file).st_size

    def _rotate(self) -> None:
        self._is_told = False
        old = self._old_files()
        for number in sorted(old, reverse=True):
            old[number].replace(self._numbered(number + 1))
        self.path.replace(self._numbered(1))
        self._open()
        self._remove_old()

    def _old_files(self) -> dict[int, Path]:
        prefix = f"{self.path.name}."
        return {
            int(number): file
            for file in self.path.parent.iterdir()
            if file.name.startswith(prefix)
            and (number := file.name.removeprefix(prefix)).isascii()
            and number.isdigit()
            and number == str(int(number))
        }

    def _remove_old(self) -> None:
        """Remove files over `keep`, oldest first, if they are old or the disk is nearly full."""
        limits = self._limits
        for number, file in sorted(self._old_files().items(), reverse=True):
            if number <= limits.keep:
                return
            age = self._clock() - file.stat().st_mtime
            if limits.keep_for and age < limits.keep_for:
                free = self._free(self.path.parent)
                if free >= limits.min_free:
                    return
                _log.warning(
                    "audit records removed early",
                    file=str(file),
                    age=round(age),
                    cause=f"only {free} bytes are free on the disk (audit.min_free)",
                )
            file.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
