"""`POST /v1/exec` of the agent's own API: one command in, its events or its result out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from urllib.parse import unquote

import trio

from tunnelmux.agent.commands import CommandExecutor
from tunnelmux.commands import (
    CommandRequest,
    Event,
    Exited,
    InvalidCommand,
    collect,
    encode_event,
)
from tunnelmux.http import Field, RequestHead, ServerConnection, while_visitor_stays
from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.http.head import first_value, has_member
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.wire import ASKED_BY_FIELD, EXEC_PATH, REASON_FIELD

__all__ = ["serve_exec"]

_MAX_ASKED_BY = 512

_STATUS = {
    "BODY_TOO_LARGE": 413,
    "BUSY": 503,
    "FORBIDDEN": 403,
    "INVALID_BODY": 400,
    "INVALID_COMMAND": 400,
    "INVALID_JSON": 400,
    "METHOD_NOT_ALLOWED": 405,
    "TIMEOUT": 408,
    "UNAVAILABLE": 503,
}
_CODES = {"forbidden": "FORBIDDEN", "busy": "BUSY", "failed": "UNAVAILABLE"}
_REASONS = {"BUSY": "busy", "FORBIDDEN": "forbidden"}


class _ExecError(Exception):
    """Answered as `{"error": {"code", "message", "field"}}`."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


async def serve_exec(
    server: ServerConnection, request: RequestHead, executor: CommandExecutor, timeout: float
) -> None:
    """Answer one request for a command; its body must arrive within `timeout` seconds. Raises
    VisitorGone when the caller leaves; the command is ended then.
    """
    try:
        command = await _read_command(server, request, executor, timeout)
    except _ExecError as error:
        await _send_error(server, error)
        return
    asked_by = first_value(request.headers, ASKED_BY_FIELD.lower()) or b""
    name = unquote(asked_by.decode("latin-1"))[:_MAX_ASKED_BY] or "the proxy"
    refused = executor.refusal(command)
    async with executor.execute(command, asked_by=name) as events:
        if refused is not None:
            code = _CODES[refused.reason or "failed"]
            await _send_error(server, _ExecError(code, str(refused.message)), refused)
            return
        await _answer(server, request, command, events)


async def _answer(
    server: ServerConnection,
    request: RequestHead,
    command: CommandRequest,
    events: AsyncIterator[Event],
) -> None:
    """Send the events or the result of the command, and watch whether the caller leaves."""
    async with while_visitor_stays(server):
        if _wants_result(request):
            result = await collect(events)
            content = {"commandId": command.command_id, "result": result.to_json()}
            await _send_json(server, 200, content)
        else:
            await server.send_response(200, b"OK", _fields(b"application/x-ndjson"))
            async for event in events:
                await server.send_body(encode_event(event), end=isinstance(event, Exited))


def _wants_result(request: RequestHead) -> bool:
    accepted = request.headers
    return has_member(accepted, b"accept", b"application/json") and not has_member(
        accepted, b"accept", b"application/x-ndjson"
    )


async def _read_command(
    server: ServerConnection, request: RequestHead, executor: CommandExecutor, timeout: float
) -> CommandRequest:
    if request.method != b"POST":
        raise _ExecError("METHOD_NOT_ALLOWED", f"{EXEC_PATH} takes POST only.")
    if not executor.enabled:  # before its body: credentials that are not needed are not read
        raise _ExecError("FORBIDDEN", "This device runs no commands: exec.enabled is off there.")
    most = executor.limits.max_concurrent
    if executor.reading >= most:  # each may have a megabyte, and there may be a thousand streams
        raise _ExecError("BUSY", f"This device reads {most} requests already: try later.")
    with executor.reading_request():
        return _parse(await _read_body(server, executor.limits.max_request, timeout))


async def _read_body(server: ServerConnection, limit: int, timeout: float) -> bytes:
    try:
        with trio.fail_after(timeout):
            return await server.read_whole_body(limit)
    except trio.TooSlowError:
        raise _ExecError("TIMEOUT", f"The request took longer than {timeout:g} s.") from None
    except BodyTooLong:
        raise _ExecError(
            "BODY_TOO_LARGE",
            f"The request is over exec.max_request ({limit} bytes): put large input into a file on "
            "the host.",
        ) from None
    except BadBody as exc:
        raise _ExecError("INVALID_BODY", f"The request's body is bad: {exc}.") from None


def _parse(body: bytes) -> CommandRequest:
    try:
        content = read_json(body, object)
    except BadJson:
        # The parser's message is left out: it may show a part of a credential.
        raise _ExecError("INVALID_JSON", "The request's body is not JSON.") from None
    try:
        return CommandRequest.from_json(content)
    except InvalidCommand as exc:
        raise _ExecError("INVALID_COMMAND", f"{exc}.", exc.field) from None


async def _send_error(
    server: ServerConnection, error: _ExecError, refused: Exited | None = None
) -> None:
    content: dict[str, object] = {"code": error.code, "message": error.message}
    if error.field is not None:
        content["field"] = error.field
    extra: list[Field] = []
    if error.code == "METHOD_NOT_ALLOWED":
        extra.append((b"Allow", b"POST"))
    reason = refused.reason if refused is not None else None
    if reason is None:
        reason = _REASONS.get(error.code, "bad-request")
    extra.append((REASON_FIELD, reason.encode("ascii")))
    await _send_json(server, _STATUS[error.code], {"error": content}, extra)


async def _send_json(
    server: ServerConnection, status: int, content: object, extra: list[Field] | None = None
) -> None:
    body = json.dumps(content).encode("ascii") + b"\n"
    phrase = HTTPStatus(status).phrase.encode("ascii")
    headers = [*_fields(b"application/json"), *(extra or [])]
    await server.send_response(status, phrase, headers, length=len(body), first=body, end=True)


def _fields(kind: bytes) -> list[Field]:
    return [(b"Content-Type", kind), (b"Cache-Control", b"no-store")]
