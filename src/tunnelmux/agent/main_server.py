"""The agent as a client of the relay service's main servers: it gets commands and sends results by
Socket.IO.

The events are the relay service's: `execute_command` comes, `command_result` goes, and
`command_result_received` says that it arrived. Unacknowledged results are sent again on the next
connection; a command that was executed once is never executed again. Two events are our own
extension, used only if a main server asks for them in a command (`confirmStart`): before a command
is executed, `command_started` asks whether it is still wanted, and `cancel_command` ends one. See
docs/socketio.md.
"""

from __future__ import annotations

import json
import random
import secrets
import ssl
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

import tunnelmux
from tunnelmux.agent.backoff import new_backoff
from tunnelmux.agent.command_book import CommandBook
from tunnelmux.commands import (
    CommandRequest,
    CommandResult,
    Executor,
    InvalidCommand,
    collect,
    failure,
)
from tunnelmux.config import AgentConfig, MainServer
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.limits import SocketIOLimits
from tunnelmux.observability import BoundedLines, get_logger
from tunnelmux.socketio import (
    EngineSettings,
    Event,
    MessageTooLarge,
    Socket,
    SocketOver,
    connect_socketio,
    parse_socketio_url,
)
from tunnelmux.transports import WayOut, client_context

__all__ = ["MainServerClient"]

_log = get_logger("agent.main_server")

NAMESPACE = "/proxy"

_ENVELOPE = 2048
# Bytes of a command_result's JSON besides its two outputs, and of the marks in those.


class _Work(NamedTuple):
    """A queued command, and the connection it came on."""

    request: CommandRequest
    socket: Socket
    confirms_start: bool


class MainServerClient:
    """Keeps a connection to one main server, and executes its commands."""

    def __init__(
        self,
        config: AgentConfig,
        main: MainServer,
        executor: Executor,
        *,
        max_concurrent: int,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        limits = config.limits
        self._config = config
        self._main = main
        self._executor = executor
        assert main.url is not None  # the configuration has a main server
        assert main.proxy_id is not None
        self._proxy_id = main.proxy_id
        self._url = parse_socketio_url(main.url, namespace=NAMESPACE)
        self._lines, self._source = BoundedLines("agent"), str(self._url)
        self._instance = secrets.token_hex(8)
        self._backoff = new_backoff(config.backoff, uniform)
        self._settings = EngineSettings(
            socketio=limits.socketio,
            session=limits.session,
            handshake_timeout=limits.ingress.handshake_timeout,
            way=WayOut(main.way_out),
        )
        self._ssl_context: ssl.SSLContext | None = None
        if main.is_encrypted:
            self._ssl_context = client_context(main.ca_file, main.pin)
        self._book = CommandBook(
            max_bytes=limits.socketio.socketio_result_memory,
            max_remembered=limits.socketio.socketio_remembered,
        )
        self._max_waiting = max_concurrent + limits.socketio.socketio_max_queued
        self._turns = trio.CapacityLimiter(max_concurrent)
        self._scopes: dict[str, trio.CancelScope] = {}
        self._line: _Line | None = None
        self._draining = False
        self._changed = trio.Event()
        self._reconnecting = trio.CancelScope()
        self._listening = trio.CancelScope()

    def use(self, executor: Executor) -> None:
        """Use this executor for commands that begin from now on."""
        self._executor = executor

    @property
    def is_connected(self) -> bool:
        """Whether the connection to the main server is up."""
        return self._line is not None

    @property
    def unacknowledged(self) -> list[str]:
        """Commands with unacknowledged results, oldest first."""
        return self._book.unacknowledged

    async def wait_connected(self) -> None:
        """Return once the main server has accepted the connection."""
        while self._line is None:
            await self._changed.wait()

    # -- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold connections until drained or cancelled."""
        async with trio.open_nursery() as self._work:
            while not self._draining:
                # A drain cancels this, and only while not connected.
                with trio.CancelScope() as self._reconnecting:
                    delay = await self._attempt()
                    if not self._draining:
                        await trio.sleep(delay)
            self._work.cancel_scope.cancel(reason="the agent is stopping")

    async def drain(self, grace: float) -> None:
        """Take no new commands, let those that run finish and be acknowledged, and stop."""
        self._draining = True
        with trio.move_on_after(grace):
            while self._book.running or (self._line is not None and self._book.unacknowledged):
                await self._changed.wait()
        if self._line is not None:
            self._listening.cancel(reason="the agent is draining")  # and end in order
        else:
            self._reconnecting.cancel(reason="the agent is draining")

    async def _attempt(self) -> float:
        """Serve one connection to its end. Returns the seconds to wait before the next attempt."""
        started = trio.current_time()
        try:
            held_from = await self._hold()
        except (ConnectError, ConfigError) as error:
            # A main server cannot refuse for good, and a key file may be about to be replaced: so
            # every failure is retried.
            hint = error.retry_after if isinstance(error, ConnectError) else None
            # A main server has no field of its own that would tell it from a stranger.
            delay = self._backoff.next_delay(hint, is_ours=False)
            _log.warning("main server not connected", cause=str(error), retry_in=round(delay, 3))
            return delay
        self._backoff.held(trio.current_time() - (held_from or started))
        delay = self._backoff.next_delay()
        if not self._draining:
            _log.info("connecting to the main server again", retry_in=round(delay, 3))
        return delay

    async def _hold(self) -> float:
        key = self._main.read_api_key().reveal()  # one line of a local file, once per connection
        query = {"proxyId": self._proxy_id, "apiKey": key}
        auth = {
            **query,
            "client": f"tunnelmux/{tunnelmux.__version__}",
            "instance": self._instance,
            "confirmsStart": True,
        }
        async with connect_socketio(
            self._url,
            path=self._main.path,
            query=query,
            auth=auth,
            transports=self._main.transports,
            version=3 if self._main.engine_io == 3 else 4,
            ssl_context=self._ssl_context,
            settings=self._settings,
        ) as socket:
            started = trio.current_time()
            _log.info("main server connected", server=str(self._url), proxy_id=self._proxy_id)
            line = _Line(socket, self._book, self._settings.socketio, self._lines, self._source)
            self._line = line
            self._notify()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(line.deliver)
                    with trio.CancelScope() as self._listening:
                        await self._take_events(socket, line)
                    nursery.cancel_scope.cancel()
            finally:
                self._line = None
                self._notify()
        return started

    async def _take_events(self, socket: Socket, line: _Line) -> None:
        try:
            while True:
                await line.wait_for_room()
                event = await socket.receive()
                if event.name == "execute_command":
                    self._take_command(socket, line, event)
                elif event.name == "command_result_received":
                    line.take_receipt(event.args[0] if event.args else None)
                    self._notify()
                elif event.name == "cancel_command":
                    self._cancel(event.args[0] if event.args else None)
        except SocketOver as over:
            _log.warning("main server lost", server=str(self._url), cause=str(over))

    # -- commands ---------------------------------------------------------------------------

    def _take_command(self, socket: Socket, line: _Line, event: Event) -> None:
        content = event.args[0] if event.args else None
        try:
            request = CommandRequest.from_json(content)
        except InvalidCommand as error:
            self._refuse_malformed(line, content, error)
            return
        command_id = request.command_id
        known = self._book.state(command_id)
        if known != "new":
            self._lines.write(
                "command asked for again", self._source, command=command_id, state=known
            )
        if known == "finished":
            line.queue(command_id)
        elif known == "forgotten":
            said = f"{command_id} was executed before, and its result was acknowledged"
            line.answer(command_id, _failed("failed", said))
        elif known == "new":
            problem = self._no_room()
            if problem is not None:
                line.answer(command_id, _failed("busy", problem))
                return
            self._book.begin(command_id)
            confirms = isinstance(content, dict) and content.get("confirmStart") is True
            self._work.start_soon(self._execute, _Work(request, socket, confirms))

    def _no_room(self) -> str | None:
        if self._draining:
            return "this agent is stopping"
        if self._book.running >= self._max_waiting:
            return f"{self._book.running} commands run or wait at this agent already"
        if self._book.is_full:
            return "this agent holds all the unacknowledged results it has room for"
        return None

    def _refuse_malformed(self, line: _Line, content: object, error: InvalidCommand) -> None:
        command_id = content.get("commandId") if isinstance(content, dict) else None
        self._lines.write(
            "malformed command",
            self._source,
            level="warning",
            field=error.field,
            cause=error.message,
        )
        if isinstance(command_id, str) and len(command_id) <= 128:
            result = _failed("failed", f"malformed execute_command: {error}")
        else:
            command_id = None
            result = _failed("failed", f"malformed execute_command without a usable id: {error}")
        line.answer(command_id, {**result, "field": error.field})

    def _cancel(self, content: object) -> None:
        command_id = content.get("commandId") if isinstance(content, dict) else None
        scope = self._scopes.get(command_id) if isinstance(command_id, str) else None
        if scope is not None:
            scope.cancel(reason="the main server ended the command")

    async def _execute(self, work: _Work) -> None:
        command_id = work.request.command_id
        result: dict[str, object] | None = None
        started = False
        try:
            with trio.CancelScope() as scope:
                self._scopes[command_id] = scope
                async with self._turns:
                    if not work.confirms_start or await self._may_start(work):
                        started = True
                        result = await self._run(work.request)
            if result is None and started:
                result = _failed("failed", "the main server ended the command")
        except Exception:  # noqa: BLE001  a bug met by one command is no reason to drop the others
            _log.exception("unhandled error in a command", command=command_id)
            result = _failed("failed", "the agent failed; its log says how")
        finally:
            self._scopes.pop(command_id, None)
            self._conclude(command_id, result)

    def _conclude(self, command_id: str, result: dict[str, object] | None) -> None:
        line = self._line
        if result is None:
            self._book.give_up(command_id)
        elif result.get("reason") == "busy" and line is not None:
            # The executor is busy with other callers, and nothing was run: it may be requested
            # again.
            self._book.give_up(command_id)
            line.answer(command_id, result)
        else:
            self._book.finish(command_id, result)
            if line is not None:
                line.queue(command_id)
        self._notify()

    async def _may_start(self, work: _Work) -> bool:
        """Ask the main server. The command is executed only after its yes, so that it may give the
        command to another agent.
        """
        try:
            answers = await work.socket.call(
                "command_started",
                {"commandId": work.request.command_id},
                timeout=self._settings.handshake_timeout,
            )
        except (SocketOver, MessageTooLarge, trio.TooSlowError):
            return False
        return bool(answers) and answers[0] is True

    async def _run(self, request: CommandRequest) -> dict[str, object]:
        # At most half of the memory for results, so that one command never fills it.
        limit = self._settings.socketio.socketio_result_memory // 4
        async with self._executor.execute(request, asked_by=str(self._url)) as events:
            return (await collect(events, limit=limit)).to_json()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class _Line:
    """One connection, and the results to send on it."""

    def __init__(
        self,
        socket: Socket,
        book: CommandBook,
        limits: SocketIOLimits,
        lines: BoundedLines,
        source: str,
    ) -> None:
        self._lines, self._source = lines, source
        self._socket = socket
        self._book = book
        self._most_queued = limits.socketio_max_queued + limits.socketio_remembered
        # None is for an answer that the book does not keep, to a malformed command.
        self._queue: deque[tuple[str | None, dict[str, object] | None]] = deque()
        self._wanted = trio.Event()
        self._sent = trio.Event()
        # Bounded, because a main server may never acknowledge.
        self._awaited: deque[str | None] = deque(maxlen=limits.socketio_remembered)
        for command_id in book.unacknowledged:
            self.queue(command_id)

    def queue(self, command_id: str) -> None:
        """Queue the result that the book has."""
        if (command_id, None) not in self._queue:
            self._queue.append((command_id, None))
            self._wanted.set()

    def answer(self, command_id: str | None, result: dict[str, object]) -> None:
        """Queue a result to be sent once, on this connection only."""
        self._queue.append((command_id, result))
        self._wanted.set()

    def take_receipt(self, content: object) -> None:
        """Take an acknowledgement: of the result that it names, else of the oldest unacknowledged
        one on this connection.
        """
        command_id: object = None
        if self._awaited:
            command_id = self._awaited.popleft()
        if isinstance(content, dict):
            named = content.get("commandId")
            if isinstance(named, str):
                command_id = named
            if content.get("success") is False:
                self._lines.write(
                    "the main server did not take a result",
                    self._source,
                    level="warning",
                    command=command_id,
                )
        if isinstance(command_id, str):
            self._book.acknowledge(command_id)

    async def wait_for_room(self) -> None:
        """Return when the main server has read enough of our answers."""
        while len(self._queue) > self._most_queued:
            await self._sent.wait()  # the connection's pings bound this wait

    async def deliver(self) -> None:
        """Send queued results until the connection ends."""
        try:
            while True:
                while self._queue:
                    await self._send(*self._queue.popleft())
                    self._sent.set()
                    self._sent = trio.Event()
                await self._wanted.wait()
                self._wanted = trio.Event()
        except SocketOver:
            pass  # the receiving task reports it

    async def _send(self, command_id: str | None, answer: dict[str, object] | None) -> None:
        result = answer
        if result is None:
            result = self._book.result(command_id) if command_id is not None else None
            if result is None:
                return  # acknowledged and dropped meanwhile
        # Registered before sending: the acknowledgement may come while we still wait in the send.
        self._awaited.append(command_id if answer is None else None)
        content = {"commandId": command_id, "result": result}
        try:
            await self._socket.emit("command_result", content)
        except MessageTooLarge as error:
            _log.warning("a result is cut", command=command_id, cause=str(error))
            content["result"] = _cut(result, error.limit)
            try:
                await self._socket.emit("command_result", content)
            except MessageTooLarge:
                # Not even that is accepted: sending it again is useless.
                _log.error("a result cannot be delivered", command=command_id, limit=error.limit)
                if command_id is not None:
                    self._book.acknowledge(command_id)


def _failed(reason: str, message: str) -> dict[str, object]:
    """The result of a command that was not executed."""
    end = failure(reason, message)
    return CommandResult("", f"{message}\n", end.exit_code, reason=reason).to_json()


def _cut(result: dict[str, object], limit: int) -> dict[str, object]:
    """The result with its outputs cut to fit into `limit` bytes of JSON, with a mark that says
    so.
    """
    cut = {**result, "truncated": True}
    texts = {stream: str(result.get(stream, "")) for stream in ("stdout", "stderr")}
    room = max(limit - _ENVELOPE, 0)
    # The longer output gets the room that the shorter one leaves.
    for left, stream in zip((2, 1), sorted(texts, key=lambda name: len(texts[name])), strict=True):
        text = _fitting(texts[stream], room // left)
        room -= len(json.dumps(text))
        if text != texts[stream]:
            text += f"\n[truncated: {stream} was over {len(text.encode())} bytes]\n"
        cut[stream] = text
    return cut


def _fitting(text: str, room: int) -> str:
    """The longest prefix of `text` that takes at most `room` bytes as JSON."""
    while (size := len(json.dumps(text))) > room and text:
        text = text[: min(len(text) * room // size, len(text) - 1)]
    return text
