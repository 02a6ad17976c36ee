"""asyncio as host and Trio as its guest, in one thread, by public interfaces of both.

asyncssh's callbacks run in asyncio. They wait for Trio with `in_trio`, and start tasks there with
`spawn`. Trio tasks may call asyncssh's plain functions directly: they run inside callbacks of the
asyncio loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

import trio

from tunnelmux.observability import get_logger

__all__ = ["Bridge", "Lane", "run_as_guest"]

_log = get_logger("gateway")

_IN_LANE = 2
# Calls for one peer at a time, which take some milliseconds each.

_MOST_IN_LANE = 128
# Calls for one peer that wait or are worked on. A program that logs in to fifty devices at once has
# one or two for each. A session that waits may have a command of 256 KiB.

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# It would write a line for each packet to a peer that is gone.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
# It writes each command at "info".
logging.getLogger("asyncssh").setLevel(logging.WARNING)


class Bridge:
    """Calls between the two loops. Its Trio tasks belong to the nursery it was made with."""

    def __init__(self, loop: asyncio.AbstractEventLoop, nursery: trio.Nursery) -> None:
        self.loop = loop
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._kept: set[asyncio.Task[Any]] = set()
        self._lanes: WeakValueDictionary[str, _Turns] = WeakValueDictionary()

    def soon(self, call: Callable[[*Ts], object], *args: *Ts) -> None:
        """From asyncio: call this in Trio, soon, or never when Trio has ended. It must not
        raise."""
        with contextlib.suppress(trio.RunFinishedError):  # at a stop, asyncio ends last
            self._token.run_sync_soon(call, *args)

    def spawn(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """From asyncio: run this as a task of the gateway's nursery. It must not raise."""
        self.soon(functools.partial(self._nursery.start_soon, function, *args))

    def start(self, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """From asyncio: run this as a task of asyncio, which is kept until it is over."""
        task = self.loop.create_task(coroutine)
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    async def settle(self) -> None:
        """Awaited in Trio: return once all tasks that were started are over."""
        while self._kept:
            over = trio.Event()
            next(iter(self._kept)).add_done_callback(functools.partial(self._tell, over))
            await over.wait()

    def _tell(self, over: trio.Event, _task: asyncio.Task[Any]) -> None:
        self.soon(over.set)

    async def in_trio(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Awaited in asyncio: run this in Trio and return what it returns or raise what it raises.
        Cancelling the wait cancels it."""
        future: asyncio.Future[T] = self.loop.create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                try:
                    result = await function(*args)
                except Exception as exc:  # noqa: BLE001  raised where it is awaited
                    if not future.done():
                        future.set_exception(exc)
                else:
                    if not future.done():
                        future.set_result(result)
            future.cancel()  # without effect on one that is done

        self.spawn(run)
        try:
            return await future
        except asyncio.CancelledError:
            self.soon(scope.cancel)
            raise

    def lane(self, peer: str) -> Lane:
        """The lane of this peer, one for all its connections."""
        turns = self._lanes.get(peer)
        if turns is None:
            turns = self._lanes[peer] = _Turns(_IN_LANE)
        return Lane(self, turns)

    async def in_asyncio(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Awaited in Trio: run this in asyncio. Cancelling the wait waits until it is unwound."""
        task = self.loop.create_task(coroutine)
        done = trio.Event()
        task.add_done_callback(lambda _: self.soon(done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            task.cancel()
            with trio.CancelScope(shield=True):  # it ends by the cancel, which it cannot refuse
                await done.wait()
            raise
        if task.cancelled():
            raise ConnectionError("the operation was cancelled")
        return task.result()


class _Turns(asyncio.Semaphore):
    """Those of one peer."""

    calls = 0
    """Calls that wait for a turn, or have one."""


class Lane:
    """Calls in Trio for one peer, a few at a time. Those for the registry are worked on in order,
    and without this a person who opens sessions in heaps would be before all others there."""

    def __init__(self, bridge: Bridge, turns: _Turns) -> None:
        self._bridge = bridge
        self._turns = turns

    async def in_trio(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """See `Bridge.in_trio`."""
        self._turns.calls += 1
        try:
            async with self._turns:
                return await self._bridge.in_trio(function, *args)
        finally:
            self._turns.calls -= 1

    @property
    def is_full(self) -> bool:
        """Whether so many calls wait that the peer is to begin nothing more."""
        return self._turns.calls >= _MOST_IN_LANE

    def spawn(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Have this called when its turn comes. It must not raise."""
        self._bridge.start(self.in_trio(function, *args))


def run_as_guest(main: Callable[[asyncio.AbstractEventLoop], Awaitable[T]]) -> T:
    """Run `main` in Trio, as the guest of an asyncio loop, and return what it returns."""

    async def host() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_tell)
        over: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            loop,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=over.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        result: T = (await over).unwrap()
        return result

    # Not the policy's loop: where trio-asyncio is imported, that is one on a Trio of its own.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(host())


def _tell(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an unhandled error of a callback; everything else goes on."""
    _log.error(
        "unhandled error in callback",
        problem=context.get("message", ""),
        exc_info=context.get("exception"),
    )
