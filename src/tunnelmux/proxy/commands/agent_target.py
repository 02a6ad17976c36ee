"""One agent that is connected with Socket.IO, as a target of commands.

What decides whether a command may be given to another agent is whether this agent may have begun
it. The relay service's own agents never say so: they are taken to have begun with what was handed
to them. Ours asks before it begins (`command_started`, answered with true or false), and begins
nothing without a yes; so what it did not ask for was not begun, whatever became of the connection.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import trio

from tunnelmux.commands import (
    EXIT_FAILED,
    REASONS,
    CommandRequest,
    Event,
    Exited,
    Output,
    Started,
    StreamName,
    Truncated,
    failure,
)
from tunnelmux.limits import SocketIOLimits
from tunnelmux.observability import get_logger
from tunnelmux.socketio import MessageTooLarge, Socket, SocketOver

__all__ = ["AgentTarget", "Connection"]

_log = get_logger("proxy.agents")

_TRUNCATED = re.compile(r"\n?\[truncated: (stdout|stderr) was over ([0-9]{1,15}) bytes\]\n\Z")
# How a result of ours says that output was thrown away; see tunnelmux.commands.collect.

_STREAMS: tuple[StreamName, StreamName] = ("stdout", "stderr")

_CANCEL_TIMEOUT = 1.0  # s that telling an agent to end a command may take


@dataclass(frozen=True, eq=False)
class Connection:
    """One connection of an agent, and what it said of itself."""

    socket: Socket
    instance: str | None = None
    """Tells an agent that came back from one that was started anew; None where it is not said."""
    confirms_start: bool = False
    """Whether it asks before it begins a command."""
    remote: str = ""
    """Where it comes from, as `host:port`."""


@dataclass(eq=False)
class _Command:
    """A command in this agent's hands, and what became of it."""

    request: CommandRequest
    connection: Connection
    """By which it was handed over."""
    has_started: bool = False
    result: Mapping[str, object] | None = None
    gone_at: float | None = None
    """Since when the agent is not connected, if it may come back with the result."""
    is_lost: bool = False
    """The agent will not come back with a result."""
    is_over: bool = False
    """Its end was told: nothing may be begun any more."""
    changed: trio.Event = field(default_factory=trio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def lose_connection(self) -> None:
        if self.has_started:
            self.gone_at = trio.current_time()
        else:
            self.is_lost = True
        self.notify()

    def find_connection(self, connection: Connection) -> None:
        before = self.connection.instance
        if before is None or before == connection.instance:
            self.gone_at = None
        else:
            self.is_lost = True  # it was started anew, and knows nothing of the command
        self.notify()


class AgentTarget:
    """The agent of one proxyId, through all its connections. A Target of the Dispatcher."""

    def __init__(self, name: str, limits: SocketIOLimits, reconnect_wait: float) -> None:
        self.name = name
        self.connection: Connection | None = None
        """Its live connection, or None while there is none."""
        self._limits = limits
        self._reconnect_wait = reconnect_wait
        self._commands: dict[str, _Command] = {}

    @property
    def busy(self) -> int:
        """Commands it has in progress."""
        return len(self._commands)

    # -- its connections --------------------------------------------------------------------

    def attach(self, connection: Connection) -> None:
        """The agent has connected; an older connection counts no more."""
        if self.connection is not None:
            self._lose_connection()
        self.connection = connection
        for command in self._commands.values():
            command.find_connection(connection)

    def detach(self, connection: Connection) -> None:
        """That connection has ended; nothing happens when it was not the live one any more."""
        if self.connection is connection:
            self.connection = None
            self._lose_connection()

    def _lose_connection(self) -> None:
        for command in self._commands.values():
            command.lose_connection()

    # -- what it says -----------------------------------------------------------------------

    def may_start(self, command_id: object, connection: Connection) -> bool:
        """Whether the agent shall begin that command, which it was handed by that connection."""
        command = self._commands.get(command_id) if isinstance(command_id, str) else None
        if command is None or command.is_over or command.connection is not connection:
            return False
        command.has_started = True
        command.notify()
        return True

    def take_result(self, command_id: str, result: Mapping[str, object]) -> None:
        """The agent has executed a command."""
        command = self._commands.get(command_id)
        if command is None or command.is_over:
            # It was reported as lost, or its caller has left: it cannot be told any more.
            _log.warning("a result came too late", agent=self.name, command=command_id)
            return
        command.result = result
        command.notify()

    # -- commands ---------------------------------------------------------------------------

    @asynccontextmanager
    async def execute(
        self,
        request: CommandRequest,
        *,
        asked_by: str,  # noqa: ARG002  the dispatcher's audit has it
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Have one command executed there. See `tunnelmux.commands.Executor`."""
        async with aclosing(self._execute(request)) as events:
            yield events

    async def _execute(self, request: CommandRequest) -> AsyncGenerator[Event, None]:
        connection = self.connection
        if connection is None:
            yield failure("device-offline", f"{self.name} is not connected")
            return
        if len(self._commands) >= self._limits.socketio_max_commands:
            yield failure("busy", f"{self.name} has {len(self._commands)} commands in progress")
            return
        if request.command_id in self._commands:
            yield failure("failed", f"{self.name} executes a command of this id already")
            return
        command = _Command(request, connection)
        self._commands[request.command_id] = command
        try:
            async with aclosing(self._follow(command)) as events:
                async for event in events:
                    yield event
        finally:
            command.is_over = True
            del self._commands[request.command_id]
            if command.result is None and not command.is_lost:
                await self._cancel(command)

    async def _follow(self, command: _Command) -> AsyncGenerator[Event, None]:
        began = trio.current_time()
        content = command.request.to_json()
        confirms = command.connection.confirms_start
        if confirms:
            content["confirmStart"] = True
        try:
            await command.connection.socket.emit("execute_command", content)
        except SocketOver:
            command.is_lost = True
            yield failure("undelivered", f"{self.name} was lost before it got the command")
            return
        except MessageTooLarge as error:
            command.is_lost = True
            yield failure("failed", f"{self.name} cannot take the command: {error}")
            return
        if confirms:
            await self._wait_for_start(command)
        else:
            # From here on it may have been begun, whether it arrived or not.
            command.has_started = True
            if self.connection is not command.connection:
                command.gone_at = trio.current_time()
        if command.has_started:
            yield Started(command.request.command_id, time.time())
            await self._wait_for_result(command)
        # What is decided now stays: an agent that asks from here on gets a no.
        command.is_over = True
        for event in self._end_of(command, trio.current_time() - began):
            yield event

    async def _wait_for_start(self, command: _Command) -> None:
        with trio.move_on_after(self._limits.socketio_start_timeout):
            while not (command.has_started or command.result is not None or command.is_lost):
                await command.changed.wait()

    async def _wait_for_result(self, command: _Command) -> None:
        patience = command.request.timeout + self._limits.socketio_result_grace
        deadline = trio.current_time() + patience
        while command.result is None and not command.is_lost:
            until = deadline
            if command.gone_at is not None:
                until = min(deadline, command.gone_at + self._reconnect_wait)
            with trio.move_on_at(until) as waiting:
                await command.changed.wait()
            if waiting.cancelled_caught:
                command.is_lost = command.gone_at is not None
                return

    def _end_of(self, command: _Command, duration: float) -> list[Event]:
        if command.result is not None:
            return self._events_of(command.result, duration)
        if not command.has_started:
            if command.is_lost:
                return [failure("undelivered", f"{self.name} was lost before it began")]
            patience = self._limits.socketio_start_timeout
            return [failure("busy", f"{self.name} did not begin within {patience:g} s")]
        problem = f"{self.name} did not send its result in time"
        if command.is_lost:
            problem = f"{self.name} was lost, and how the command ended is not known"
        return [failure("lost", problem, duration=duration)]

    async def _cancel(self, command: _Command) -> None:
        """Tell an agent of ours that the command's caller is gone."""
        connection = self.connection
        if connection is None or not command.connection.confirms_start:
            return
        with trio.move_on_after(_CANCEL_TIMEOUT, shield=True):
            try:
                content = {"commandId": command.request.command_id}
                await connection.socket.emit("cancel_command", content)
            except (SocketOver, MessageTooLarge):
                pass  # then it is not there to be told

    def _events_of(self, result: Mapping[str, object], duration: float) -> list[Event]:
        """A result object as events."""
        code, reason = result.get("exitCode"), result.get("reason")
        if code is None:
            code = EXIT_FAILED  # Node's: the command was ended by a signal
        if isinstance(code, bool) or not isinstance(code, int):
            problem = f"{self.name} sent a result whose exitCode is no whole number"
            return [failure("failed", problem, duration=duration)]
        events: list[Event] = []
        sizes: list[int] = []
        for stream in _STREAMS:
            text = result.get(stream) or ""
            if not isinstance(text, str):
                problem = f"{self.name} sent a result whose {stream} is no text"
                return [failure("failed", problem, duration=duration)]
            found = _output(stream, text, is_truncated=result.get("truncated") is True)
            sizes.append(sum(len(event.data) for event in found if isinstance(event, Output)))
            events += found
        known = reason if isinstance(reason, str) and reason in REASONS else None
        # Python's way to name the signal that ended a program, as the shell has it.
        code = 128 + min(-code, 127) if code < 0 else min(code, 2**31)
        return [*events, Exited(code, duration, sizes[0], sizes[1], reason=known)]


def _output(stream: StreamName, text: str, *, is_truncated: bool) -> list[Event]:
    events: list[Event] = []
    mark = _TRUNCATED.search(text[-100:]) if is_truncated else None
    if mark is not None and mark[1] == stream:
        text = text[: len(text) - len(mark[0])]
        events.append(Truncated(stream, int(mark[2])))
    # JSON can hold halves of characters, which UTF-8 cannot.
    data = text.encode("utf-8", "replace")
    return [Output(stream, data), *events] if data else events
