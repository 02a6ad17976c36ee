"""The record of assistance, in a file on the device that no server can change."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunnelmux.errors import ConfigError
from tunnelmux.limits import AuditLimits
from tunnelmux.observability import get_logger
from tunnelmux.observability.audit_file import LineFile

__all__ = ["Diary", "read_diary"]

_log = get_logger("agent.assist")

_LIMITS = AuditLimits(max_bytes=1_000_000, keep=3, keep_for=0.0)
# At most 4 MB of a small device's disk: some 10,000 sessions.

_PERIOD = 3600.0
# Seconds for which lines of a kind are counted.

_LONGEST = 200
# Characters of a text: a proxy may send 1,000 of who asks and why.


class Diary:
    """Writes one JSON object per event, *most_of_a_kind* of a kind in an hour; without a path,
    nothing.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        most_of_a_kind: int = 600,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._most_of_a_kind = most_of_a_kind
        self._file: LineFile | None = None
        self._told = False
        self._began = -math.inf
        self._written: Counter[str] = Counter()
        if path is not None:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = LineFile(path, _LIMITS)
            except (ConfigError, OSError) as error:
                raise ConfigError(f"assist.log: {path} cannot be written: {error}") from error

    def write(self, what: str, details: dict[str, Any]) -> None:
        """Write an event, or count it where an hour has had too many of its kind. A write error
        does not end assistance, and is logged once.
        """
        if self._file is None:
            return
        if not 0 <= self._clock() - self._began < _PERIOD:
            self._begin_anew()
        self._written[what] += 1
        if self._written[what] <= self._most_of_a_kind:
            self._write(what, details)

    def _begin_anew(self) -> None:
        """Begin another hour, with what was left out in the one before."""
        before, self._written = self._written, Counter()
        self._began = self._clock()
        for what, count in before.items():
            if count > self._most_of_a_kind:
                left_out = count - self._most_of_a_kind
                self._write("lines left out", {"of": what, "count": left_out})

    def _write(self, what: str, details: dict[str, Any]) -> None:
        assert self._file is not None  # the caller has looked
        details = {key: _cut(value) for key, value in details.items()}
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "what": what} | details, ensure_ascii=False)
        try:
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError as error:
            if not self._told:
                _log.error("assistance not written down", cause=error.strerror or str(error))
            self._told = True
        else:
            self._told = False


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]}…"
    return value


def read_diary(path: Path, lease_id: str) -> list[dict[str, Any]]:
    """The file's events about one lease, oldest first; raises OSError."""
    found = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that a power failure cut
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("lease") == lease_id:
                    found.append(entry)
    return found
