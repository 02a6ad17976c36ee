"""A device behind the tunnel as a target of commands."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import quote

import msgspec
import trio

from tunnelmux.commands import (
    CommandRequest,
    Event,
    Exited,
    InvalidEvent,
    LineSplitter,
    as_sentence,
    decode_event,
    failure,
)
from tunnelmux.http import ClientConnection, Field, Refused, ResponseHead, UpstreamGone
from tunnelmux.http.body import BadBody
from tunnelmux.http.head import first_value
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Stream
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.proxy.visitors.visit import Visit, VisitRegister
from tunnelmux.relay import abort
from tunnelmux.wire import AGENT_AUTHORITY, ASKED_BY_FIELD, EXEC_PATH, REASON_FIELD

__all__ = ["DeviceTarget", "tunnel_name"]

_EXEC = b"http://" + AGENT_AUTHORITY + EXEC_PATH.encode("ascii")

_MAX_LINE = 262_144
# Bytes of one event. Agents send what they read from SSH, at most some 64 KiB, in base64.

_MAX_ERROR = 65_536
# Bytes that are read of an answer that is no stream of events.


def tunnel_name(device: str) -> str:
    """The name of a device as a target: a Socket.IO agent may have the same name."""
    return f"{device} (tunnel)"


class DeviceTarget:
    """Runs commands through the tunnel, by the agent's own API."""

    def __init__(
        self, device: str, busy: int, router: Router, visits: VisitRegister, limits: IngressLimits
    ) -> None:
        self.name = tunnel_name(device)
        self.busy = busy
        self._device = device
        self._router = router
        self._visits = visits
        self._limits = limits

    @asynccontextmanager
    async def execute(
        self, request: CommandRequest, *, asked_by: str
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Run the command there; leaving the block resets the stream, which ends the command."""
        visit = self._visits.begin(
            "exec", device=self._device, service=None, visitor=asked_by, scheme="exec"
        )
        with visit:
            async with self._execute(request, asked_by, visit) as events:
                yield events

    @asynccontextmanager
    async def _execute(
        self, request: CommandRequest, asked_by: str, visit: Visit
    ) -> AsyncIterator[AsyncIterator[Event]]:
        try:
            stream = await self._router.open_stream(self._device, self._limits, visit)
        except Refused as refused:
            refusal = refused.refusal
            # No stream, so the command was not sent: the device may be slow or full.
            reason = "device-busy" if refusal.reason == "target-timeout" else refusal.reason
            yield _Only(failure(reason, refusal.message))
            return
        if isinstance(stream, Stream):
            visit.count = partial(_bytes_of, stream)
        try:
            yield _Answer(ClientConnection(stream, self._limits), request, asked_by, visit)
        finally:
            await abort(stream)  # without effect on a stream that ended in order


class _Answer(AsyncIterator[Event]):
    """The agent's answer to one command; any failure becomes an Exited. Without deadlines: the
    dispatcher sets one for the whole.
    """

    def __init__(
        self, client: ClientConnection, request: CommandRequest, asked_by: str, visit: Visit
    ) -> None:
        self._client = client
        self._request = request
        self._asked_by = asked_by
        self._visit = visit
        self._is_open = self._is_over = False
        self._splitter = LineSplitter()
        self._lines: deque[bytes] = deque()

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        try:
            event = await self._next()
        except (UpstreamGone, BadBody) as gone:
            text = f"the tunnel broke, so it is not known how the command ended: {gone}"
            if self._visit.cut_reason is not None:
                text = f"it was cut, so it is not known how it ended: {self._visit.cut_reason}"
            event = failure("lost", text)
        except InvalidEvent as invalid:
            event = failure("lost", f"the agent's answer cannot be understood: {invalid}")
        self._is_over = isinstance(event, Exited)
        return event

    async def _next(self) -> Event:
        if not self._is_open:
            self._is_open = True
            await self._send()
            while (head := await self._client.read_head()).is_interim:
                pass
            if head.status != 200:
                return await _refusal(self._client, head)
        while not self._lines:
            await self._read()
        return decode_event(self._lines.popleft())

    async def _send(self) -> None:
        body = msgspec.json.encode(self._request.to_json())
        headers: list[Field] = [
            (b"Host", AGENT_AUTHORITY),
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/x-ndjson"),
            (b"Content-Length", b"%d" % len(body)),
            (ASKED_BY_FIELD, quote(self._asked_by, safe=" ()@:,;.").encode("ascii")),
            (b"Connection", b"close"),
        ]
        # The agent may have answered before it stopped reading: try to read the answer.
        with contextlib.suppress(UpstreamGone):
            await self._client.send_request(b"POST", _EXEC, headers, first=body, end=True)

    async def _read(self) -> None:
        data, end = await self._client.read_body()
        lines = self._splitter.feed(data)
        if self._splitter.waiting > _MAX_LINE or any(len(line) > _MAX_LINE for line in lines):
            raise InvalidEvent(f"a line is longer than {_MAX_LINE} bytes")
        self._lines.extend(line for line in lines if line.strip())
        if end and not self._lines:
            raise UpstreamGone("the agent ended its answer too early")


def _bytes_of(stream: Stream) -> tuple[int, int]:
    return stream.bytes_sent, stream.bytes_received


class _Only(AsyncIterator[Event]):
    """An event iterator with one event."""

    def __init__(self, event: Event) -> None:
        self._event: Event | None = event

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        event, self._event = self._event, None
        if event is None:
            raise StopAsyncIteration
        return event


class _Problem(msgspec.Struct):
    message: str = ""


class _Error(msgspec.Struct):
    error: _Problem


async def _refusal(client: ClientConnection, head: ResponseHead) -> Exited:
    """The Exited for an answer other than 200. In each case the command was not run."""
    body = await client.read_body_start(_MAX_ERROR)
    try:
        message = read_json(body, _Error).error.message
    except BadJson:
        message = body[:500].decode("utf-8", "replace").strip()
    message = as_sentence(message)
    match head.status:
        case 403:
            return failure("forbidden", message or "the device does not allow this command")
        case 503:
            is_busy = first_value(head.headers, REASON_FIELD.lower()) == b"busy"
            return failure(
                "busy" if is_busy else "undelivered", message or "the device is not ready"
            )
        case 404:
            text = "this device's agent runs no commands: update it"
            return failure("not-supported", text)
        case _:
            return failure(
                "invalid", message or f"the agent refused the command with {head.status}"
            )
