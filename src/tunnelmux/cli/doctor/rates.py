"""What was measured of a line, and what it means to a person."""

from __future__ import annotations

from dataclasses import dataclass

from tunnelmux.cli.output import duration, size

__all__ = ["EXAMPLE", "SLOW_FIX", "Rate"]

_THIN = 16_384
# Bytes a second under which a page takes a minute.

EXAMPLE = "10 MiB"
_EXAMPLE_BYTES = 10 * 1_048_576
# Some photographs, or a minute of video.

SLOW_FIX = "pages and files will take long: see what else uses this line, or take another"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many bytes in so many seconds; as text, bytes a second."""

    count: float
    seconds: float

    @property
    def per_second(self) -> float:
        """Bytes."""
        return self.count / max(self.seconds, 0.001)

    @property
    def is_thin(self) -> bool:
        """Whether a page takes a minute."""
        return self.per_second < _THIN

    @property
    def time_of_example(self) -> str:
        """How long `EXAMPLE` takes."""
        seconds = _EXAMPLE_BYTES / max(self.per_second, 1)
        return duration(seconds) if seconds >= 1 else "less than 1 s"

    def __str__(self) -> str:
        return f"{size(self.per_second)}/s"
