"""The one place where Trio and asyncio meet: an asyncio loop that lives inside the Trio run.

Every function here is Trio-flavoured. asyncio callbacks run in the Trio task of `open_bridge`, so
they may set Trio events; they may not wait.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import trio

from tunnelmux.ssh.python314 import repair_asyncio, repair_trio_asyncio

repair_asyncio()

with warnings.catch_warnings():
    # It subclasses the child watcher, and Python 3.12 and 3.13 warn that 3.14 has none.
    warnings.simplefilter("ignore", DeprecationWarning)
    import trio_asyncio  # type: ignore[import-untyped]

repair_trio_asyncio(trio_asyncio.BaseTrioEventLoop)

__all__ = ["Bridge", "Pending", "open_bridge"]

T = TypeVar("T")

CANCEL_AGAIN = 1.0
"""Seconds that a cancelled task may take to clean up before it is cancelled once more."""

# Would come with every connection to a server without elliptic curves, and nothing can be done.
warnings.filterwarnings("ignore", message="Diffie-Hellman over finite fields")

# asyncssh writes each command at "info" and each packet at "debug", passwords included.
logging.getLogger("asyncssh").setLevel(logging.WARNING)


class Pending(Generic[T]):
    """An asyncio task that Trio code can wait for, or leave alone."""

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task
        self._done = trio.Event()
        self._then: Callable[[], None] | None = None
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio logs that it is not awaited
        self._done.set()
        if self._then is not None:
            self._then()

    def when_done(self, call: Callable[[], None]) -> None:
        """Have `call` called once, as soon as the task is over."""
        assert not self.done
        self._then = call

    @property
    def done(self) -> bool:
        return self._done.is_set()

    async def wait(self) -> None:
        """Return when the task is over. Cancelling the wait does not touch the task."""
        await self._done.wait()

    async def unwind(self) -> None:
        """Cancel the task, and return when it is over; this wait cannot be cancelled.

        trio-asyncio loses a cancel while a function of the task runs in a thread: the task gets
        the function's result instead, and goes on. So a task that is not over after CANCEL_AGAIN
        is cancelled once more.
        """
        with trio.CancelScope(shield=True):
            while not self.done:
                self._task.cancel()
                with trio.move_on_after(CANCEL_AGAIN):
                    await self.wait()

    def result(self) -> T:
        """What the task returned or raised; asyncio's cancellation becomes a ConnectionError."""
        try:
            return self._task.result()
        except asyncio.CancelledError:
            raise ConnectionError("the operation was cancelled") from None


class Bridge:
    """An asyncio loop that is running."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this the running loop within the block, for plain calls into asyncio code."""
        token = trio_asyncio.current_loop.set(self._loop)
        try:
            yield
        finally:
            trio_asyncio.current_loop.reset(token)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Pending[T]:
        """Run an asyncio coroutine as a task. The caller must make sure that it ends."""
        with self.entered():
            return Pending(self._loop.create_task(coroutine))

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run an asyncio coroutine to its end. When cancelled, it waits until that is unwound."""
        pending = self.start(coroutine)
        try:
            await pending.wait()
        except trio.Cancelled:
            await pending.unwind()
            raise
        return pending.result()

    @property
    def task_count(self) -> int:
        """How many asyncio tasks are not over yet."""
        return len(asyncio.all_tasks(self._loop))


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """An asyncio loop for the length of the block. The block must not raise."""
    async with trio_asyncio.open_loop() as loop:
        yield Bridge(loop)
