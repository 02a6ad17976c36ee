"""The events of all nodes as one sequence, in a stream of Redis.

Pub/sub would lose what happens while a node's connection is cut; from a stream it reads on where it
was. Each event has a number, and the sequence an *epoch*: a random name that changes when Redis has
lost events. Numbers of one epoch mean the same at every node.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import trio

from tunnelmux.directory.resp import Redis, RedisFailed, Script
from tunnelmux.directory.scripts import PREFIX, whole
from tunnelmux.observability import get_logger

__all__ = ["EventStream"]

_log = get_logger("directory")

_ANSWER_TIMEOUT = 1.0
# Seconds that Redis gets for an answer.

_RETRY = 0.5
# Seconds until a Redis that gave no answer is asked again.

_QUIET = 5.0
# Seconds without an event after which the stream is read all the same: the epoch may be another.

_GATHER = 0.05
# Seconds for which events gather before they are read: so many readings a second, however many
# events there are.

_AT_ONCE = 100
# Events that one call writes, and that one call reads: some 30 KB, a millisecond of Redis' time.

_GOODBYE = 1.0
# Seconds for the last events of a node that shuts down.


class EventStream:
    """One node's end of the stream, which keeps the last *history* events.

    *on_restart* is called with the epoch and the number of the last event before those that follow;
    *on_event* with each event's number and text, also those of this node. While Redis is away, the
    node tells its own events itself, under an epoch of its own; the others get them when Redis is
    back. An event may come twice when an answer of Redis was lost.
    """

    def __init__(
        self,
        history: int,
        on_restart: Callable[[str, int], None],
        on_event: Callable[[int, str], None],
    ) -> None:
        self._redis: Redis | None = None
        self.history = max(1, history)
        """How many events are kept."""
        self._on_restart = on_restart
        self._on_event = on_event
        self._scripts = {
            name: Script(whole(name, lease=0, most_places=0, shards=0)) for name in ("tell", "hear")
        }
        self._pending: deque[str] = deque()
        self._work = trio.Event()
        self._epoch = ""
        self._after = 0
        self._is_read = False  # whether it was read to its end
        self._own_count: int | None = None  # events told since Redis is away; None while it is not

    def publish(self, text: str) -> None:
        """Tell all nodes of an event."""
        self._pending.append(text)
        if len(self._pending) > self.history:
            self._pending.popleft()
        self._work.set()
        if self._own_count is not None:
            self._own_count += 1
            self._on_event(self._own_count, text)

    async def run(
        self, redis: Redis, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Write and read until cancelled. Started when Redis was first asked for its events."""
        self._redis = redis
        try:
            await self._read_once()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_all)
                nursery.start_soon(self._write_all)
        finally:
            with trio.move_on_after(_GOODBYE, shield=True):
                try:
                    while self._pending:
                        await self._write_some()
                except RedisFailed:
                    _log.info("last events not told", count=len(self._pending))
        raise AssertionError  # neither of the two ends

    async def _write_all(self) -> NoReturn:
        while True:  # until the node ends
            await self._work.wait()
            self._work = trio.Event()
            while self._pending:
                try:
                    await self._write_some()
                except RedisFailed:
                    await trio.sleep(_RETRY)

    async def _write_some(self) -> None:
        texts = [self._pending[number] for number in range(min(_AT_ONCE, len(self._pending)))]
        await self._run("tell", secrets.token_hex(4), self.history, *texts)
        for text in texts:
            # More may have come meanwhile, and pushed out the first ones.
            if self._pending and self._pending[0] is text:
                self._pending.popleft()

    async def _read_all(self) -> NoReturn:
        while True:  # until the node ends
            if self._own_count is not None:
                await trio.sleep(_RETRY)
            await self._read_once()

    async def _read_once(self) -> None:
        """Wait until there may be more than was read, and read some of it."""
        try:
            if self._is_read:
                await self._wait()
                await trio.sleep(_GATHER)
            self._is_read = await self._read_some()
        except RedisFailed:
            self._is_read = False
            self._note_away()

    async def _read_some(self) -> bool:
        """Read what is new; whether that is all."""
        spare = secrets.token_hex(4)
        answer = await self._run("hear", spare, self._epoch, self._after, _AT_ONCE)
        try:
            epoch, last, entries = answer
            found = [(int(number.partition("-")[0]), text[1]) for number, text in entries]
            last = int(last)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise RedisFailed("it answered something that none of our scripts does") from error
        if epoch != self._epoch or self._own_count is not None:
            self._own_count = None
            if epoch != self._epoch:
                self._epoch, self._after = epoch, found[0][0] - 1 if found else last
            self._on_restart(epoch, self._after)
        for number, text in found:
            if number != self._after + 1:  # those between are not kept any more
                self._on_restart(epoch, number - 1)
            self._after = number
            self._on_event(number, text)
        return self._after >= last or not found

    def _note_away(self) -> None:
        if self._own_count is None:
            self._on_restart(secrets.token_hex(4), 0)
            self._own_count = 0
            for text in self._pending:
                self._own_count += 1
                self._on_event(self._own_count, text)

    async def _wait(self) -> None:
        assert self._redis is not None  # it runs
        with trio.move_on_after(_QUIET + _ANSWER_TIMEOUT) as waiting:
            await self._redis.wait_entry(f"{PREFIX}events", f"{self._after}-1", _QUIET)
        if waiting.cancelled_caught:
            raise RedisFailed("it gave no answer in time")

    async def _run(self, name: str, *words: str | int) -> Any:  # what the script answers
        assert self._redis is not None  # it runs
        with trio.move_on_after(_ANSWER_TIMEOUT):
            return await self._redis.run(self._scripts[name], [], [str(word) for word in words])
        raise RedisFailed(f"it gave no answer within {_ANSWER_TIMEOUT:g} s")
