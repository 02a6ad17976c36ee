"""The times of many members, in one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NoReturn, TypeVar

import trio

__all__ = ["Timeouts"]

T = TypeVar("T")


class Timeouts(Generic[T]):
    """Calls `run_out(member)` for each member whose time has passed.

    For what comes and goes by the thousand without a task of its own. Times are expected to run out
    in the order in which they are set; one that would be earlier runs out with the one before it.
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
        """Give the member until `due`, on Trio's clock, in place of whatever it had."""
        self._due.pop(member, None)
        self._due[member] = due
        self._came.set()

    def clear(self, member: T) -> None:
        """Call for this member no more. Harmless twice."""
        self._due.pop(member, None)

    async def run(self) -> NoReturn:
        """Watch the times until cancelled."""
        while True:
            while not self._due:
                self._came = trio.Event()
                await self._came.wait()  # no deadline: nothing waits yet
            member, due = next(iter(self._due.items()))
            await trio.sleep_until(due)
            if self._due.get(member) == due:
                del self._due[member]
                self._run_out(member)
