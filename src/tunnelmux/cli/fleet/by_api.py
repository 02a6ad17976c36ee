"""A fleet that is reached through tunnelmux-api, as a person who signed in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import trio

from tunnelmux.backend.agent_log import LogLine
from tunnelmux.cli.fleet.api_client import ApiClient
from tunnelmux.cli.fleet.errors import FleetError, NotAllowed, NotThere
from tunnelmux.cli.fleet.fleet import Fleet, HttpAccess, no_such_device, services_of
from tunnelmux.cli.fleet.message_stream import MessageStream
from tunnelmux.cli.fleet.model import (
    Account,
    Device,
    DeviceDetails,
    FleetEvent,
    SeenRequest,
    State,
    Visit,
)
from tunnelmux.commands import LineSplitter
from tunnelmux.errors import ConnectError
from tunnelmux.http import PeerGone
from tunnelmux.http.body import BadBody
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.sessions import RequestFilter, RequestSeen

__all__ = ["ApiFleet"]

T = TypeVar("T")
R = TypeVar("R")

_PAGE = 200

_SILENCE = 45.0
# Seconds without a byte after which an event stream is lost: three of the server's heartbeats.

_RETRY = 2.0
# Seconds before a lost event stream is opened again.


class _State(msgspec.Struct):
    online: bool
    since: datetime | None = None
    last_seen: datetime | None = None
    address: str = ""
    agent_version: str = ""
    services: list[str] = []
    reason: str = ""


class _Device(msgspec.Struct):
    id: str
    name: str
    enabled: bool
    quarantine: str
    state: _State
    serial: str = ""
    labels: dict[str, str] = {}
    paired_by_name: str = ""
    created: datetime | None = None
    rotation_wanted: bool = False


class _Devices(msgspec.Struct):
    items: list[_Device]
    next: str | None = None


class _Tunnel(msgspec.Struct):
    device_id: str
    connected_at: datetime
    last_heartbeat: datetime
    address: str = ""


class _Live(msgspec.Struct):
    items: list[_Tunnel]
    silent: list[str] = []


class _Membership(msgspec.Struct):
    tenant_id: str
    tenant: str


class _Me(msgspec.Struct):
    name: str
    email: str
    tenant_id: str | None = None
    role: str | None = None
    tenants: list[_Membership] = []


class _Dropped(msgspec.Struct):
    count: int


class _Event(msgspec.Struct):
    object_id: str = ""
    at: datetime | None = None
    name: str = ""
    reason: str = ""


class ApiFleet(Fleet):
    """See `Fleet`."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self.server = client.server

    async def account(self) -> Account:
        me = await self.client.get("/api/auth/me", _Me)
        tenant = next((item.tenant for item in me.tenants if item.tenant_id == me.tenant_id), "")
        return Account(
            server=self.server,
            way="api",
            name=me.name,
            email=me.email,
            tenant=tenant,
            role=me.role or "",
        )

    async def devices(self, part: str = "") -> list[Device]:
        found = await self._devices(part)
        live = await self._live()
        return [_device(item, live) for item in found]

    async def device(self, name: str) -> Device:
        return _device(await self._find(name), await self._live())

    async def details(self, name: str) -> DeviceDetails:
        found = await self._find(name)
        live = await self._live()
        visits: list[Visit] = []
        with contextlib.suppress(FleetError):  # a viewer whose token may not see them
            visits = await self.client.get(f"/api/devices/{found.id}/visits", list[Visit])
        return DeviceDetails(
            device=_device(found, live),
            services=services_of(found.state.services),
            visits=visits,
            paired_by=found.paired_by_name,
            created=found.created,
            rotation_wanted=found.rotation_wanted,
        )

    @asynccontextmanager
    async def connect(
        self, device: str, service: str
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        found = await self._find(device)
        path = f"/api/devices/{found.id}/connect/{quote(service, safe='')}"
        try:
            async with self.client.websocket(path) as connection:
                yield MessageStream(connection)
        except FleetError as exc:
            raise type(exc)(f"{device}: {exc}", code=exc.code) from exc

    @asynccontextmanager
    async def http(self, device: str, service: str) -> AsyncIterator[HttpAccess]:
        found = await self._find(device)
        yield HttpAccess(
            url=f"{self.server}/api/devices/{found.id}/http/{quote(service, safe='')}",
            token=self.client.token,
            ca_file=str(self.client.ca_file) if self.client.ca_file else None,
        )

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[FleetEvent]]:
        send, receive = trio.open_memory_channel[FleetEvent](0)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow, send)
            yield receive
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def requests(
        self, device: str, wanted: RequestFilter
    ) -> AsyncIterator[AsyncIterator[SeenRequest]]:
        path = f"/api/devices/{await self.find_id(device)}/requests"
        send, receive = trio.open_memory_channel[SeenRequest](0)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow_requests, path, wanted.query(), send)
            yield receive
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def log(
        self, device: str, *, lines: int, follow: bool, after: str = ""
    ) -> AsyncIterator[AsyncIterator[LogLine]]:
        path = f"/api/devices/{await self.find_id(device)}/logs"
        query = {"lines": lines, "follow": "true" if follow else None}
        fields = [(b"Last-Event-ID", after.encode())] if after else []
        try:
            async with self._said(_log_line, path, query=query, fields=fields) as log:
                yield log
        except FleetError as exc:
            kind = NotAllowed if exc.code == "no_log" else type(exc)
            raise kind(f"{device}: {exc}", code=exc.code) from exc
        except (PeerGone, BadBody, trio.TooSlowError) as exc:
            raise ConnectError(f"the answer of {self.server} was lost") from exc

    # -- below ----------------------------------------------------------------------------------

    async def find_id(self, name: str) -> str:
        """The id of the device of this name. Raises NoSuchThing."""
        return (await self._find(name)).id

    async def pages(
        self,
        path: str,
        kind: type[T],
        taken_apart: Callable[[T], tuple[list[R], str | None]],
        **query: Any,
    ) -> list[R]:
        """All pages of a list, one after the other."""
        found: list[R] = []
        after: str | None = None
        while True:
            page = await self.client.get(path, kind, limit=_PAGE, after=after, **query)
            items, after = taken_apart(page)
            found += items
            if after is None:
                return found

    async def _devices(self, part: str = "") -> list[_Device]:
        return await self.pages(
            "/api/devices", _Devices, lambda page: (page.items, page.next), name=part or None
        )

    async def _live(self) -> _Live | None:
        """The tunnels that there are now; None where a token may not see them. What the registry
        knows of a device is some seconds old."""
        try:
            return await self.client.get("/api/sessions", _Live)
        except FleetError:
            return None

    async def _find(self, name: str) -> _Device:
        found = await self._devices(name)
        for device in found:
            if device.name == name:
                return device
        for device in found:  # else by its serial number, whatever the case
            if device.serial.casefold() == name.casefold():
                return device
        names = [device.name for device in await self._devices()]
        raise no_such_device(name, names, self.server)

    async def _follow(
        self,
        send: trio.MemorySendChannel[FleetEvent],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Pass the events on; after a lost connection, go on where it was."""
        names: dict[str, str] = {}
        last: str | None = None
        is_first = True
        while True:
            try:
                fields = [(b"Last-Event-ID", last.encode())] if last is not None else []
                async with self._said(_event, "/api/events", fields=fields) as lines:
                    if is_first:
                        task_status.started()
                        is_first = False
                    names = {device.id: device.name for device in await self._devices()}
                    async for number, event in lines:
                        last = number
                        if event.object_id not in names and event.kind.startswith("device."):
                            names |= {item.id: item.name for item in await self._devices()}
                        event.device = event.device or names.get(event.object_id, "")
                        await send.send(event)
            except (ConnectError, NotThere):
                if is_first:
                    raise
            await trio.sleep(_RETRY)

    async def _follow_requests(
        self,
        path: str,
        query: dict[str, str],
        send: trio.MemorySendChannel[SeenRequest],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        is_first = True
        while True:
            try:
                async with self._said(_request, path, query=query) as events:
                    if is_first:
                        task_status.started()
                        is_first = False
                    async for seen in events:
                        if seen is not None:
                            await send.send(seen)
            except (ConnectError, NotThere):
                if is_first:
                    raise
            await trio.sleep(_RETRY)

    @asynccontextmanager
    async def _said(
        self, make: Callable[[dict[str, str]], T], path: str, **more: Any
    ) -> AsyncIterator[AsyncIterator[T]]:
        """Makes a record of the fields of each event of a stream."""
        async with self.client.open("GET", path, **more) as connection:

            async def read() -> AsyncGenerator[T, None]:
                splitter, said = LineSplitter(), dict[str, str]()
                end = False
                while not end:
                    with trio.fail_after(_SILENCE):
                        data, end = await connection.read_body()
                    for line in splitter.feed(data):
                        name, _, value = line.decode("utf-8", "replace").partition(": ")
                        if name:
                            said[name] = value
                        elif "event" in said:
                            yield make(said)
                            said.clear()

            async with contextlib.aclosing(read()) as events:
                yield events


def _request(said: dict[str, str]) -> SeenRequest | None:
    try:
        if said["event"] == "dropped":
            return SeenRequest(kind="dropped", count=read_json(said["data"], _Dropped).count)
        return SeenRequest.of(read_json(said["data"], RequestSeen))
    except (KeyError, BadJson):
        return None  # of a newer server


def _log_line(said: dict[str, str]) -> LogLine:
    try:
        return read_json(said.get("data", "{}"), LogLine)
    except BadJson:
        return LogLine()  # of a newer server


def _event(said: dict[str, str]) -> tuple[str, FleetEvent]:
    try:
        content = read_json(said.get("data", "{}"), _Event)
    except BadJson:
        content = _Event()
    return said.get("id", ""), FleetEvent(
        kind=said["event"],
        at=content.at,
        reason=content.reason,
        object_id=content.object_id,
    )


def _device(found: _Device, live: _Live | None) -> Device:
    seen = found.state
    tunnels = live.items if live is not None else []
    tunnel = next((item for item in tunnels if item.device_id == found.id), None)
    since: datetime | None
    last_seen: datetime | None
    if tunnel is not None:
        is_online = True
        since, last_seen, address = tunnel.connected_at, tunnel.last_heartbeat, tunnel.address
    else:
        # A proxy did not answer: the registry's record is the best that there is.
        is_online = seen.online and (live is None or bool(live.silent))
        since, last_seen, address = seen.since, seen.last_seen, seen.address
        if seen.online and not is_online:
            since = None  # it disconnected just now, and the time is not stored yet
    state: State = "online" if is_online else "offline"
    reason = seen.reason
    if not found.enabled:
        state = "disabled"
    elif found.quarantine:
        state, reason = "quarantined", found.quarantine
    return Device(
        name=found.name,
        state=state,
        since=since,
        last_seen=last_seen,
        address=address,
        version=seen.agent_version,
        services=seen.services,
        serial=found.serial,
        labels=found.labels,
        reason="" if state == "online" else reason,
        id=found.id,
    )
