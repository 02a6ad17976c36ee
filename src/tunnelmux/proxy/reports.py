"""The results of a reload and of a drain."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunnelmux.errors import ConfigError

__all__ = ["DrainReport", "ReloadReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadReport:
    """The result of a reload."""

    kicked: list[str] = field(default_factory=list)
    """Devices whose session was closed: removed, disabled, or given another token."""
    problems: list[ConfigError] = field(default_factory=list)
    """Listeners that could not be opened; everything else of the new configuration holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """The result of a drain."""

    sessions: int = 0
    """Sessions that were told to go away."""
    streams: int = 0
    """Streams that were live when the drain began."""
    cut: int = 0
    """Streams that were still live when the grace period was over."""
    seconds: float = 0.0
