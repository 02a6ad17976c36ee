"""POST /internal/exec: one command on one device or many, as events or as one document."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import trio
from msgspec import UnsetType

from tunnelmux.commands import (
    CommandRequest,
    Event,
    Exited,
    InvalidCommand,
    Output,
    ResultBuilder,
    encode_event,
    failure,
    new_command_id,
)
from tunnelmux.commands.request import check_line, read_fields
from tunnelmux.errors import ConnectError
from tunnelmux.http import UpstreamGone, VisitorGone
from tunnelmux.http.head import first_value, has_member
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import InternalLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.commands.dispatcher import Dispatcher, UnknownDevices
from tunnelmux.proxy.internal.answers import Answer, ApiConnection, ApiError
from tunnelmux.proxy.internal.bodies import MAX_SHARED_ID, ExecAnswer, ExecRequest, ExecResult
from tunnelmux.proxy.internal.body import read_whole_body
from tunnelmux.proxy.internal.routes import Call, Others
from tunnelmux.wire import CALLER_FIELD

__all__ = ["CommandCalls"]

_log = get_logger("proxy.internal")

_GATHERED = 65_536
# Bytes of events that are written at once, at most.

_NOT_BEGUN = "skipped"
_ENDED_EARLY = "aborted"

Report = Callable[[str, CommandRequest, Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A validated call."""

    command: CommandRequest
    names: list[str]
    concurrency: int
    abort_on_error: bool
    asked_by: str

    def command_for(self, name: str) -> CommandRequest:
        """The command for one device, with its own id."""
        if len(self.names) == 1:
            return self.command
        return replace(self.command, command_id=f"{self.command.command_id}.{name}")


class CommandCalls:
    """Serves /internal/exec."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def serve(self, call: Call) -> None:
        """Answer one call and close its connection. A caller that leaves ends its commands."""
        wanted, body = await self._read(call)
        if call.others is not None and self._dispatcher.are_expected(wanted.names):
            holder = await call.others.socketio_at()
            if holder:
                await _pass_on(call, call.others, holder, body)
                return
        server, limits = call.server, call.limits
        server.finish_soon()  # makes the answer announce that the connection closes
        work = _Work(self._dispatcher, wanted)
        started = trio.current_time()
        try:
            if _wants_document(call):
                await _answer_document(server, work, limits)
            else:
                await _answer_events(server, work, limits)
            await server.close()
        finally:
            _log.info(
                "exec ended",
                caller=call.remote,
                command=wanted.command.command_id,
                devices=len(wanted.names),
                succeeded=work.succeeded,
                failed=work.failed,
                seconds=round(trio.current_time() - started, 4),
            )

    async def _read(self, call: Call) -> tuple[_Wanted, bytes]:
        limits = call.limits
        most = limits.max_exec_request
        text = (
            f"the request is larger than {most} bytes (limits.max_exec_request): put large input "
            "into a file on the device"
        )
        body = await read_whole_body(call, most=most, over=ApiError("BODY_TOO_LARGE", text))
        try:
            content = read_json(body, object)
        except BadJson as error:
            raise ApiError("INVALID_JSON", str(error)) from None
        try:
            return self._understand(content, limits, call.remote), body
        except InvalidCommand as error:
            raise ApiError("INVALID_COMMAND", str(error), field=error.field or None) from None

    def _understand(self, content: object, limits: InternalLimits, remote: str) -> _Wanted:
        fields = read_fields(content, ExecRequest)
        selectors = [fields.devices] if isinstance(fields.devices, str) else fields.devices
        for selector in selectors:
            check_line("devices", selector)
        given = fields.command_id
        command_id = new_command_id() if isinstance(given, UnsetType) else given
        command = CommandRequest.of(fields, command_id)
        if command.timeout > limits.max_exec_timeout:
            most = f"{limits.max_exec_timeout * 1000:.0f}"
            raise InvalidCommand("timeout", f"must be at most {most} (limits.max_exec_timeout)")
        at_once = limits.exec_concurrency
        if not isinstance(fields.concurrency, UnsetType):
            if fields.concurrency > at_once:
                raise InvalidCommand(
                    "concurrency", f"must be at most {at_once} (limits.exec_concurrency)"
                )
            at_once = fields.concurrency
        asked_by = check_line("askedBy", fields.asked_by)
        return _Wanted(
            command=command,
            names=self._select(selectors, command, limits),
            concurrency=at_once,
            abort_on_error=fields.abort_on_error,
            asked_by=f"{asked_by} ({remote})" if asked_by and remote else asked_by or remote,
        )

    def _select(
        self, selectors: Sequence[str], command: CommandRequest, limits: InternalLimits
    ) -> list[str]:
        try:
            names = self._dispatcher.select(selectors)
        except UnknownDevices as error:
            shown = error.selector[:64]
            raise ApiError(
                "UNKNOWN_DEVICE",
                f'"{shown}" is no device here and no pattern that one matches; nothing was run',
                field="devices",
            ) from None
        if len(names) > limits.max_exec_devices:
            raise InvalidCommand(
                "devices",
                f"come to {len(names)}, which is over {limits.max_exec_devices} "
                "(limits.max_exec_devices): call for a part of them at a time",
            )
        if len(names) > 1 and len(command.command_id) > MAX_SHARED_ID:
            raise InvalidCommand(
                "commandId", f"must be at most {MAX_SHARED_ID} characters long for several devices"
            )
        return names


class _Work:
    """The commands of one call, `concurrency` of them at a time."""

    def __init__(self, dispatcher: Dispatcher, wanted: _Wanted) -> None:
        self.wanted = wanted
        self.succeeded = 0
        self.failed = 0
        """Includes commands that were not begun."""
        self._dispatcher = dispatcher
        self._left = deque(wanted.names)
        self._running: set[trio.CancelScope] = set()
        self._is_aborted = False

    @property
    def running(self) -> int:
        """Commands in progress."""
        return len(self._running)

    async def run(self, report: Report) -> None:
        """Run all commands; `report` is called with the events of all devices as they come."""
        async with trio.open_nursery() as nursery:
            for _ in range(min(self.wanted.concurrency, len(self._left))):
                nursery.start_soon(self._run_some, report)
        for name in self._left:
            text = "it was not begun, because the command failed on another device"
            await self._end(name, self.wanted.command_for(name), failure(_NOT_BEGUN, text), report)

    async def _run_some(self, report: Report) -> None:
        while self._left and not self._is_aborted:
            name = self._left.popleft()
            command = self.wanted.command_for(name)
            end = await self._run_one(name, command, report)
            if end.exit_code and self.wanted.abort_on_error and not self._is_aborted:
                self._is_aborted = True
                for scope in self._running:
                    scope.cancel(reason="abortOnError")
            await self._end(name, command, end, report)

    async def _run_one(self, name: str, command: CommandRequest, report: Report) -> Exited:
        async def emit(event: Event) -> None:
            await report(name, command, event)

        started = trio.current_time()
        with trio.CancelScope() as scope:
            self._running.add(scope)
            try:
                return await self._dispatcher.run(
                    name, command, asked_by=self.wanted.asked_by, emit=emit
                )
            finally:
                self._running.discard(scope)
        elapsed = trio.current_time() - started
        text = "it was ended, because the command failed on another device"
        return failure(_ENDED_EARLY, text, duration=elapsed)

    async def _end(self, name: str, command: CommandRequest, end: Exited, report: Report) -> None:
        if end.exit_code:
            self.failed += 1
        else:
            self.succeeded += 1
        await report(name, command, end)


# -- by another worker -------------------------------------------------------------------------


async def _pass_on(call: Call, others: Others, holder: str, body: bytes) -> None:
    """Have that worker run all commands of the call, since it has the agents for some of them, and
    pass its answer on as it comes."""
    server, fields = call.server, [(CALLER_FIELD, call.remote.encode("latin-1", "replace"))]
    if (accepted := first_value(call.request.headers, b"accept")) is not None:
        fields.append((b"Accept", accepted))
    server.finish_soon()
    problem = ""
    is_complete = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, server, nursery.cancel_scope)
        try:
            target = call.request.target
            async with others.exchange(holder, b"POST", target, body, fields) as client:
                head = await client.read_head()  # no deadline: the commands have theirs
                kept = [one for one in head.headers if one[0].lower() in _PASSED_ON]
                await server.send_response(head.status, head.reason, kept)
                is_over = False
                while not is_over:
                    data, is_over = await client.read_body()
                    await _send(server, data, call.limits.exec_stall, end=is_over)
            is_complete = True
        except (ConnectError, UpstreamGone) as error:
            problem = str(error)
        except VisitorGone:
            pass  # raised below, where no nursery wraps it in a group
        nursery.cancel_scope.cancel(reason="the answer is over")
    if problem and not server.response_started:
        text = f"{holder}, which has the agents by Socket.IO, ended: {problem}"
        raise ApiError("TUNNEL_ERROR", f"{text}. Whether the command was run is not known")
    if not is_complete:
        raise VisitorGone(problem or "the caller left before its commands had ended")
    await server.close()


_PASSED_ON = frozenset({b"content-type", b"cache-control", b"x-accel-buffering", b"date"})
# Fields of an answer that go on to the caller.


# -- as events --------------------------------------------------------------------------------


async def _answer_events(server: ApiConnection, work: _Work, limits: InternalLimits) -> None:
    """One JSON line per event, as they come; raises VisitorGone when the caller left."""
    wanted = work.wanted
    begin = {"event": "begin", "commandId": wanted.command.command_id, "devices": wanted.names}
    await server.send_response(
        200,
        b"OK",
        [
            (b"Content-Type", b"application/x-ndjson"),
            (b"Cache-Control", b"no-store"),
            (b"X-Accel-Buffering", b"no"),  # otherwise nginx buffers lines up to 4 KiB
        ],
        first=_line(begin),
    )
    # Without a buffer, so that a slow caller holds its devices back. The only writer is never
    # cancelled within a line, even when abortOnError cancels the tasks that send lines to it.
    send, receive = trio.open_memory_channel[bytes](0)

    async def report(name: str, command: CommandRequest, event: Event) -> None:
        more = {"commandId": command.command_id} if isinstance(event, Exited) else {}
        await send.send(_with_fields({"device": name, **more}, encode_event(event)))

    async def run() -> None:
        async with send:
            await work.run(report)

    is_complete = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, server, nursery.cancel_scope)
        nursery.start_soon(run)
        try:
            await _write(server, receive, work, limits)
            is_complete = True
        except VisitorGone:
            pass  # raised below, where no nursery wraps it in a group
        nursery.cancel_scope.cancel(reason="the answer is over")
    if not is_complete:
        raise VisitorGone("the caller left before its commands had ended")
    end = {"event": "end", "succeeded": work.succeeded, "failed": work.failed}
    await _send(server, _line(end), limits.exec_stall, end=True)


async def _write(
    server: ApiConnection,
    lines: trio.MemoryReceiveChannel[bytes],
    work: _Work,
    limits: InternalLimits,
) -> None:
    while True:
        data = b""
        with trio.move_on_after(limits.event_heartbeat):
            try:
                data = await lines.receive()
            except trio.EndOfChannel:
                return
        if not data:
            # Shows the caller that the proxy works, and us that the caller still reads.
            data = _line({"event": "waiting", "running": work.running})
        gathered = bytearray(data)
        while len(gathered) < _GATHERED:
            try:
                gathered += lines.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        await _send(server, bytes(gathered), limits.exec_stall)


async def _send(server: ApiConnection, data: bytes, stall: float, *, end: bool = False) -> None:
    try:
        with trio.fail_after(stall):
            await server.send_body(data, end=end)
    except trio.TooSlowError:
        raise VisitorGone(f"it took nothing for {stall:g} s (limits.exec_stall)") from None


async def _watch(server: ApiConnection, scope: trio.CancelScope) -> None:
    try:
        await server.watch()
    except VisitorGone:
        scope.cancel(reason="the caller is gone")


def _line(content: object) -> bytes:
    return msgspec.json.encode(content) + b"\n"


def _with_fields(fields: Mapping[str, str], line: bytes) -> bytes:
    """The line of a JSON object with more fields in front."""
    return msgspec.json.encode(fields)[:-1] + b"," + line[1:]


# -- as one document --------------------------------------------------------------------------


_ENTRY = 512
# Bytes of a result beside its texts: keys, names and numbers.


class _Document:
    """The results of one call. The limit counts everything that is kept, at its size as JSON."""

    def __init__(self, limit: int) -> None:
        self.results: list[ExecResult] = []
        self._limit = limit
        self._room = limit
        self._unfinished: dict[str, ResultBuilder] = {}

    def add(self, name: str, command: CommandRequest, event: Event) -> None:
        """Add an event of a command; output only while there is room."""
        built = self._unfinished.get(name)
        if built is None:
            built = self._unfinished[name] = ResultBuilder()
            self._room -= _ENTRY
        if isinstance(event, Output):
            kept, size = _fitting(event.data, self._room)
            self._room -= size
            built.keep(event.stream, kept)
            if len(kept) < len(event.data):
                built.note_truncated(event.stream, self._limit)
            return
        built.add(event)
        if isinstance(event, Exited):
            self._room -= len(event.message or "")
            found = self._unfinished.pop(name).result()
            self.results.append(ExecResult.of(name, command.command_id, event.duration, found))


def _fitting(data: bytes, room: int) -> tuple[bytes, int]:
    """The longest prefix that takes at most `room` bytes as JSON, and its size as JSON. A control
    character takes six bytes, an invalid byte of UTF-8 three.
    """
    if room <= 0:
        return b"", 0
    for _ in range(_TRIES):
        size = len(msgspec.json.encode(data.decode("utf-8", "replace"))) - 2
        if size <= room:
            return data, size
        data = data[: len(data) * room // size]
    data = data[: room // 6]
    return data, 6 * len(data)


_TRIES = 8


async def _answer_document(server: ApiConnection, work: _Work, limits: InternalLimits) -> None:
    """All results in one JSON object, when the last is there."""
    document = _Document(limits.max_exec_answer)

    async def report(name: str, command: CommandRequest, event: Event) -> None:
        await trio.lowlevel.checkpoint()
        document.add(name, command, event)

    is_complete = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, server, nursery.cancel_scope)
        await work.run(report)
        is_complete = True
        nursery.cancel_scope.cancel(reason="the commands have ended")
    if not is_complete:
        raise VisitorGone("the caller left before its commands had ended")
    answer = ExecAnswer(
        command_id=work.wanted.command.command_id,
        succeeded=work.succeeded,
        failed=work.failed,
        results=document.results,
    )
    try:
        with trio.fail_after(limits.exec_stall):
            await server.send_answer(Answer.of(answer))
    except trio.TooSlowError:
        raise VisitorGone(f"it took no answer within {limits.exec_stall:g} s") from None


def _wants_document(call: Call) -> bool:
    headers = call.request.headers
    if has_member(headers, b"accept", b"application/x-ndjson"):
        return False
    return has_member(headers, b"accept", b"application/json")
