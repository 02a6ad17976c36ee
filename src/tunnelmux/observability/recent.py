"""The last lines of the log, kept in memory for people who look from elsewhere."""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque

__all__ = ["RecentLines", "keep_recent", "recent"]

_LONGEST_LINE = 8192
# Bytes. A longer one, with a traceback in it as a rule, has its texts shortened.

_LONGEST_TEXT = 1024
_MOST_FIELDS = 32


class RecentLines:
    """Finished lines of JSON, numbered from 1. Lines may come from any thread."""

    def __init__(self, most: int) -> None:
        self.process = secrets.token_hex(8)
        """What tells the numbers of this process from those of the one before it."""
        self._lines: deque[str] = deque(maxlen=most)
        self._count = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """The number of the last line."""
        return self._count

    @property
    def first(self) -> int:
        """The number of the first line that is kept; that of the next one when none is."""
        with self._lock:
            return self._count - len(self._lines) + 1

    def add(self, text: str) -> None:
        """Take one line or several."""
        lines = [
            line if len(line) <= _LONGEST_LINE else _shortened(line) for line in text.split("\n")
        ]
        with self._lock:
            self._lines.extend(lines)
            self._count += len(lines)

    def after(self, number: int) -> list[tuple[int, str]]:
        """The lines after the one of this number that are still kept, with their numbers."""
        with self._lock:
            first = self._count - len(self._lines) + 1
            start = max(number + 1, first)
            kept = list(self._lines)[start - first :]
        return list(enumerate(kept, start))

    def resize(self, most: int) -> None:
        """Keep as many from now on."""
        with self._lock:
            self._lines = deque(self._lines, maxlen=most)


_recent: RecentLines | None = None


def keep_recent(most: int) -> None:
    """Keep the last lines of this process's log from now on; none with 0."""
    global _recent  # noqa: PLW0603  as the log itself, one for the process
    if not most:
        _recent = None
    elif _recent is None:
        _recent = RecentLines(most)
    else:
        _recent.resize(most)


def recent() -> RecentLines | None:
    """The lines that are kept; None where none are."""
    return _recent


def _shortened(line: str) -> str:
    content = json.loads(line)
    for name in list(content)[_MOST_FIELDS:]:
        del content[name]
    for name, value in content.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _LONGEST_TEXT:
            # Of a traceback, the end says most.
            content[name] = f"…{text[-_LONGEST_TEXT:]}"
    return json.dumps(content)
