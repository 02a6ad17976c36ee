"""Deadlines of many members, kept by one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NoReturn, TypeVar

import trio

__all__ = ["Timeouts"]

T = TypeVar("T")


class Timeouts(Generic[T]):
    """Calls `run_out(member)` for each member whose deadline has passed.

    For thousands of members that have no task of their own. Deadlines must be set in ascending
    order; one that is earlier than the last one set passes together with it.
    """

    def __init__(self, run_out: Callable[[T], None]) -> None:
        self._run_out = run_out
        self._due: dict[T, float] = {}
        self._came = trio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._due))

    def set(self, member: T, due: float) -> None:
        """Set the member's deadline to `due` (Trio's clock), in place of an earlier one."""
        self._due.pop(member, None)
        self._due[member] = due
        self._came.set()

    def clear(self, member: T) -> None:
        """Remove the member's deadline. Harmless twice."""
        self._due.pop(member, None)

    async def run(self) -> NoReturn:
        """Watch the deadlines until cancelled."""
        while True:
            while not self._due:
                self._came = trio.Event()
                await self._came.wait()  # no deadline: nothing waits yet
            member, due = next(iter(self._due.items()))
            await trio.sleep_until(due)
            if self._due.get(member) == due:
                del self._due[member]
                self._run_out(member)
