"""Turns of handshakes among the other tasks of a process.

Trio runs all tasks that are ready before it looks for more. A flood of handshakes makes hundreds
ready at once, each for a millisecond, and the sessions of others wait for all of them.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tunnelmux.transports.admission import Place

__all__ = ["Turns"]

_AT_ONCE = 2
# Turns between two looks of Trio for tasks that are ready: as long as one portion of the pump.


class Turns:
    """Few at once; the others wait. Addresses take turns, so that a flood from one delays no other.
    A turn is not given back: it lasts until the task waits for something else.
    """

    def __init__(self) -> None:
        self._lines: dict[str, dict[trio.lowlevel.Task, None]] = {}  # the next address first
        self._free = _AT_ONCE

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return sum(map(len, self._lines.values()))

    def pace(self, stream: trio.SocketStream, place: Place) -> None:
        """Have all that is received take a turn, as long as the connection holds this place."""
        _Paced(self, stream, place)

    async def wait(self, source: str) -> None:
        """Wait for a turn of this address. No deadline: it comes after those that wait already."""
        if not self._free:
            await self._wait_in_line(source)
            self._call_next()
            return
        self._free -= 1
        try:
            await trio.lowlevel.checkpoint()  # others that are ready now come to wait
        finally:
            self._call_next()

    async def _wait_in_line(self, source: str) -> None:
        task = trio.lowlevel.current_task()
        line = self._lines.setdefault(source, {})
        line[task] = None

        def leave(_: object) -> trio.lowlevel.Abort:
            del line[task]
            if not line:
                del self._lines[source]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def _call_next(self) -> None:
        """Let the next one have its turn, when those that are ready now have run."""
        source = next(iter(self._lines), None)
        if source is None:
            self._free += 1
            return
        line = self._lines.pop(source)
        task = next(iter(line))
        del line[task]
        if line:
            self._lines[source] = line  # as the last
        trio.lowlevel.reschedule(task)


class _Paced:
    """In the place of a stream's `receive_some`."""

    def __init__(self, turns: Turns, stream: trio.SocketStream, place: Place) -> None:
        self._turns, self._place = turns, place
        self._stream = weakref.ref(stream)  # which has this: a cycle would wait for the collector
        # Trio's streams cannot be derived from.
        setattr(stream, "receive_some", self._receive)  # noqa: B010

    async def _receive(self, max_bytes: int | None = None) -> bytes | bytearray:
        stream = self._stream()
        assert stream is not None  # its caller has it
        data = await trio.SocketStream.receive_some(stream, max_bytes)
        if self._place.is_held:
            await self._turns.wait(self._place.source)
        return data
