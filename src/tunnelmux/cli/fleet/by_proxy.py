"""A fleet that is reached through the internal API of one proxy, for installations without
tunnelmux-api. Only devices that are connected are known there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec
import trio

from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.backend.agent_log import LogLine, LogRefused, read_log
from tunnelmux.cli.fleet.errors import FleetError, NoSuchThing, NotAllowed, NotThere
from tunnelmux.cli.fleet.fleet import Fleet, HttpAccess, no_such_device
from tunnelmux.cli.fleet.model import (
    Account,
    Device,
    DeviceDetails,
    FleetEvent,
    SeenRequest,
    Service,
    Visit,
)
from tunnelmux.errors import ConnectError, SessionClosed, SessionError, SessionNotFound
from tunnelmux.http import ClientConnection, ConnectFailed, PeerGone, open_connect
from tunnelmux.http.body import BadBody
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import relay
from tunnelmux.sessions import RequestFilter, SessionSummary
from tunnelmux.wire import AGENT_AUTHORITY

__all__ = ["ProxyFleet"]

T = TypeVar("T")

_ANSWER = 15.0
# Seconds for an agent to reach its target. Its own limit is shorter, and its reason says more.

_RETRY = 2.0
# Seconds before a lost event stream is opened again.

_LONGEST_FOLDER = 80
# Bytes; a folder of its own and the socket's name come behind it.

_MAX_INFO = 1024 * 1024


class _Info(msgspec.Struct):
    name: str = ""
    version: str = ""
    uptime: float = 0.0
    services: list[Service] = []


class ProxyFleet(Fleet):
    """See `Fleet`."""

    how_to_begin = (
        "No device is connected to this proxy now. It takes those of its proxy.toml, and those "
        "that join by a line of tunnelmux-proxy invite."
    )

    def __init__(self, client: ProxyClient, url: str) -> None:
        self.client = client
        self.server = url

    async def account(self) -> Account:
        await self._sessions()
        return Account(server=self.server, way="proxy")

    async def devices(self, part: str = "") -> list[Device]:
        sessions = await self._sessions()
        return [_device(item) for item in sessions if part in item.device_id]

    async def device(self, name: str) -> Device:
        return _device(await self._session(name))

    async def details(self, name: str) -> DeviceDetails:
        session = await self._session(name)
        device = _device(session)
        visits = await self.ask(partial(self.client.list_visits, name))
        info = await self._info(session)  # after the visits, because it would count as one
        device.version = info.version
        device.services = [service.name for service in info.services]
        return DeviceDetails(
            device=device,
            services=info.services,
            visits=[Visit.of(item) for item in visits],
        )

    @asynccontextmanager
    async def connect(
        self, device: str, service: str
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        stream = await self._stream(await self._session(device), service)
        try:
            connection = await open_connect(
                stream, service, IngressLimits(), answer_timeout=_ANSWER
            )
            try:
                await connection.wait_answer()
            except ConnectFailed as exc:
                kind = NoSuchThing if exc.status == 404 else NotThere
                said = str(exc).removesuffix(f" ({exc.reason})").rstrip(".")
                raise kind(f"{device}: {said}", code=exc.reason or "") from exc
            yield connection
        except PeerGone as exc:
            raise NotThere(f"{device}: the connection was lost ({exc})") from exc
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def http(self, device: str, service: str) -> AsyncIterator[HttpAccess]:
        session = await self._session(device)
        # A socket in the user's own folder: a TCP port would be open to all users here.
        with tempfile.TemporaryDirectory(prefix="tunnelmux-", dir=_short_folder()) as folder:
            path = str(Path(folder) / "http")
            listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            await listener.bind(path)
            listener.listen(16)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(
                        trio.serve_listeners,
                        partial(self._carry, session),
                        [trio.SocketListener(listener)],
                    )
                )
                yield HttpAccess(url=f"http://{device}", socket=path, service=service)
                nursery.cancel_scope.cancel()

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
        # One that is away may come yet: the proxy knows only those that are connected.
        wanted = msgspec.structs.replace(wanted, device=device)
        send, receive = trio.open_memory_channel[SeenRequest](0)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow_requests, wanted, send)
            yield receive
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def log(
        self, device: str, *, lines: int, follow: bool, after: str = ""
    ) -> AsyncIterator[AsyncIterator[LogLine]]:
        stream = await self._stream(await self._session(device))
        try:
            async with read_log(stream, lines=lines, follow=follow, after=after) as log:
                yield log
        except LogRefused as exc:
            raise NotAllowed(f"{device}: {str(exc).rstrip('.')}", code="no_log") from exc
        except (PeerGone, BadBody, trio.TooSlowError) as exc:
            raise NotThere(f"{device}: the connection was lost", code="device_offline") from exc
        finally:
            await trio.aclose_forcefully(stream)

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call of the client. Raises NotAllowed or FleetError for a refusal."""
        try:
            return await call()
        except ApiCallFailed as exc:
            _refuse(exc)

    # -- below ----------------------------------------------------------------------------------

    async def _follow_requests(
        self,
        wanted: RequestFilter,
        send: trio.MemorySendChannel[SeenRequest],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        is_first = True
        while True:
            try:
                async with self.client.requests(wanted) as requests:
                    if is_first:
                        task_status.started()
                        is_first = False
                    async for seen in requests:
                        if isinstance(seen, int):
                            await send.send(SeenRequest(kind="dropped", count=seen))
                        else:
                            await send.send(SeenRequest.of(seen))
            except ConnectError:
                if is_first:
                    raise
            except ApiCallFailed as exc:
                _refuse(exc)
            except SessionNotFound:
                raise FleetError(
                    f"the proxy at {self.server} is too old to show requests: update it"
                ) from None
            await trio.sleep(_RETRY)

    async def _carry(self, session: SessionSummary, local: trio.SocketStream) -> None:
        try:
            stream = await self._stream(session)
        except (ConnectError, FleetError) as exc:
            body = f"{exc}\n".encode()
            head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
            async with local:
                await local.send_all(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        await relay(local, stream)

    async def _sessions(self) -> list[SessionSummary]:
        """One for each device, the newest."""
        found: dict[str, SessionSummary] = {}
        for session in await self.ask(partial(self.client.list_sessions, agents=True)):
            known = found.get(session.device_id)
            if known is None or known.connected_at < session.connected_at:
                found[session.device_id] = session
        return [found[name] for name in sorted(found)]

    async def _session(self, name: str) -> SessionSummary:
        sessions = await self._sessions()
        for session in sessions:
            if session.device_id == name:
                return session
        missing = no_such_device(name, (item.device_id for item in sessions), self.server)
        raise NoSuchThing(
            f"{missing} (a proxy knows only the devices that are connected now)", code=missing.code
        )

    async def _stream(
        self, session: SessionSummary, service: str = ""
    ) -> trio.abc.HalfCloseableStream:
        try:
            return await self.client.open_stream(session.token, service=service)
        except (SessionClosed, SessionNotFound) as exc:
            message = f"{session.device_id}: the device's connection ended just now"
            raise NotThere(message, code="device_offline") from exc
        except (ApiCallFailed, SessionError) as exc:
            raise NotThere(f"{session.device_id}: {exc}") from exc

    async def _info(self, session: SessionSummary) -> _Info:
        stream = await self._stream(session)
        try:
            client = ClientConnection(stream, IngressLimits())
            with trio.fail_after(_ANSWER):
                # In the absolute form: by Host alone, it would be for a service.
                target = b"http://" + AGENT_AUTHORITY + b"/v1/info"
                await client.send_request(b"GET", target, [(b"Host", AGENT_AUTHORITY)], end=True)
                await client.read_head()
                body = await client.read_whole_body(_MAX_INFO)
            return read_json(body, _Info)
        except (PeerGone, BadBody, trio.TooSlowError, BadJson):
            return _Info()  # not our agent: everything else is known without it
        finally:
            await trio.aclose_forcefully(stream)

    async def _follow(
        self,
        send: trio.MemorySendChannel[FleetEvent],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        last: str | None = None
        is_first = True
        while True:
            try:
                async with self.client.events(last) as events:
                    if is_first:
                        task_status.started()
                        is_first = False
                    async for number, event in events:
                        last = number
                        if event is None:
                            await send.send(FleetEvent(kind="gap"))
                            continue
                        await send.send(
                            FleetEvent(
                                kind=f"device.{event.type}",
                                at=event.time,
                                device=event.device_id,
                                reason=event.reason,
                            )
                        )
            except ConnectError:
                if is_first:
                    raise
            except ApiCallFailed as exc:
                _refuse(exc)
            await trio.sleep(_RETRY)


def _short_folder() -> str | None:
    """The folder for a socket: that of temporary files, or /tmp where its path is too long for
    one (107 bytes, unix(7))."""
    return "/tmp" if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER else None  # noqa: S108


def _refuse(exc: ApiCallFailed) -> NoReturn:
    if exc.code == "UNAUTHORIZED":
        raise NotAllowed(
            "the proxy wants another secret: give --secret-file FILE with [internal] secret of "
            "its proxy.toml",
            code=exc.code,
        ) from exc
    raise FleetError(str(exc), code=exc.code) from exc


def _device(session: SessionSummary) -> Device:
    return Device(
        name=session.device_id,
        state="online",
        since=session.connected_at,
        last_seen=session.last_heartbeat,
        address=session.remote_addr,
        version=session.agent_version,
        services=list(session.services),
    )
