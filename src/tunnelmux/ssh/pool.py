"""Runs commands over SSH, on connections that are kept for the next command."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncssh
import trio

from tunnelmux.commands import (
    CameBy,
    CommandRequest,
    CommandResult,
    Event,
    Exited,
    SshUse,
    collect,
    failure,
)
from tunnelmux.observability import get_logger
from tunnelmux.ssh.bridge import Bridge, open_bridge
from tunnelmux.ssh.channel import Channel
from tunnelmux.ssh.connection import (
    Connection,
    Ending,
    Login,
    Opening,
    connect,
    explain_failure,
)
from tunnelmux.ssh.credentials import LoginKey, login_key
from tunnelmux.ssh.failure import SshFailure
from tunnelmux.ssh.run import Run

__all__ = ["PoolFigures", "SshPool", "open_pool"]

REAP_INTERVAL = 5.0
"""Seconds between two checks for idle connections; less when they are kept for less."""

QUIET_AFTER_EXIT = 2.0
"""Seconds without output after which the channel of a command that has exited is closed. A process
that it left in the background holds its output open, and ssh would wait for that process for
ever."""

_LOOK = 0.1
# Seconds between two looks whether the output of a command whose time is over is read.

CLOSE_GRACE = 10.0
"""Seconds that closing a pool may take: commands are ended first, each within kill_grace and a few
seconds."""

LOST_CONNECTIONS = 2
"""Dead connections that one command may meet before it was started; then it fails. A restarted
server leaves one behind, and another may have been made in the same moment."""

MOST_REFUSALS = 8
"""How often a server may refuse one command a channel, while nothing else runs there, before
another connection is tried."""

REFUSAL_PAUSE = 0.1
"""Seconds to wait after the first such refusal, twice as long after the second, and so on: 3.6 s in
all, enough for a server to notice that a process has ended."""

_PASSING = frozenset({asyncssh.OPEN_CONNECT_FAILED, asyncssh.OPEN_RESOURCE_SHORTAGE})
# Refusals of a channel that may only mean that no place is free (RFC 4254 section 5.1).

ATTEMPT_PAUSE = 1.0
"""Seconds after a failed attempt before one more connection is tried, when others to that server
work: it may limit them (MaxStartups), and commands can wait for a place on the others."""

_log = get_logger("ssh")


@dataclass(slots=True)
class PoolFigures:
    """Counters of a pool, for metrics."""

    commands: int = 0
    connects: int = 0
    connect_failures: int = 0
    reused: int = 0
    """Commands that ran on a connection made for an earlier one."""
    killed: int = 0
    not_killed: int = 0
    """Commands that may still run although their time is over."""


class _Attempt:
    """One attempt to make a connection, for all commands that wait for it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.error: SshFailure | None = None
        self._began = trio.current_time()
        self._result: CameBy | None = None
        self._seconds = 0.0

    def end(self, result: CameBy) -> None:
        """Note the result: there is a connection now, or it failed."""
        self._result = result
        self._seconds = trio.current_time() - self._began

    def tell(self, run: Run) -> None:
        """Give the result to the first command that waited, so that it counts once."""
        if self._result is not None:
            run.came_by, run.connect_seconds = self._result, self._seconds
            self._result = None


class _Group:
    """The connections with one login, and the commands that wait for one."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.waiting: deque[trio.Event] = deque()
        self.attempt: _Attempt | None = None
        self.no_attempt_before = -math.inf

    def wake(self) -> None:
        if self.waiting:
            self.waiting.popleft().set()

    def wake_all(self) -> None:
        while self.waiting:
            self.waiting.popleft().set()


class SshPool:
    """Runs commands; an Executor. Made by `open_pool`."""

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, login: Login) -> None:
        self.figures = PoolFigures()
        self._bridge = bridge
        self._nursery = nursery
        self._login = login
        self._limits = login.limits
        self._groups: dict[LoginKey, _Group] = {}
        self._starved: deque[_Group] = deque()
        self._runs: set[Run] = set()
        self._ending = 0
        self._idle = trio.Event()
        self._closing = False

    @asynccontextmanager
    async def execute(
        self,
        request: CommandRequest,
        *,
        asked_by: str = "",  # noqa: ARG002
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Run one command. See `tunnelmux.commands.Executor`."""
        run = Run(self._bridge, request, self._limits.max_output, self._now)
        self.figures.commands += 1
        if self._closing:
            run.finish(failure("lost", "this program is shutting down"))
        else:
            self._runs.add(run)
            self._nursery.start_soon(self._drive, run)
        try:
            yield run
        finally:
            run.leave()

    async def run(self, request: CommandRequest) -> CommandResult:
        """Run one command to its end, and return its result in one object."""
        async with self.execute(request) as events:
            return await collect(events)

    # -- one command ------------------------------------------------------------------------

    async def _drive(self, run: Run) -> None:
        """Run one command until it has ended in any way; this task owns its channel."""
        key = login_key(run.request)
        connection: Connection | None = None
        opening: Opening | None = None
        try:
            with run.scope:
                with trio.CancelScope(deadline=run.deadline):
                    while opening is None or opening.refused:
                        connection = await self._acquire(key, run)
                        # No other task can have taken the place: there is no await in between.
                        run.channel = Channel(run.deliver)
                        opening = connection.open(run.request, run.channel)
                        await self._opened(connection, opening, run)
                    run.report_started()
                    await _to_its_end(self._bridge, opening.channel)
                if opening is not None and opening.channel.exit_code is not None:
                    # It has exited; only output is still to come, as fast as its reader takes it.
                    await _take_the_rest(self._bridge, opening.channel)
        except SshFailure as problem:
            run.finish(problem.exited())
        finally:
            with trio.CancelScope(shield=True):  # bounded: each wait in _finish has a deadline
                await self._finish(run, connection, opening)
            self._runs.discard(run)
            self._note_idle()

    async def _opened(self, connection: Connection, opening: Opening, run: Run) -> None:
        """Return when the server runs the command, or with `opening.refused` to try another
        connection. That is done only if the server was not asked to run the command.

        Opening the channel also probes a connection that was idle, at no extra cost. Raises
        SshFailure.
        """
        limits = self._limits
        with trio.move_on_after(math.inf if opening.beside else limits.probe_timeout):
            await opening.answered.wait()
        if not opening.answered.is_set():
            _log.info("connection dead", host=str(connection.key), cause="no answer to a probe")
            connection.abort()
        await opening.pending.wait()  # within the command's own time
        try:
            opening.pending.result()
        except Exception as exc:  # a server must not end the pool
            opening.refused = True
            with self._bridge.entered():
                opening.channel.close()
            self._release(connection, opening)
            if not self._may_try_another(connection, opening, exc, run):
                if opening.asked and connection.closed.is_set():
                    raise SshFailure("lost", f"{connection.key} closed the connection") from exc
                raise explain_failure(exc, connection.key, run.request) from exc
            if not opening.beside and not connection.closed.is_set():
                await trio.sleep(run.refusals * REFUSAL_PAUSE)  # within the command's own time
        else:
            with self._bridge.entered():
                opening.channel.write_input(run.request.stdin)

    def _may_try_another(
        self, connection: Connection, opening: Opening, exc: Exception, run: Run
    ) -> bool:
        if opening.asked:
            return False
        if connection.closed.is_set() or not isinstance(exc, asyncssh.ChannelOpenError):
            run.lost_connections += 1
            return run.lost_connections <= LOST_CONNECTIONS
        if opening.beside:
            # The server allows fewer channels than we thought; keep one free to end commands with.
            connection.capacity = max(1, min(connection.capacity, opening.beside) - 1)
            return True
        if exc.code not in _PASSING:
            return False
        # No other command of ours runs there. The server may not have cleared the last channel away
        # yet, or a process that was left behind still has it.
        run.refusals += 1
        if run.refusals > MOST_REFUSALS:
            self._close_idle(connection)  # this command, or the next one, gets a new connection
        return run.refusals <= MOST_REFUSALS + 1

    async def _finish(
        self, run: Run, connection: Connection | None, opening: Opening | None
    ) -> None:
        late = f"no end within {run.request.timeout:g} s"
        if connection is None or opening is None or opening.refused:
            run.finish(run.cut or failure("timeout", f"{late}: it was not even started"))
            return
        channel = opening.channel
        if channel.exit_code is not None and not channel.unfinished:
            run.finish(Exited(channel.exit_code))
        elif channel.ended.is_set():
            run.finish(_without_status(connection, channel))
        else:
            if not opening.pending.done:
                run.finish(
                    run.cut or failure("timeout", f"{late}: it may still be started and run")
                )
            if not await self._end(connection, opening, run.request):
                message = f"{late}: it could not be killed and may still run"
                run.finish(run.cut or failure("timeout", message))
                return
            run.finish(run.cut or failure("timeout", f"{late}: the command was killed"))
        self._release(connection, opening)

    async def _end(self, connection: Connection, opening: Opening, request: CommandRequest) -> bool:
        """End a command. True when it is gone, so that its place can be released."""
        ending = await connection.end(opening)
        if ending == "no-channel":
            ending = await self._end_from_elsewhere(connection, opening, request)
        if ending == "gone":
            self.figures.killed += 1
            return True
        self.figures.not_killed += 1
        _log.warning(
            "command not killed", host=str(connection.key), effect="it may still run there"
        )
        self._nursery.start_soon(self._end_later, connection, opening)
        return False

    async def _end_from_elsewhere(
        self, connection: Connection, opening: Opening, request: CommandRequest
    ) -> Ending:
        """End a command when its own connection has no channel for that (MaxSessions 1)."""
        other: Connection | None = None
        try:
            with trio.move_on_after(self._limits.probe_timeout):
                other = await connect(self._bridge, connection.key, request, self._login)
        except SshFailure as problem:
            _log.info("ssh connection failed", host=str(connection.key), reason=problem.reason)
        if other is None:
            return await connection.conclude(opening, None)
        try:
            killing = await other.run_killer(opening.mark, anywhere=True)
        finally:
            await other.close()
        return await connection.conclude(opening, killing)

    async def _end_later(self, connection: Connection, opening: Opening) -> None:
        self._ending += 1
        try:
            await connection.end_with_all(opening)  # as long as the other commands may take
        finally:
            self._release(connection, opening)
            self._ending -= 1
            self._note_idle()

    # -- connections ------------------------------------------------------------------------

    async def _acquire(self, key: LoginKey, run: Run) -> Connection:
        """A connection with room for one more command. Raises SshFailure when none can be made."""
        group = self._groups.setdefault(key, _Group())
        waited = False
        while True:
            for connection in group.connections:
                if connection.usable:
                    self.figures.reused += not waited
                    run.came_by = run.came_by or "reused"
                    return connection
            attempt = self._attempt(key, run.request, group)
            waited = True
            await self._wait_in(key, group, attempt, run)
            if attempt is not None and attempt.error is not None and not group.connections:
                raise SshFailure(attempt.error.reason, str(attempt.error))

    def _attempt(self, key: LoginKey, request: CommandRequest, group: _Group) -> _Attempt | None:
        """The group's attempt to connect. Starts one if there is none and one more is allowed."""
        if group.attempt is not None or self._closing:
            return group.attempt
        if len(group.connections) >= self._limits.connections_per_login:
            return None
        if group.connections and trio.current_time() < group.no_attempt_before:
            return None
        if not self._has_room():
            if group not in self._starved:
                self._starved.append(group)
            return None
        group.attempt = _Attempt()
        self._nursery.start_soon(self._make, key, request, group, group.attempt)
        return group.attempt

    async def _wait_in(
        self, key: LoginKey, group: _Group, attempt: _Attempt | None, run: Run
    ) -> None:
        event = trio.Event()
        group.waiting.append(event)
        try:
            await event.wait()  # within the command's own time
        except BaseException:
            if event.is_set():
                group.wake()  # give the turn to another task
            else:
                group.waiting.remove(event)
            if group.attempt is not None and not group.waiting:
                group.attempt.scope.cancel(reason="the connection is no longer wanted")
                group.attempt.end("failed")
            self._forget(key, group)
            raise
        finally:
            if attempt is not None:
                attempt.tell(run)

    async def _make(
        self, key: LoginKey, request: CommandRequest, group: _Group, attempt: _Attempt
    ) -> None:
        """Make one connection for all that wait in the group, and watch it until it is closed."""
        connection = None
        try:
            with attempt.scope:
                connection = await connect(self._bridge, key, request, self._login)
                group.connections.append(connection)
                self.figures.connects += 1
                attempt.end("new")
        except SshFailure as problem:
            self.figures.connect_failures += 1
            attempt.error = problem
            attempt.end("failed")
            group.no_attempt_before = trio.current_time() + ATTEMPT_PAUSE
            _log.info("ssh connection failed", host=str(key), reason=problem.reason)
        finally:
            group.attempt = None
            group.wake_all()
            self._forget(key, group)
        if connection is not None:
            await connection.closed.wait()  # no deadline: as long as the connection lasts
            connection.notify()
            self._drop(connection)

    def _release(self, connection: Connection, opening: Opening) -> None:
        connection.release(opening)
        if connection.retired and not connection.running:
            self._drop(connection)
            self._nursery.start_soon(connection.close)
            return
        group = self._groups.get(connection.key)
        if group is not None:
            group.wake()
        if not connection.running and self._starved:
            self._starved.popleft().wake_all()

    def _drop(self, connection: Connection) -> None:
        """Take the connection out, and give its place to the tasks that wait."""
        group = self._groups.get(connection.key)
        if group is not None and connection in group.connections:
            group.connections.remove(connection)
            group.wake()
            self._forget(connection.key, group)
        if self._starved:
            self._starved.popleft().wake_all()

    def _forget(self, key: LoginKey, group: _Group) -> None:
        if not group.connections and not group.waiting and group.attempt is None:
            self._groups.pop(key, None)

    def _has_room(self) -> bool:
        """Whether one more connection may be made; closes an idle one if needed."""
        groups = self._groups.values()
        count = self.connection_count + sum(group.attempt is not None for group in groups)
        if count < self._limits.max_connections:
            return True
        idle = [one for group in groups for one in group.connections if not one.running]
        if not idle:
            return False
        self._close_idle(min(idle, key=lambda one: one.idle_since))
        return True

    def _close_idle(self, connection: Connection) -> None:
        connection.retired = True
        group = self._groups.get(connection.key)
        if group is not None and connection in group.connections:
            group.connections.remove(connection)
        self._nursery.start_soon(connection.close)

    @property
    def connection_count(self) -> int:
        """How many connections can be given commands."""
        return sum(len(group.connections) for group in self._groups.values())

    def _now(self) -> SshUse:
        most = self._limits.idle_connection
        return SshUse(pooled=self.connection_count, kept_for=most + _reap_interval(most))

    @property
    def running(self) -> int:
        """How many commands are not over, counting those that are being ended."""
        return len(self._runs)

    def connections(self) -> list[Connection]:
        """All connections, for counting."""
        return [one for group in self._groups.values() for one in group.connections]

    # -- for the pool's whole life ----------------------------------------------------------

    async def reap(self) -> None:
        """Close connections that have been idle for `idle_connection` seconds. Runs for ever."""
        most = self._limits.idle_connection
        while True:
            await trio.sleep(_reap_interval(most))
            old = trio.current_time() - most
            for connection in self.connections():
                if not connection.running and connection.idle_since <= old:
                    self._close_idle(connection)

    def _note_idle(self) -> None:
        if not self._runs and not self._ending:
            self._idle.set()

    async def close(self) -> None:
        """End all commands and close all connections, within CLOSE_GRACE. Call it shielded."""
        self._closing = True
        with trio.move_on_after(CLOSE_GRACE):
            for run in self._runs:
                run.stop(failure("lost", "this program is shutting down"))
            while self._runs or self._ending:
                self._idle = trio.Event()
                await self._idle.wait()
            async with trio.open_nursery() as nursery:
                for connection in self.connections():
                    nursery.start_soon(connection.close)
        for connection in self.connections():
            connection.abort()


def _reap_interval(idle_connection: float) -> float:
    return min(REAP_INTERVAL, idle_connection / 2)


async def _to_its_end(bridge: Bridge, channel: Channel) -> None:
    """Return when the command has exited and its output is complete, or the channel is over."""
    await channel.exited.wait()  # within the command's own time
    while not channel.ended.is_set():
        before = channel.received
        with trio.move_on_after(QUIET_AFTER_EXIT):
            await channel.ended.wait()
        if channel.received == before and not channel.paused and not channel.ended.is_set():
            with bridge.entered():
                channel.close()
            return


async def _take_the_rest(bridge: Bridge, channel: Channel) -> None:
    """Return when the output is complete, or there was time enough for it while it was read: what a
    command has left in the background may write for ever."""
    left = QUIET_AFTER_EXIT
    while left > 0 and not channel.ended.is_set():
        with trio.move_on_after(_LOOK):
            await channel.ended.wait()
        if not channel.paused:
            left -= _LOOK
    if not channel.ended.is_set():
        with bridge.entered():
            channel.close()


def _without_status(connection: Connection, channel: Channel) -> Exited:
    if channel.lost is not None or connection.closed.is_set():
        return failure("lost", f"{connection.key} closed the connection while the command ran")
    return failure("failed", f"{connection.key} did not report how the command ended")


@asynccontextmanager
async def open_pool(login: Login) -> AsyncIterator[SshPool]:
    """A pool for the length of the block; its end also ends all commands and connections."""
    raised: Exception | None = None
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        pool = SshPool(bridge, nursery, login)
        nursery.start_soon(pool.reap)
        try:
            yield pool
        except Exception as exc:  # noqa: BLE001  raised again below, outside of the nurseries
            raised = exc
        finally:
            with trio.CancelScope(shield=True):  # bounded by CLOSE_GRACE
                await pool.close()
            nursery.cancel_scope.cancel(reason="the pool is closed")
    if raised is not None:
        raise raised
