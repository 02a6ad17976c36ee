"""A Socket.IO agent as a target of commands.

A command may be given to another agent only if this one cannot have begun it. The relay service's
own agents do not report this: a command that was sent to one counts as begun. Our agents ask before
they begin (`command_started`, answered with true or false) and wait for a yes; so a command that
one did not ask about was not begun, even when the connection broke.
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
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.socketio import MessageTooLarge, Socket, SocketOver

__all__ = ["AgentTarget", "Connection"]

_log = get_logger("proxy.agents")

_TRUNCATED = re.compile(r"\n?\[truncated: (stdout|stderr) was over ([0-9]{1,15}) bytes\]\n\Z")
# The line by which our agents report discarded output; see tunnelmux.commands.collect.

_STREAMS: tuple[StreamName, StreamName] = ("stdout", "stderr")

_CANCEL_TIMEOUT = 1.0  # seconds that telling an agent to end a command may take


@dataclass(frozen=True, eq=False)
class Connection:
    """One connection of an agent, and what the agent sent about itself."""

    socket: Socket
    instance: str | None = None
    """Differs when the agent was restarted; None where the agent does not send it."""
    confirms_start: bool = False
    """Whether the agent asks before it begins a command."""
    remote: str = ""
    """The peer's address, as `host:port`."""


@dataclass(eq=False)
class _Command:
    """A command that was given to this agent, and its state."""

    request: CommandRequest
    connection: Connection
    """The connection that it was sent on."""
    has_started: bool = False
    result: Mapping[str, object] | None = None
    gone_at: float | None = None
    """Since when the agent has been disconnected, if it may still bring the result."""
    is_lost: bool = False
    """The agent will not bring a result."""
    is_over: bool = False
    """Its end was reported: it must not be begun any more."""
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
            self.is_lost = True  # the agent was restarted, and does not know the command
        self.notify()


class AgentTarget:
    """The agent with one proxyId, over all its connections. A Target of the Dispatcher."""

    def __init__(self, name: str, limits: SocketIOLimits, reconnect_wait: float) -> None:
        self.name = name
        self.connection: Connection | None = None
        """Its live connection, or None while there is none."""
        self._limits = limits
        self._reconnect_wait = reconnect_wait
        self._late = RepeatedLines("a result came too late")
        self._commands: dict[str, _Command] = {}

    @property
    def busy(self) -> int:
        """Commands it has in progress."""
        return len(self._commands)

    # -- its connections --------------------------------------------------------------------

    def attach(self, connection: Connection) -> None:
        """The agent has connected; an older connection does not count any more."""
        if self.connection is not None:
            self._lose_connection()
        self.connection = connection
        for command in self._commands.values():
            command.find_connection(connection)

    def detach(self, connection: Connection) -> None:
        """This connection has ended; without effect when it was not the live one."""
        if self.connection is connection:
            self.connection = None
            self._lose_connection()

    def _lose_connection(self) -> None:
        for command in self._commands.values():
            command.lose_connection()

    # -- messages from the agent
    # -----------------------------------------------------------------------

    def may_start(self, command_id: object, connection: Connection) -> bool:
        """Whether the agent may begin this command, which was sent on this connection."""
        command = self._commands.get(command_id) if isinstance(command_id, str) else None
        if command is None or command.is_over or command.connection is not connection:
            return False
        command.has_started = True
        command.notify()
        return True

    def take_result(self, command_id: str, result: Mapping[str, object]) -> None:
        """Take the result of a command from the agent."""
        command = self._commands.get(command_id)
        if command is None or command.is_over:
            # The command was reported as lost, or its caller has left.
            if self._late.may_write(self.name):
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
        """Run one command on the agent. See `tunnelmux.commands.Executor`."""
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
            # From here on it may have been begun: whether it arrived is not known.
            command.has_started = True
            if self.connection is not command.connection:
                command.gone_at = trio.current_time()
        if command.has_started:
            yield Started(command.request.command_id, time.time())
            await self._wait_for_result(command)
        # Decided for good: when the agent asks from here on, the answer is no.
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
                pass  # then the agent cannot be told

    def _events_of(self, result: Mapping[str, object], duration: float) -> list[Event]:
        """Turn a result object into events."""
        code, reason = result.get("exitCode"), result.get("reason")
        if code is None:
            code = EXIT_FAILED  # Node.js sends null for a command that a signal ended
        if isinstance(code, bool) or not isinstance(code, int):
            problem = f"{self.name} sent a result whose exitCode is not a whole number"
            return [failure("failed", problem, duration=duration)]
        events: list[Event] = []
        sizes: list[int] = []
        for stream in _STREAMS:
            text = result.get(stream) or ""
            if not isinstance(text, str):
                problem = f"{self.name} sent a result whose {stream} is not a text"
                return [failure("failed", problem, duration=duration)]
            found = _output(stream, text, is_truncated=result.get("truncated") is True)
            sizes.append(sum(len(event.data) for event in found if isinstance(event, Output)))
            events += found
        known = reason if isinstance(reason, str) and reason in REASONS else None
        # Python reports signal n as -n; a shell reports 128 + n.
        code = 128 + min(-code, 127) if code < 0 else min(code, 2**31)
        return [*events, Exited(code, duration, sizes[0], sizes[1], reason=known)]


def _output(stream: StreamName, text: str, *, is_truncated: bool) -> list[Event]:
    events: list[Event] = []
    mark = _TRUNCATED.search(text[-100:]) if is_truncated else None
    if mark is not None and mark[1] == stream:
        text = text[: len(text) - len(mark[0])]
        events.append(Truncated(stream, int(mark[2])))
    # JSON can hold lone surrogates, which UTF-8 cannot.
    data = text.encode("utf-8", "replace")
    return [Output(stream, data), *events] if data else events
