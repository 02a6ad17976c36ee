"""How a parent notices that one of its workers hangs: it asks, and the worker's loop answers."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

__all__ = ["NoteSilence", "Watch"]

_INTERVAL = 0.5
# Seconds between two looks. A question and its answer are 40 bytes.


class NoteSilence(Protocol):
    """Is told when half of the time is over, and when the worker answers again after all."""

    def __call__(self, *, is_silent: bool) -> None: ...


class Watch:
    """Asks one worker, which may be silent for *timeout* seconds. *ask* asks and returns with the
    answer.

    What is counted is looks that found no answer, and not the time: when this process was stopped
    itself, or the machine was asleep, that is one look however long it was.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[object]], timeout: float, note: NoteSilence
    ) -> None:
        self._ask = ask
        self._note = note
        self._interval = min(_INTERVAL, timeout / 4)
        self._most = math.ceil(timeout / self._interval)
        self._is_asked = False

    async def run(self) -> None:
        """Ask again and again. Returns when the worker has been silent for too long."""
        missed, is_silent = 0, False
        async with trio.open_nursery() as nursery:
            while missed < self._most:
                if not self._is_asked:
                    self._is_asked = True
                    nursery.start_soon(self._ask_once)
                await trio.sleep(self._interval)
                missed = missed + 1 if self._is_asked else 0
                if is_silent != (2 * missed >= self._most):
                    is_silent = not is_silent
                    self._note(is_silent=is_silent)
            nursery.cancel_scope.cancel(reason="the worker does not answer")

    async def _ask_once(self) -> None:
        await self._ask()
        self._is_asked = False
