"""Commands over SSH on devices, for people and programs: `/api/exec`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Annotated, Any

import trio
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tunnelmux.api.access import AccessRoute, Principal, Role, need
from tunnelmux.api.commands import (
    CommandBook,
    CommandRecord,
    Fanout,
    ResultCollector,
    event_fields,
)
from tunnelmux.api.context import ApiDependency, tenant_for
from tunnelmux.api.problems import Refused
from tunnelmux.api.records import ExactInput
from tunnelmux.api.rights import RightfulResponse
from tunnelmux.commands import CommandRequest, Event, InvalidCommand
from tunnelmux.registry import Device, TenantRegistry, new_id, shortened

router = APIRouter(prefix="/api/exec", route_class=AccessRoute, tags=["commands"])

Operator = Annotated[Principal, need(Role.OPERATOR, "exec")]

_MOST_DEVICES = 1024

_MOST_PATTERNS = 32
# Of the words that name devices, those that are patterns: each is compared with each device.

_HEARTBEAT = 15.0
# Seconds between two signs of life in a stream of events, for proxies on the way.


Password = Annotated[str, Field(max_length=4096)]
KeyText = Annotated[str, Field(max_length=65_536)]  # an RSA key of 16,384 bits is 13 KB

_MOST_INPUT = 4 * 1_048_576
# More than limits.max_body lets through by default.


class Command(ExactInput):
    """A command for one or many devices; the fields besides `devices`, `concurrency` and
    `abortOnError` are those of the relay service's `execute_command`."""

    devices: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]],
        Field(min_length=1, max_length=_MOST_DEVICES, description="Names, ids, or `cam-*`."),
    ]
    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    username: Annotated[str, Field(min_length=1, max_length=256)]
    password: Password | None = None
    privateKey: KeyText | None = None  # noqa: N815  the wire's spelling
    passphrase: Password | None = None
    certificate: KeyText | None = None
    command: Annotated[str, Field(min_length=1, max_length=1_048_576)]
    timeout: Annotated[int, Field(ge=1, le=3_600_000, description="Milliseconds.")] = 30_000
    stdin: Annotated[str | None, Field(max_length=_MOST_INPUT, description="Base64.")] = None
    concurrency: Annotated[int | None, Field(ge=1, le=_MOST_DEVICES)] = None
    abortOnError: bool = False  # noqa: N815

    def __repr__(self) -> str:
        return "<Command>"


class CommandResults(BaseModel):
    """A command and its result on each device."""

    commandId: str  # noqa: N815
    devices: list[str]
    finished: bool
    results: dict[str, dict[str, Any]]


@router.post("", response_model=CommandResults)
async def execute(
    request: Request, api: ApiDependency, principal: Operator, command: Command
) -> Response:
    """Run a command. `Accept: application/x-ndjson` or `text/event-stream` gets each event as it
    happens; otherwise all results come at the end."""
    tenant = tenant_for(api, principal)
    devices = await _chosen(tenant, command.devices)
    command_id = new_id()
    ours = {"devices", "concurrency", "abortOnError"}
    wanted = command.model_dump(exclude=ours, exclude_none=True)
    try:
        parsed = CommandRequest.from_json({**wanted, "commandId": command_id})
    except InvalidCommand as exc:
        raise Refused(422, "invalid_command", f"{exc}.") from exc
    names = {device.label: device.name for device in devices}
    await tenant.audit.note(
        "command.run",
        object_kind="command",
        object_id=command_id,
        details={
            "devices": sorted(names.values())[:100],
            "device_count": len(names),
            "host": command.host,
            "username": command.username,
            **shortened({"command": command.command}),
        },
    )
    fanout = Fanout(
        api.proxies,
        names,
        parsed,
        concurrency=command.concurrency,
        asked_by=principal.name or principal.user_id,
        abort_on_error=command.abortOnError,
    )
    assert principal.tenant_id is not None
    record = CommandRecord(command_id, principal.tenant_id, sorted(names.values()))
    kind = _stream_kind(request.headers.get("accept", ""))
    answer = _CommandResponse(api.commands, record, fanout, kind)
    return RightfulResponse(api.rights, request, principal, answer)


@router.get("/{command_id}")
async def get_command(
    api: ApiDependency, principal: Operator, command_id: Annotated[str, Path(max_length=64)]
) -> CommandResults:
    """The results of a command so far. The process that runs it keeps them in memory: the last
    1,000 commands, and 64 MiB of output. With several servers, ask the one that ran it."""
    assert principal.tenant_id is not None
    record = api.commands.find(principal.tenant_id, command_id)
    if record is None:
        message = "No such command ran here lately: its results stay in the process that ran it."
        raise Refused(404, "not_found", message)
    return CommandResults.model_validate(record.to_json())


def _stream_kind(accept: str) -> str | None:
    for kind in ("application/x-ndjson", "text/event-stream"):
        if kind in accept:
            return kind
    return None


async def _chosen(tenant: TenantRegistry, wanted: list[str]) -> list[Device]:
    """The devices with these ids, names or patterns. Raises Refused for one that matches none."""
    unmatched, chosen = set(wanted), dict[str, Device]()
    patterns = [word for word in unmatched if any(mark in word for mark in "*?[")]
    if len(patterns) > _MOST_PATTERNS:
        message = f"One command has {_MOST_PATTERNS} patterns at most: name the devices."
        raise Refused(422, "too_many_devices", message)
    after: str | None = None
    while True:
        page = await tenant.devices.page(limit=200, after=after)
        for device in page.items:
            hits = {word for word in patterns if fnmatchcase(device.name, word)}
            hits |= {device.id, device.name} & unmatched
            if hits:
                unmatched -= hits
                chosen[device.id] = device
        if (after := page.next) is None:
            break
    if unmatched:
        raise Refused(404, "no_such_device", f"No device is called {min(unmatched)}.")
    if len(chosen) > _MOST_DEVICES:
        message = f"These are {len(chosen)} devices; one command runs on {_MOST_DEVICES} at most."
        raise Refused(422, "too_many_devices", message)
    return list(chosen.values())


class _CommandResponse(Response):
    """Runs the command while it is sent; a caller that leaves ends it."""

    def __init__(
        self, book: CommandBook, record: CommandRecord, fanout: Fanout, kind: str | None
    ) -> None:
        super().__init__()
        self._book = book
        self._record = record
        self._fanout = fanout
        self._kind = kind
        self._collector = ResultCollector(record)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; called by the framework."""
        self._book.begin(self._record)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                if self._kind is None:
                    await self._fanout.run(self._collect)
                else:
                    await self._stream(send)
                nursery.cancel_scope.cancel()
        finally:
            self._book.end(self._record)
        if self._kind is None and len(self._record.results) == len(self._record.devices):
            await JSONResponse(self._record.to_json())(scope, receive, send)

    async def _collect(self, device: str, event: Event) -> None:
        self._collector.add(device, event)

    async def _stream(self, send: Send) -> None:
        assert self._kind is not None
        headers = [
            (b"content-type", self._kind.encode("ascii")),
            (b"x-accel-buffering", b"no"),  # otherwise nginx buffers events
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        lock = trio.Lock()

        async def tell(fields: dict[str, Any]) -> None:
            async with lock:
                body = _encode(self._kind, fields)
                await send({"type": "http.response.body", "body": body, "more_body": True})

        async def tell_event(device: str, event: Event) -> None:
            self._collector.add(device, event)
            fields = event_fields(device, event)
            if "commandId" in fields:  # each proxy has its own id for its part
                several = len(self._record.devices) > 1
                fields["commandId"] = f"{self._record.id}.{device}" if several else self._record.id
            await tell(fields)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_alive, tell)
            begin = {"event": "begin", "commandId": self._record.id}
            await tell({**begin, "devices": self._record.devices})
            await self._fanout.run(tell_event)
            await tell({"event": "end"})
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encode(kind: str | None, fields: dict[str, Any]) -> bytes:
    line = json.dumps(fields, separators=(",", ":"))
    if kind == "text/event-stream":
        return f"event: {fields['event']}\ndata: {line}\n\n".encode()
    return f"{line}\n".encode()


async def _keep_alive(tell: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    while True:
        await trio.sleep(_HEARTBEAT)
        await tell({"event": "heartbeat"})


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
