"""Following a command from its request to its end, for the audit."""

from __future__ import annotations

from datetime import UTC, datetime

import trio

from tunnelmux.commands import EXIT_FAILED, CommandRequest, Event, Exited, Output, Started
from tunnelmux.observability import AuditLog, AuditRecord
from tunnelmux.registry.names import tenant_in_label

__all__ = ["NOT_BEGUN", "AuditTrail"]

NOT_BEGUN = frozenset(
    {"busy", "device-busy", "device-disabled", "device-draining", "device-offline", "forbidden"}
    | {"invalid", "not-supported", "undelivered", "unknown-device"}
)
"""Reasons of commands that were refused at no cost, so that a caller can cause any number of them.
"""

_CANCELLED = "cancelled"
# The reason of a command whose caller left before its end.


class AuditTrail:
    """Follows one command. `close` writes its record, once."""

    def __init__(
        self,
        log: AuditLog,
        request: CommandRequest,
        *,
        device: str,
        asked_by: str,
    ) -> None:
        self._log = log
        self._request = request
        self._device = device
        self._asked_by = asked_by
        self._start = datetime.now(UTC)
        self._started = trio.current_time()
        self._bytes = {"stdout": 0, "stderr": 0}
        self._end: Exited | None = None
        self._is_closed = False
        self._has_begun = False

    @property
    def duration(self) -> float:
        """Seconds since the command was requested."""
        return trio.current_time() - self._started

    def see(self, event: Event) -> None:
        """Record an event. Only the length of output is kept."""
        match event:
            case Started():
                self._has_begun = True
            case Output(stream, data):
                self._has_begun = True
                self._bytes[stream] += len(data)
            case Exited():
                self._end = event

    def close(self) -> None:
        """Write the record; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        request, end = self._request, self._end
        self._log.record(
            AuditRecord(
                time=datetime.now(UTC),
                command_id=request.command_id,
                asked_by=self._asked_by,
                device=self._device,
                host=request.host,
                user=request.username,
                command=request.command,
                start=self._start,
                duration=round(self.duration, 6),
                exit_code=end.exit_code if end else EXIT_FAILED,
                # The command wrote the discarded bytes too.
                stdout_bytes=max(self._bytes["stdout"], end.stdout_bytes if end else 0),
                stderr_bytes=max(self._bytes["stderr"], end.stderr_bytes if end else 0),
                reason=end.reason if end else _CANCELLED,
            ),
            is_refusal=not self._has_begun and end is not None and end.reason in NOT_BEGUN,
            tenant=tenant_in_label(self._device),
        )
