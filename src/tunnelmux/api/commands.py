"""Commands for programs, run on devices of one tenant over all proxies.

A command that goes over several proxies is still one command here: one id, one stream of events,
one result for each device. The last results are kept in this process, within a bound, for later
requests.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.backend.proxies import LiveSession, Proxies
from tunnelmux.commands import CommandRequest, Event, Exited, Output, encode_event
from tunnelmux.commands.events import failure
from tunnelmux.commands.result import ResultBuilder
from tunnelmux.errors import ConnectError
from tunnelmux.observability import get_logger

__all__ = ["CommandBook", "CommandRecord", "Fanout", "ResultCollector", "event_fields"]

_log = get_logger("api.exec")

_KEPT_BYTES = 64 * 1024 * 1024
# Output of ended commands that is kept for later requests. A command with more is not kept.

_KEPT_COMMANDS = 1000

_MOST_OF_A_STREAM = 8 * 1024 * 1024
# Bytes of stdout or stderr of one device in a result: as many as an agent sends by default.

_MOST_OUTPUT = 32 * 1024 * 1024
# Bytes of output in the results of one command; the streams of events have no such limit.

_NOT_ITS_OWN = frozenset({"aborted", "skipped"})
# Reasons of devices on which the command did not fail: it was ended because another one failed.

Tell = Callable[[str, Event], Awaitable[None]]


@dataclass
class CommandRecord:
    """One command and its results so far, by device name."""

    id: str
    tenant_id: str
    devices: list[str]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_over: bool = False
    size: int = 0
    """Bytes of output in `results`."""

    def add(self, device: str, end: Exited, result: dict[str, Any]) -> None:
        """Add the result of one device."""
        self.results[device] = {**result, "duration": round(end.duration, 3)}
        self.size += len(result["stdout"]) + len(result["stderr"])

    def to_json(self) -> dict[str, Any]:
        """The JSON that the API returns."""
        return {
            "commandId": self.id,
            "devices": self.devices,
            "finished": self.is_over,
            "results": self.results,
        }


class CommandBook:
    """The last commands, the oldest forgotten first."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, CommandRecord] = OrderedDict()
        self._size = 0

    def begin(self, record: CommandRecord) -> None:
        """Add a command, before it runs."""
        self._records[record.id] = record
        while len(self._records) > _KEPT_COMMANDS:
            self._forget(next(iter(self._records)))

    def end(self, record: CommandRecord) -> None:
        """Note that a command is over and its results are complete."""
        record.is_over = True
        if record.id not in self._records:
            return
        self._size += record.size
        while self._size > _KEPT_BYTES:
            oldest = next(item.id for item in self._records.values() if item.is_over)
            self._forget(oldest)

    def find(self, tenant_id: str, command_id: str) -> CommandRecord | None:
        """A command of this tenant, or None."""
        record = self._records.get(command_id)
        return record if record is not None and record.tenant_id == tenant_id else None

    def _forget(self, command_id: str) -> None:
        record = self._records.pop(command_id)
        if record.is_over:
            self._size -= record.size


class Fanout:
    """One command on several devices; `names` gives each device's name by its label."""

    def __init__(
        self,
        proxies: Proxies,
        names: dict[str, str],
        request: CommandRequest,
        *,
        concurrency: int | None,
        asked_by: str,
        abort_on_error: bool = False,
    ) -> None:
        self._proxies = proxies
        self._names = names
        self._request = request
        self._concurrency = concurrency
        self._asked_by = asked_by
        self._abort_on_error = abort_on_error
        self._ended: set[str] = set()
        self._parts_running: dict[ProxyClient, trio.CancelScope] = {}

    async def run(self, tell: Tell) -> None:
        """Run it, and call `tell(device name, event)` for each event, one at a time.

        Each device has exactly one `Exited`, its last event, even after errors. Cancelling ends the
        commands on the devices. If the request says so, a failure on one device ends it on all.
        """
        parts = await self._parts()
        # A part that fails before another has begun finds the other's scope here.
        self._parts_running = {client: trio.CancelScope() for client in parts}
        for label in self._names.keys() - {label for labels in parts.values() for label in labels}:
            await self._end(tell, label, failure("unreachable", "the device is not connected"))
        async with trio.open_nursery() as nursery:
            for client, labels in parts.items():
                nursery.start_soon(self._run_part, client, labels, tell)

    async def _parts(self) -> dict[ProxyClient, list[str]]:
        """The devices by the client of their proxy: the proxy with the device's newest session."""
        newest: dict[str, LiveSession] = {}
        for session in (await self._proxies.survey()).sessions:
            label = session.summary.device_id
            known = newest.get(label)
            if label in self._names and (
                known is None or session.summary.connected_at > known.summary.connected_at
            ):
                newest[label] = session
        parts: dict[ProxyClient, list[str]] = {}
        for label, session in newest.items():
            parts.setdefault(session.client, []).append(label)
        return parts

    async def _run_part(self, client: ProxyClient, labels: list[str], tell: Tell) -> None:
        reason, problem = "lost", "the proxy's answer ended early"
        scope = self._parts_running[client]
        with scope:
            try:
                async with client.exec(
                    labels,
                    self._request,
                    concurrency=self._concurrency,
                    asked_by=self._asked_by,
                    abort_on_error=self._abort_on_error,
                ) as events:
                    async for label, event in events:
                        if isinstance(event, Exited):
                            await self._end(tell, label, event, client)
                        else:
                            await self._tell_whole(tell, label, event)
            except (ConnectError, ApiCallFailed) as exc:
                _log.warning("command lost", command=self._request.command_id, problem=str(exc))
                problem = str(exc)
        if scope.cancelled_caught:
            reason, problem = "aborted", "it failed on another device, and was ended here"
        for label in labels:
            if label not in self._ended:
                await self._end(tell, label, failure(reason, problem), client)

    async def _tell_whole(self, tell: Tell, label: str, event: Event) -> None:
        # An event must be written completely, or the reader could not read the next one.
        with trio.CancelScope(shield=self._abort_on_error):
            await tell(self._names[label], event)

    async def _end(
        self, tell: Tell, label: str, end: Exited, client: ProxyClient | None = None
    ) -> None:
        self._ended.add(label)
        if self._abort_on_error and end.exit_code and end.reason not in _NOT_ITS_OWN:
            # The proxy itself ends what runs there.
            for other, scope in self._parts_running.items():
                if other is not client:
                    scope.cancel(reason="it failed on another device")
        await self._tell_whole(tell, label, end)


def event_fields(device: str, event: Event) -> dict[str, Any]:
    """An event as JSON, with the device it is from; output is base64."""
    said: dict[str, Any] = json.loads(encode_event(event))
    said.pop("ssh", None)  # only for agent and proxy
    return {"event": said.pop("event"), "device": device, **said}


class ResultCollector:
    """Makes results out of events, and keeps them in a record. Output over the limits is cut, and
    the result says so."""

    def __init__(self, record: CommandRecord) -> None:
        self._record = record
        self._builders = {device: ResultBuilder() for device in record.devices}
        self._left = _MOST_OUTPUT

    def add(self, device: str, event: Event) -> None:
        """Take one event."""
        builder = self._builders.get(device)
        if builder is None:
            return
        if isinstance(event, Output):
            room = min(_MOST_OF_A_STREAM - builder.size(event.stream), self._left)
            kept = event.data[: max(room, 0)]
            self._left -= len(kept)
            builder.keep(event.stream, kept)
            if len(kept) < len(event.data):
                builder.note_truncated(event.stream, builder.size(event.stream))
            return
        builder.add(event)
        if isinstance(event, Exited):
            self._record.add(device, event, builder.result().to_json())
            del self._builders[device]
