"""One command from the request to its last event."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import trio

from tunnelmux.commands import (
    CameBy,
    CommandRequest,
    Event,
    Exited,
    Output,
    SshUse,
    Started,
    StreamName,
    Truncated,
)
from tunnelmux.ssh.bridge import Bridge
from tunnelmux.ssh.channel import Channel
from tunnelmux.ssh.channel_data import Pieces

__all__ = ["Run"]

UNREAD = 262_144
"""Bytes of output that may wait for a reader; with more, nothing is read from the server. As much
as one window of its channel."""

LARGEST_PIECE = 65_536
"""Bytes of one Output event: small pieces that wait are joined up to this size."""


class Run:
    """One command for its caller: its events in order, and the way to give it up."""

    def __init__(
        self, bridge: Bridge, request: CommandRequest, limit: int, pool_now: Callable[[], SshUse]
    ) -> None:
        """`pool_now` returns the pool's size; this command's own use of it is added to that."""
        self.request = request
        self.started = trio.current_time()
        self.deadline = self.started + request.timeout
        self.scope = trio.CancelScope()
        """Cancelled when the command is no longer wanted."""
        self.over = trio.Event()
        """Set when the end is known; the last events may still wait to be read."""
        self.channel: Channel | None = None
        """The channel that delivers its output; set before the first byte."""
        self.lost_connections = 0
        """How many dead connections it has met before it was started."""
        self.refusals = 0
        """How often it got no channel on a connection where nothing else ran."""
        self.cut: Exited | None = None
        """The end to report when the command was ended for another reason than its time."""
        self.came_by: CameBy | None = None
        """How it got its connection; None once an event has reported it."""
        self.connect_seconds: float | None = None
        """How long connecting took, if a connection was made for this command."""
        self._pool_now = pool_now
        self._bridge = bridge
        self._limit = limit
        self._counted: dict[StreamName, int] = {"stdout": 0, "stderr": 0}
        self._truncated: list[StreamName] = []
        self._before: deque[Event] = deque()
        self._output = Pieces()
        self._after: deque[Event] = deque()
        self._waiting = 0
        self._end: Exited | None = None
        self._ended = False
        self._is_started = False
        self._something = trio.Event()

    # -- the caller's side ------------------------------------------------------------------

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> Event:
        """The next event. Cancelling the wait loses nothing."""
        if self._ended:
            raise StopAsyncIteration
        while not (self._before or self._output or self._after):
            self._something = trio.Event()
            await self._something.wait()  # no deadline here: the command has one
        event = self._take()
        if isinstance(event, Exited):
            self._ended = True
        return event

    def leave(self) -> None:
        """The reader is gone. A command that still runs is ended by its own task."""
        self._ended = True
        self.scope.cancel(reason="the command is no longer wanted")

    def _take(self) -> Event:
        if self._before:
            return self._before.popleft()
        if not self._output:
            return self._after.popleft()
        data, stream = self._output.pop()
        pieces, size = [data], len(data)
        while self._output:
            following, its_stream = self._output[0]
            if its_stream != stream or size + len(following) > LARGEST_PIECE:
                break
            pieces.append(self._output.pop()[0])
            size += len(following)
        self._waiting -= size
        if self._waiting <= UNREAD // 2 and self.channel is not None and self.channel.paused:
            with self._bridge.entered():
                self.channel.resume()
        return Output(stream, data if len(pieces) == 1 else b"".join(pieces))

    # -- the command's side -----------------------------------------------------------------

    def stop(self, why: Exited) -> None:
        """End the command for a reason of our own."""
        self.cut = why
        self.scope.cancel(reason="the pool is closing")

    def report_started(self) -> None:
        """Report that the server runs the command, unless its output has shown that before."""
        if not self._is_started:
            self._is_started = True
            self._before.append(Started(self.request.command_id, time.time(), self._tell_use()))
            self._something.set()

    def deliver(self, stream: StreamName, data: bytes) -> bool:
        """Take output; returns whether more may come at once. Many small pieces of both streams in
        turn are joined, a little out of their order."""
        if self._end is not None:
            return True  # what comes after the end has no reader
        self.report_started()
        room = self._limit - self._counted[stream]
        self._counted[stream] += len(data)
        if room < len(data):
            if stream not in self._truncated:
                self._truncated.append(stream)
            data = data[: max(room, 0)]
        if data:
            self._waiting += len(data)
            self._output.append((data, stream))
            self._something.set()
        return self._waiting < UNREAD

    def finish(self, end: Exited) -> None:
        """Report the end; later calls change nothing."""
        if self._end is not None:
            return
        self._end = Exited(
            end.exit_code,
            trio.current_time() - self.started,
            self._counted["stdout"],
            self._counted["stderr"],
            end.reason,
            end.message,
            self._tell_use(),
        )
        self._after.extend(Truncated(stream, self._limit) for stream in self._truncated)
        self._after.append(self._end)
        self._something.set()
        self.over.set()

    def _tell_use(self) -> SshUse:
        use = replace(self._pool_now(), came_by=self.came_by, seconds=self.connect_seconds)
        self.came_by = self.connect_seconds = None
        return use
