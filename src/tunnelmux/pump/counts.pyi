"""Counters of frequent events: one or two additions for each, and read when asked for."""

from typing import final

@final
class Histogram:
    """How many values there were up to each of some limits."""

    def __init__(self, *limits: float) -> None:
        """*limits* ascend; there are 24 at most, else ValueError."""

    def observe(self, value: float) -> None:
        """Count one."""

    @property
    def count(self) -> int:
        """How many there were."""

    @property
    def sum(self) -> float:
        """All of them added up."""

    @property
    def buckets(self) -> list[tuple[float, int]]:
        """Each limit, and how many values were not above it."""

@final
class RequestCounts:
    """Requests that have ended, their bytes of content and how long they took."""

    def __init__(self, *limits: float) -> None:
        """*limits* are those of `seconds`."""

    def add(self, status: int, bytes_in: int, bytes_out: int, seconds: float) -> None:
        """Count one; *status* is 0 when the visitor got no answer."""

    @property
    def by_class(self) -> dict[str, int]:
        """How many had a status of `1xx` to `5xx`, or `none`."""

    @property
    def bytes_in(self) -> int:
        """Bytes of content from visitors."""

    @property
    def bytes_out(self) -> int:
        """Bytes of content to visitors."""

    @property
    def seconds(self) -> Histogram:
        """From a request's head to the end of its answer."""
