"""Parse the answers of /internal/exec."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from tunnelmux.commands import (
    CommandRequest,
    CommandResult,
    Event,
    EventOrder,
    InvalidEvent,
    LineSplitter,
    decode_event,
)
from tunnelmux.http import ClientConnection, PeerGone
from tunnelmux.json_text import BadJson, read_json

__all__ = ["CommandEvents", "DeviceResult", "decode_results", "encode_call"]

_SILENCE = 45.0
# Seconds without a byte after which an answer is lost: three of the proxy's heartbeats.

_MAX_LINE = 1_048_576
# Bytes of one line. Events are at most some 90 KiB; the longest line is the first, with the names
# of all devices.


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """How a command ended on one device. `duration` is in seconds."""

    device: str
    command_id: str
    duration: float
    result: CommandResult


class CommandEvents(AsyncIterator[tuple[str, Event]]):
    """Iterates over (device, event) until every command has ended. Raises PeerGone when the answer
    breaks off or is malformed, and TooSlowError when the proxy falls silent.
    """

    def __init__(self, client: ClientConnection) -> None:
        self.command_id = ""
        self.devices: list[str] = []
        """The names that the selectors matched."""
        self._client = client
        self._splitter = LineSplitter()
        self._lines: list[bytes] = []
        self._orders: dict[str, EventOrder] = {}
        self._is_complete = False

    async def begin(self) -> None:
        """Read the first line; call it before iterating."""
        line = await self._line()
        if _object(line).get("event") != "begin":
            raise PeerGone("its first line does not list the devices")
        try:
            begin = read_json(line, _Begin)
        except BadJson as error:
            raise PeerGone(f"it is malformed: {error}") from None
        self.command_id = begin.command_id
        self.devices = begin.devices
        several = len(begin.devices) > 1
        self._orders = {
            device: EventOrder(f"{self.command_id}.{device}" if several else self.command_id)
            for device in begin.devices
        }

    async def __anext__(self) -> tuple[str, Event]:
        while not self._is_complete:
            line = await self._line()
            content = _object(line)
            match content.get("event"):
                case "end":
                    if not all(order.has_ended for order in self._orders.values()):
                        raise PeerGone("it ended before every command had ended")
                    self._is_complete = True
                case "waiting" | "heartbeat":
                    pass
                case _:
                    return self._understand(content.get("device"), line)
        raise StopAsyncIteration

    def _understand(self, device: object, line: bytes) -> tuple[str, Event]:
        if not isinstance(device, str) or device not in self._orders:
            raise PeerGone("an event is about a device that was not asked for")
        try:
            event = decode_event(line)
            self._orders[device].check(event)
        except InvalidEvent as error:
            raise PeerGone(f"it is malformed: {error}") from None
        return device, event

    async def _line(self) -> bytes:
        while not self._lines:
            with trio.fail_after(_SILENCE):
                data, end = await self._client.read_body()
            lines = self._splitter.feed(data)
            if self._splitter.waiting > _MAX_LINE or any(len(line) > _MAX_LINE for line in lines):
                raise PeerGone(f"a line is longer than {_MAX_LINE} bytes")
            self._lines = [line for line in reversed(lines) if line]
            if end and not self._lines:
                raise PeerGone("it ended before every command had ended")
        return self._lines.pop()


class _Begin(msgspec.Struct, rename="camel"):
    command_id: str
    devices: list[str]


def _object(line: bytes) -> dict[str, Any]:
    try:
        return read_json(line, dict[str, Any])
    except BadJson:
        raise PeerGone("a line is not a JSON object") from None


def encode_call(
    devices: str | Sequence[str],
    request: CommandRequest,
    *,
    concurrency: int | None,
    abort_on_error: bool,
    asked_by: str | None,
) -> bytes:
    """The body of a call, with credentials in clear."""
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
        for entry in read_json(body, _Document).results
    ]
