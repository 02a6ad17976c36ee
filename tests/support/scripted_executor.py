"""An executor that does what the command's text says, without SSH."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tunnelmux.commands import CommandRequest, Event, Exited, Output, Started, failure

__all__ = ["ScriptedExecutor"]


class ScriptedExecutor:
    """`echo TEXT` writes it, `wait` waits until `release()`, `write N` writes N bytes, `exit N`
    ends with N, `busy` is refused as that, `crash` raises. It counts what was begun."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.requests: list[CommandRequest] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self._released = trio.Event()
        self.changed = trio.Event()

    def release(self) -> None:
        """Let all that wait go on."""
        self._released.set()

    async def wait_begun(self, count: int) -> None:
        """Return when that many commands were begun."""
        with trio.fail_after(30):
            while self.begun.total() < count:
                await self.changed.wait()

    @asynccontextmanager
    async def execute(
        self, request: CommandRequest, *, asked_by: str
    ) -> AsyncIterator[AsyncIterator[Event]]:
        self.requests.append(request)
        self.begun[request.command_id] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.changed.set()
        self.changed = trio.Event()
        try:
            yield await self._events(request)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _events(self, request: CommandRequest) -> AsyncIterator[Event]:
        word, _, rest = request.command.partition(" ")
        events: list[Event] = [Started(request.command_id, 0.0)]
        code = 0
        if word == "wait":
            with trio.fail_after(20):
                await self._released.wait()
        elif word == "echo":
            events.append(Output("stdout", f"{rest}\n".encode()))
        elif word == "write":
            events.append(Output("stdout", b"x" * int(rest)))
        elif word == "exit":
            code = int(rest)
        elif word == "busy":
            refused = failure("busy", "others are at work")
            return _only(refused)
        elif word == "crash":
            raise RuntimeError("as the test wished")

        return _only(*events, Exited(code))


async def _only(*events: Event) -> AsyncIterator[Event]:
    for event in events:
        yield event
