"""Log lines that people and devices of the gateway can cause any number of."""

from __future__ import annotations

from typing import Literal

from tunnelmux.observability import RepeatedLines, get_logger

__all__ = ["Lines"]

_log = get_logger("gateway")


class Lines:
    """Writes so many lines of each event in a minute about one person, device or address."""

    def __init__(self) -> None:
        self._of: dict[str, RepeatedLines] = {}

    def write(
        self,
        event: str,
        source: str,
        *,
        level: Literal["info", "warning", "error"] = "info",
        **fields: object,
    ) -> None:
        """Write this line, or count it."""
        if event not in self._of:
            self._of[event] = RepeatedLines(event)
        if self._of[event].may_write(source):
            getattr(_log, level)(event, **fields)
