"""The interface to run commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tunnelmux.commands.events import Event
from tunnelmux.commands.request import CommandRequest

__all__ = ["Executor"]


class Executor(Protocol):
    """Runs commands."""

    def execute(
        self, request: CommandRequest, *, asked_by: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Run one command: `async with executor.execute(…) as events`, then `async for`.

        The last event is Exited, which also reports every failure: a command's failure is never
        raised. Leaving the block ends the command. `asked_by` is for the audit.
        """
