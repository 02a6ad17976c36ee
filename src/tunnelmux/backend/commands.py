"""The answers of /internal/exec, taken apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from tunnelmux.commands import (
    CommandRequest,
    CommandResult,
    Event,
    InvalidEvent,
    decode_event,
)
from tunnelmux.http import ClientConnection, PeerGone

__all__ = ["CommandEvents", "DeviceResult", "decode_results", "encode_call"]

_SILENCE = 45.0
# Seconds without a byte after which an answer is lost: three of the proxy's heartbeats.

_MAX_LINE = 16 * 1024 * 1024
# Bytes of one line; the longest is the first, with the names of all devices.


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """How a command ended on one device. `duration` is in seconds."""

    device: str
    command_id: str
    duration: float
    result: CommandResult


class CommandEvents(AsyncIterator[tuple[str, Event]]):
    """What happens, as (device, event), until every command has ended.

    Raises PeerGone when the answer breaks off, and TooSlowError when nothing comes any more.
    """

    def __init__(self, client: ClientConnection) -> None:
        self.command_id = ""
        self.devices: list[str] = []
        """The names that the selectors stood for."""
        self._client = client
        self._lines: list[bytes] = []
        self._rest = b""
        self._is_complete = False

    async def begin(self) -> None:
        """Read what comes first; to be called before the iteration."""
        content = _object(await self._line())
        if content.get("event") != "begin":
            raise PeerGone("it does not begin with what it begins")
        self.command_id = content["commandId"]
        self.devices = content["devices"]

    async def __anext__(self) -> tuple[str, Event]:
        while not self._is_complete:
            line = await self._line()
            content = _object(line)
            match content.get("event"):
                case "end":
                    self._is_complete = True
                case "waiting":
                    pass
                case _:
                    try:
                        return str(content.get("device")), decode_event(line)
                    except InvalidEvent as error:
                        raise PeerGone(f"it cannot be understood: {error}") from None
        raise StopAsyncIteration

    async def _line(self) -> bytes:
        while not self._lines:
            with trio.fail_after(_SILENCE):
                data, end = await self._client.read_body()
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines = [line for line in reversed(lines) if line]
            if end and not self._lines:
                raise PeerGone("it ended before every command had ended")
            if len(self._rest) > _MAX_LINE:
                raise PeerGone(f"a line is longer than {_MAX_LINE} bytes")
        return self._lines.pop()


def _object(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        raise PeerGone("a line is not JSON") from None
    if not isinstance(content, dict):
        raise PeerGone("a line is not a JSON object")
    return content


def encode_call(
    devices: str | Sequence[str],
    request: CommandRequest,
    *,
    concurrency: int | None,
    abort_on_error: bool,
    asked_by: str | None,
) -> bytes:
    """The body of a call, credentials revealed."""
    content = request.to_json()
    content["devices"] = devices if isinstance(devices, str) else list(devices)
    content["abortOnError"] = abort_on_error
    if concurrency is not None:
        content["concurrency"] = concurrency
    if asked_by is not None:
        content["askedBy"] = asked_by
    return msgspec.json.encode(content)


class _Result(msgspec.Struct, rename="camel"):
    stdout: str
    stderr: str
    exit_code: int
    encoding: str | None = None
    truncated: bool = False
    reason: str | None = None


class _Entry(msgspec.Struct, rename="camel"):
    device: str
    command_id: str
    duration: float
    result: _Result


class _Document(msgspec.Struct):
    results: list[_Entry]


def decode_results(body: bytes) -> list[DeviceResult]:
    """The results in a document, in the order in which the commands ended."""
    return [
        DeviceResult(
            entry.device,
            entry.command_id,
            entry.duration,
            CommandResult(
                stdout=entry.result.stdout,
                stderr=entry.result.stderr,
                exit_code=entry.result.exit_code,
                replaced=entry.result.encoding is not None,
                truncated=entry.result.truncated,
                reason=entry.result.reason,
            ),
        )
        for entry in msgspec.json.decode(body, type=_Document).results
    ]
