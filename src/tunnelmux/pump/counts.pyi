"""Counters of what comes by the thousand: an addition or two for each, and read when asked for."""

from typing import final

@final
class Histogram:
    """How many values were at most so large."""

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
    """Requests that are over, their content and how long they took."""

    def __init__(self, *limits: float) -> None:
        """*limits* are those of `seconds`."""

    def add(self, status: int, bytes_in: int, bytes_out: int, seconds: float) -> None:
        """Count one; its status is 0 where the visitor was given none."""

    @property
    def by_class(self) -> dict[str, int]:
        """How many had a status of `1xx` to `5xx`, or `none`."""

    @property
    def bytes_in(self) -> int:
        """Content from visitors."""

    @property
    def bytes_out(self) -> int:
        """Content to visitors."""

    @property
    def seconds(self) -> Histogram:
        """From a request's head to the end of its answer."""
