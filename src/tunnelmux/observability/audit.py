"""What is written down of every command: who asked, where it ran, how it ended; never its output.

One JSON line per command in a file that rotates by size. A `Sink` is where lines go: a database
would be another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec

from tunnelmux.errors import ConfigError
from tunnelmux.observability.logs import get_logger

__all__ = ["AuditLog", "AuditRecord", "FileSink", "LogSink", "Sink"]

_log = get_logger("audit")

_PRIVATE = 0o600
# Commands tell much of the machines they ran on, and at times what should not stand in them.


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One command, after its end. Times are in UTC, `duration` in seconds.

    There is no field for a password, a key or output, and none may be added.
    """

    time: datetime
    """When this was written."""

    command_id: str
    asked_by: str
    """Who wanted it, in words of the way it came: a name, an address, or both."""

    device: str
    """The device, or the agent, that was asked to run it."""

    host: str
    """The SSH server, as that device sees it."""

    user: str
    """Who the command ran as there."""

    command: str
    start: datetime
    """When it was asked for."""

    duration: float
    exit_code: int
    stdout_bytes: int
    stderr_bytes: int
    reason: str | None = None
    """A stable code when the command did not simply end: `timeout`, `lost`, `forbidden`, …"""


class Sink(Protocol):
    """Somewhere to write records to."""

    def write(self, record: AuditRecord) -> None:
        """Write one record, without waiting for anybody. Raises OSError when that fails."""

    def close(self) -> None:
        """Nothing more is written here."""


class LogSink:
    """Records as lines of the ordinary log: what is used where no file is configured."""

    def write(self, record: AuditRecord) -> None:
        fields = msgspec.to_builtins(record)
        del fields["time"]  # a log line has its own
        _log.info("command", **fields)

    def close(self) -> None:
        """There is nothing to close."""


class FileSink:
    """Records as JSON lines in `path`, readable by its owner only.

    A line that would make the file larger than `max_bytes` goes into a new one: `path` becomes
    `path.1`, that `path.2`, and so on; `keep` old ones stay. A file that somebody else moved away
    is begun anew, so an outside logrotate works as well. Raises ConfigError when the file cannot
    be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._file = -1
        self._is_torn = False
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"audit.file: {path} cannot be written ({error.strerror}): make its folder, and "
                "let this program's user write there"
            ) from error

    def write(self, record: AuditRecord) -> None:
        line = _encode(record) + b"\n"
        size = self._size()
        if size and size + len(line) > self._max_bytes:
            self._rotate()
        if self._is_torn:  # what is there of the line before must not spoil this one
            line = b"\n" + line
        # One write, so that lines of two processes on one file do not mix.
        written = os.write(self._file, line)
        self._is_torn = written < len(line)
        if self._is_torn:
            raise OSError(f"only {written} of {len(line)} bytes were written")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(self.path, flags, _PRIVATE)

    def _size(self) -> int:
        """How long the file is, after it was opened anew if it is another one now."""
        try:
            there = os.stat(self.path)  # noqa: PTH116  per command: no Path object for it
            if self._file >= 0 and os.path.samestat(there, os.fstat(self._file)):
                return there.st_size
        except FileNotFoundError:
            pass
        self._open()
        return os.fstat(self._file).st_size

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self.path.replace(self._numbered(1))
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


class AuditLog:
    """Takes the record of every command; nothing that goes wrong here stops a command.

    A record that a sink cannot take goes to the log instead, so that it is not lost.
    """

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks: list[Sink] = list(sinks) or [LogSink()]
        self._fallback = LogSink()
        self.failures = 0
        """Records that a sink could not take."""

    @classmethod
    def open(cls, file: Path | None, *, max_bytes: int, keep: int) -> AuditLog:
        """Into this file, or the log when it is None. Raises ConfigError."""
        if file is None:
            return cls()
        return cls([FileSink(file, max_bytes=max_bytes, keep=keep)])

    def record(self, record: AuditRecord) -> None:
        """Write one record everywhere. A local write of one line: it waits for nobody."""
        for sink in self._sinks:
            try:
                sink.write(record)
            except OSError as error:
                self.failures += 1
                _log.error("audit record not written", cause=str(error), effect="it follows here")
                self._fallback.write(record)

    def take_over(self, other: AuditLog) -> None:
        """Write where `other` would from now on; what was used until now is closed."""
        before, self._sinks = self._sinks, other._sinks
        for sink in before:
            sink.close()

    def close(self) -> None:
        """Close the sinks; what still comes goes to the log."""
        self.take_over(AuditLog())


def _encode(record: AuditRecord) -> bytes:
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:  # a lone surrogate from somebody's JSON
        texts = {
            name: value.encode("utf-8", "replace").decode("utf-8")
            for name in record.__struct_fields__
            if isinstance(value := getattr(record, name), str)
        }
        return msgspec.json.encode(msgspec.structs.replace(record, **texts))
