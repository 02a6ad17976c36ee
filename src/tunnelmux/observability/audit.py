"""The audit of commands: who asked, where it ran, how it ended; never its output. One JSON line per
command, in a file that rotates by size or in another `Sink`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from tunnelmux.limits import AuditLimits, most_of_one_tenant
from tunnelmux.observability.audit_file import LineFile
from tunnelmux.observability.logs import get_logger

__all__ = ["AuditLog", "AuditRecord", "FileSink", "LogSink", "RefusalSummary", "Sink"]

_log = get_logger("audit")

_MINUTE = 60.0

_MOST_REASONS = 32
# Reasons that are counted separately; a device may make up more.


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One command, after its end. Times are in UTC, `duration` in seconds.

    There is no field for a password, a key or output, and none may be added.
    """

    time: datetime
    """When the record was written."""

    command_id: str
    asked_by: str
    """Who asked for the command: a name, an address, or both."""

    device: str
    """The device or agent that was asked to run it."""

    host: str
    """The SSH server, as the device sees it."""

    user: str
    """The user on the SSH server."""

    command: str
    """The command's text; at most its first `audit.max_command` bytes."""

    start: datetime
    """When it was requested."""

    duration: float
    exit_code: int
    stdout_bytes: int
    stderr_bytes: int
    reason: str | None = None
    """A stable code when the command did not end by itself: `timeout`, `lost`, `forbidden`, …"""

    command_bytes: int = 0
    """Bytes of the whole command. AuditLog fills in this and the next field."""

    command_sha256: str = ""
    """SHA-256 of the whole command in UTF-8, in hexadecimal."""


class RefusalSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A summary of refused commands without records of their own, because one minute had
    too many."""

    time: datetime
    """When the record was written."""

    since: datetime
    """When that minute began."""

    refusals_not_recorded: int
    reasons: dict[str, int]
    """Their number by reason."""


class Sink(Protocol):
    """A destination for records."""

    def write(self, record: AuditRecord | RefusalSummary) -> None:
        """Write one record, without blocking on other programs. Raises OSError when that fails."""

    def close(self) -> None:
        """End the use of this sink."""


class LogSink:
    """Writes records as lines of the log; used where no file is configured."""

    def write(self, record: AuditRecord | RefusalSummary) -> None:
        fields = msgspec.to_builtins(record)
        del fields["time"]  # a log line has its own time
        if isinstance(record, RefusalSummary):
            _log.warning("refusals not recorded", **fields)
        else:
            _log.info("command", **fields)

    def close(self) -> None:
        """Nothing to close."""


class FileSink:
    """Writes records as JSON lines to a file. Raises ConfigError when it cannot be opened."""

    def __init__(self, file: LineFile) -> None:
        self._file = file

    def write(self, record: AuditRecord | RefusalSummary) -> None:
        self._file.write(_encode(record) + b"\n")

    def close(self) -> None:
        self._file.close()


class AuditLog:
    """Records every command; a failure here never stops a command. A record that a sink cannot take
    goes to the log instead. A limited number of refused commands per minute have records; the rest
    are counted and summarized. `clock` answers seconds from any fixed moment.
    """

    def __init__(
        self,
        sinks: Iterable[Sink] = (),
        limits: AuditLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sinks: list[Sink] = list(sinks) or [LogSink()]
        self._limits = limits or AuditLimits()
        self._clock = clock
        self._fallback = LogSink()
        self._minute_began = clock() - _MINUTE
        self._since = datetime.now(UTC)
        self._recorded: Counter[str] = Counter()  # refusals of this minute, by tenant
        self._not_recorded: Counter[str] = Counter()
        self.failures = 0
        """Records that a sink could not take."""

    @classmethod
    def open(cls, file: Path | None, limits: AuditLimits) -> AuditLog:
        """Into this file, or the log when it is None. Raises ConfigError."""
        sinks = [] if file is None else [FileSink(LineFile(file, limits))]
        return cls(sinks, limits)

    def record(self, record: AuditRecord, *, is_refusal: bool = False, tenant: str = "") -> None:
        """Write one record to all sinks, without blocking on other programs. `is_refusal` says that
        nothing was run, so that a caller can cause any number of these; those of one `tenant` other
        than the default one leave room for those of others.
        """
        self.tell_refusals()
        if is_refusal and not self._may_record(record, tenant):
            return
        command = record.command.encode("utf-8", "replace")
        self._write(
            msgspec.structs.replace(
                record,
                # A character that the cut splits is dropped.
                command=command[: self._limits.max_command].decode("utf-8", "ignore"),
                command_bytes=len(command),
                command_sha256=hashlib.sha256(command).hexdigest(),
            )
        )

    def _may_record(self, record: AuditRecord, tenant: str) -> bool:
        now = self._clock()
        if now >= self._minute_began + _MINUTE:
            self._minute_began, self._since = now, datetime.now(UTC)
            self._recorded.clear()
        most = self._limits.refusals_per_minute
        share = most_of_one_tenant(most) if tenant else most
        if self._recorded.total() < most and self._recorded[tenant] < share:
            self._recorded[tenant] += 1
            return True
        reason = record.reason or ""
        if reason not in self._not_recorded and len(self._not_recorded) >= _MOST_REASONS:
            reason = "other"
        self._not_recorded[reason] += 1
        return False

    def tell_refusals(self, *, now: bool = False) -> None:
        """Write the summary of refusals without records once their minute is over, or `now`. Every
        record does this too; a daemon calls it periodically and at its end.
        """
        if not self._not_recorded:
            return
        if not now and self._clock() < self._minute_began + _MINUTE:
            return
        reasons, self._not_recorded = dict(self._not_recorded), Counter()
        self._write(
            RefusalSummary(
                time=datetime.now(UTC),
                since=self._since,
                refusals_not_recorded=sum(reasons.values()),
                reasons=reasons,
            )
        )

    def _write(self, record: AuditRecord | RefusalSummary) -> None:
        for sink in self._sinks:
            try:
                sink.write(record)
            except OSError as error:
                self.failures += 1
                _log.error("audit record not written", cause=str(error), effect="it follows here")
                self._fallback.write(record)

    def take_over(self, other: AuditLog) -> None:
        """Use the sinks of `other` from now on, and close the old ones."""
        self.tell_refusals(now=True)
        before, self._sinks, self._limits = self._sinks, other._sinks, other._limits
        for sink in before:
            sink.close()

    def close(self) -> None:
        """Close the sinks; later records go to the log."""
        self.take_over(AuditLog(limits=self._limits))


def _encode(record: AuditRecord | RefusalSummary) -> bytes:
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:  # a lone surrogate from a caller's JSON
        assert isinstance(record, AuditRecord)
        texts = {
            name: value.encode("utf-8", "replace").decode("utf-8")
            for name in record.__struct_fields__
            if isinstance(value := getattr(record, name), str)
        }
        return msgspec.json.encode(msgspec.structs.replace(record, **texts))
