"""A client of one proxy's internal API.

>>> async with ProxyClient("http://127.0.0.1:3801", secret=secret) as client:
...     for session in await client.list_sessions():
...         answer = await client.forward_http(session.token, "GET", "/api/status")
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import NoReturn, Self, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import trio
import trio_websocket

from tunnelmux.backend.commands import CommandEvents, DeviceResult, decode_results, encode_call
from tunnelmux.backend.event_reader import EventReader, Fields
from tunnelmux.backend.kept import KeptConnections
from tunnelmux.backend.raw_stream import RawStream
from tunnelmux.commands import CommandRequest
from tunnelmux.errors import (
    ConnectError,
    SessionClosed,
    SessionError,
    SessionNotFound,
    TunnelmuxError,
)
from tunnelmux.http import ClientConnection, Field, PeerGone
from tunnelmux.http.body import BadBody
from tunnelmux.http.head import has_member
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.sessions import (
    RequestFilter,
    RequestSeen,
    SessionEvent,
    SessionSummary,
    VisitSummary,
)
from tunnelmux.sessions.decisions import Decision
from tunnelmux.sessions.inspections import InspectedRequest, Inspection
from tunnelmux.sessions.traffic import TrafficList
from tunnelmux.transports.dialling import open_tcp
from tunnelmux.wire import LEASE_FIELD, REQUEST_FIELD, SERVICE_FIELD

__all__ = ["ApiCallFailed", "ForwardedResponse", "ProxyClient"]

_CONNECT_TIMEOUT = 10.0
_SLACK = 5.0
# Seconds beyond the proxy's own timeout: its error says more than our timeout.

_MAX_ANSWER = 64 * 1024 * 1024
# Bytes: a 16 MiB body in base64 with its fields, and room for proxies with a higher limit.

_EXEC = "/internal/exec"
_ACCESS = "/internal/access"
_INSPECTIONS = "/internal/inspections"

_EXEC_SLACK = 60.0
# Seconds beyond a command's timeout: the proxy gives its agent half of that.

T = TypeVar("T")

Dial = Callable[[], Awaitable[trio.abc.Stream]]


class ApiCallFailed(TunnelmuxError):
    """The proxy answered with an error. `code` is one of those in docs/internal-api.md."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class ForwardedResponse:
    """A device's answer to a forwarded request. Field names are in canonical case."""

    status: int
    headers: Mapping[str, list[str]]
    body: bytes


class _Forwarded(msgspec.Struct):
    status: int
    headers: dict[str, list[str]] = {}
    body: str = ""


class _Session(msgspec.Struct):
    token: str
    connected: bool
    connected_at: datetime
    last_heartbeat: datetime
    remote_addr: str = ""
    user_id: str = ""
    device_id: str = ""


class _Sessions(msgspec.Struct):
    sessions: list[SessionSummary]
    total: int


class _Visits(msgspec.Struct):
    visits: list[VisitSummary]
    total: int


class _Dropped(msgspec.Struct):
    count: int


class _Inspections(msgspec.Struct):
    inspections: list[Inspection]


class _InspectionDetails(msgspec.Struct):
    inspection: Inspection
    requests: list[InspectedRequest]


class _Problem(msgspec.Struct):
    code: str
    message: str


class _Error(msgspec.Struct):
    error: _Problem


@dataclass(frozen=True, slots=True)
class _Call:
    method: bytes
    path: bytes
    headers: list[Field]
    body: bytes


class ProxyClient:
    """Calls the internal API at `url`.

    Within `async with`, connections are kept for the next call, up to 30 s and 8 of them; else each
    call has its own. Streams, WebSockets, events and commands always have.

    `ssl_context` is for `https://`: `tunnelmux.transports.client_context(ca_file)` trusts that
    file's authorities, and its `load_cert_chain` adds the certificate that mutual TLS asks for.
    `timeout` bounds each call, in seconds; a forward is bounded by its own. `dial` replaces the
    connecting, for tests and for embedding.

    Calls raise ConnectError when the proxy cannot be reached, SessionNotFound for an unknown
    token, and ApiCallFailed for every other error the proxy answers with.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = 30.0,
        dial: Dial | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("url must be http://host:port or https://host:port")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl_context or ssl.create_default_context()
        self._secret = secret
        self._timeout = timeout
        self._dial = dial
        self._limits = IngressLimits()
        self._kept = KeptConnections()

    def __repr__(self) -> str:
        return f"<ProxyClient {self._authority}>"

    async def __aenter__(self) -> Self:
        self._kept.is_open = True
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True):  # a forceful close does not wait
            await self._kept.close()

    # -- sessions -----------------------------------------------------------------------------

    async def get_session(self, token: str) -> SessionSummary:
        """The live session of this token; raises SessionNotFound."""
        found = read_json(await self._call("GET", _path_of(token)), _Session)
        return SessionSummary(
            token=found.token,
            user_id=found.user_id,
            device_id=found.device_id,
            connected_at=found.connected_at,
            last_heartbeat=found.last_heartbeat,
            remote_addr=found.remote_addr,
        )

    async def list_sessions(
        self, *, device: str | None = None, agents: bool = False
    ) -> list[SessionSummary]:
        """Every live session, or those of one device only; with `agents`, what the agents say of
        their versions and services too, if the proxy is new enough.
        """
        wanted = {"device": device, "agents": "true" if agents else None}
        given = {name: value for name, value in wanted.items() if value is not None}
        query = f"?{urlencode(given)}" if given else ""
        body = await self._call("GET", f"/internal/sessions{query}")
        return read_json(body, _Sessions).sessions

    async def close_session(self, token: str) -> None:
        """End the session of this token now; raises SessionNotFound."""
        await self._call("POST", f"{_path_of(token)}/close")

    # -- visits -------------------------------------------------------------------------------

    async def list_visits(
        self, device: str | None = None, *, limit: int | None = None
    ) -> list[VisitSummary]:
        """The live visits, oldest first: of all devices, or of one; at most `limit` (or 1000)."""
        asked = {"device": device, "limit": limit}
        query = urlencode({key: value for key, value in asked.items() if value is not None})
        body = await self._call("GET", f"/internal/visits?{query}" if query else "/internal/visits")
        return read_json(body, _Visits).visits

    async def close_visit(self, visit_id: str) -> None:
        """End the visit of this id now; raises ApiCallFailed when it is over already."""
        try:
            await self._call("POST", f"/internal/visits/{quote(visit_id, safe='')}/close")
        except SessionNotFound:
            message = "the proxy has no live visit of this id"
            raise ApiCallFailed(message, status=404, code="NOT_FOUND") from None

    async def list_traffic(self, *, tenant: str = "", top: int = 20) -> TrafficList:
        """How much devices have moved, the busiest first: those of one tenant, or all."""
        path = f"/internal/traffic?{urlencode({'top': top, 'tenant': tenant})}"
        return read_json(await self._call("GET", path), TrafficList)

    # -- forwarding -----------------------------------------------------------------------------

    async def forward_http(
        self,
        token: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float | None = None,
    ) -> ForwardedResponse:
        """The device's answer to one request; both bodies must fit into memory.

        `timeout` is in seconds; None leaves it to the proxy (`limits.forward_timeout`).
        """
        wanted: dict[str, object] = {"session_token": token, "method": method, "path": path}
        if headers:
            wanted["headers"] = dict(headers)
        if body:
            wanted["body"] = base64.b64encode(body).decode("ascii")
        if timeout is not None:
            wanted["timeout_ms"] = max(1, round(timeout * 1000))
        answer = read_json(
            await self._call(
                "POST",
                "/internal/forward/http",
                msgspec.json.encode(wanted),
                timeout=max(self._timeout, timeout or self._limits.response_timeout) + _SLACK,
            ),
            _Forwarded,
        )
        return ForwardedResponse(answer.status, answer.headers, base64.b64decode(answer.body))

    async def open_stream(
        self, token: str, *, lease: str = "", service: str = "", request: str = ""
    ) -> trio.abc.HalfCloseableStream:
        """A new stream to the agent, which expects an HTTP/1.1 request head on it first.

        With `lease` (its id) the stream ends when the lease does. `service` and `request` (`METHOD
        /path`) describe its traffic for the request feed. Raises SessionClosed when no live session
        has this token, SessionError `LEASE_OVER` when the lease does not run.
        """
        stream = await self._connect()
        client = ClientConnection(stream, self._limits)
        headers = [(b"Connection", b"Upgrade"), (b"Upgrade", b"tunnelmux-raw")]
        if lease:
            headers.append((LEASE_FIELD, lease.encode("ascii")))
        if service:
            headers.append((SERVICE_FIELD, service.encode("ascii")))
        if request:
            headers.append((REQUEST_FIELD, request.encode("ascii")))
        target = f"/internal/forward/raw?{urlencode({'token': token})}"
        try:
            with trio.fail_after(self._timeout):
                await client.send_request(
                    b"POST", target.encode("ascii"), self._headers(headers), end=True
                )
                head = await client.read_head()
                if head.status != 101:
                    _raise_error(head.status, await client.read_whole_body(_MAX_ANSWER))
        except trio.TooSlowError:
            await abort(stream)
            raise ConnectError(f"{self._authority} did not answer in time") from None
        except (PeerGone, BadBody) as error:
            await abort(stream)
            raise ConnectError(f"{self._authority} did not answer: {error}") from error
        except ApiCallFailed as error:
            await abort(stream)
            if error.code == "TUNNEL_DISCONNECTED":
                raise SessionClosed("no live session has this token") from error
            raise SessionError(str(error)) from error
        except BaseException:
            await abort(stream)
            raise
        return RawStream(stream, client.take_buffer())

    @asynccontextmanager
    async def open_websocket(
        self, token: str, path: str = "/", *, subprotocols: list[str] | None = None
    ) -> AsyncIterator[trio_websocket.WebSocketConnection]:
        """A WebSocket to this path of the device, for the length of the block."""
        stream = await self._connect()
        resource = f"/internal/forward/ws?{urlencode({'token': token, 'path': path})}"
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(self._timeout):
                    websocket = await trio_websocket.wrap_client_stream(
                        nursery,
                        cast("trio.SocketStream", stream),  # trio_websocket takes any stream
                        self._authority,
                        resource,
                        subprotocols=subprotocols,
                        extra_headers=self._headers([])[1:],
                    )
                yield websocket
                with trio.move_on_after(_SLACK):
                    await websocket.aclose()
            finally:
                nursery.cancel_scope.cancel()
                await abort(stream)

    # -- commands -------------------------------------------------------------------------------

    @asynccontextmanager
    async def exec(
        self,
        devices: str | Sequence[str],
        request: CommandRequest,
        *,
        concurrency: int | None = None,
        abort_on_error: bool = False,
        asked_by: str | None = None,
    ) -> AsyncIterator[CommandEvents]:
        """Run a command over SSH on these devices (names, globs, `all`), for the length of the
        block: iterate over (device, event) pairs, the last of each device an `Exited`.

        Leaving the block early ends the commands. `asked_by` is for the audit. Raises
        ApiCallFailed when nothing was run, and ConnectError when the connection is lost: then the
        proxy ends what runs.
        """
        stream = await self._connect()
        client = ClientConnection(stream, self._limits)
        body = encode_call(
            devices,
            request,
            concurrency=concurrency,
            abort_on_error=abort_on_error,
            asked_by=asked_by,
        )
        fields = [
            (b"Accept", b"application/x-ndjson"),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
        ]
        events = CommandEvents(client)
        try:
            with trio.fail_after(self._timeout):
                await client.send_request(
                    b"POST", _EXEC.encode("ascii"), self._headers(fields), first=body, end=True
                )
                head = await client.read_head()
                if head.status != 200:
                    _raise_error(head.status, await client.read_whole_body(_MAX_ANSWER))
                await events.begin()
            yield events
        except SessionNotFound:
            raise _no_commands() from None
        except (PeerGone, BadBody, trio.TooSlowError) as error:
            raise ConnectError(f"the answer of {self._authority} was lost: {error}") from error
        finally:
            await abort(stream)

    async def exec_results(
        self,
        devices: str | Sequence[str],
        request: CommandRequest,
        *,
        concurrency: int | None = None,
        abort_on_error: bool = False,
        asked_by: str | None = None,
        timeout: float | None = None,
    ) -> list[DeviceResult]:
        """The same, with all results at once when the last is there.

        `timeout` is in seconds and bounds the whole call; without one it is what the proxy may need
        at most, with every device at its command's timeout.
        """
        body = encode_call(
            devices,
            request,
            concurrency=concurrency,
            abort_on_error=abort_on_error,
            asked_by=asked_by,
        )
        try:
            answer = await self._call(
                "POST",
                _EXEC,
                body,
                timeout=timeout or (request.timeout + _EXEC_SLACK) * _rounds(concurrency),
                accept=b"application/json",
            )
        except SessionNotFound:
            raise _no_commands() from None
        return decode_results(answer)

    # -- events ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def events(
        self, last_event_id: str | None = None
    ) -> AsyncIterator[AsyncIterator[tuple[str, SessionEvent | None]]]:
        """Session events as (event id, event), within the block. Pass the last id that was handled
        to get all events since. The event None says that some are missing (the proxy restarted, or
        has dropped them): list the sessions again. The iteration ends when the proxy shuts down,
        and raises ConnectError when the connection is lost.
        """
        fields = [(b"Last-Event-ID", last_event_id.encode())] if last_event_id is not None else []
        async with self._event_stream("/internal/events", fields, _session_event) as events:
            yield events

    @asynccontextmanager
    async def requests(
        self, wanted: RequestFilter
    ) -> AsyncIterator[AsyncIterator[RequestSeen | int]]:
        """The requests that end from now on, within the block. A number among them is a count of
        requests that were dropped because this reader was too slow. The iteration ends when the
        proxy shuts down, and raises ConnectError when the connection is lost.
        """
        path = f"/internal/requests?{urlencode(wanted.query())}"
        async with self._event_stream(path, [], _request_event) as requests:
            yield requests

    @asynccontextmanager
    async def _event_stream(
        self, path: str, fields: list[Field], make: Callable[[Fields], T]
    ) -> AsyncIterator[AsyncIterator[T]]:
        stream = await self._connect()
        client = ClientConnection(stream, self._limits)
        try:
            with trio.fail_after(self._timeout):
                headers = self._headers(fields)
                await client.send_request(b"GET", path.encode("ascii"), headers, end=True)
                head = await client.read_head()
                if head.status != 200:
                    _raise_error(head.status, await client.read_whole_body(_MAX_ANSWER))
            yield EventReader(client, make)
        except (PeerGone, BadBody, trio.TooSlowError) as error:
            raise ConnectError(f"the event stream of {self._authority} was lost") from error
        finally:
            await abort(stream)

    # -- who may come in ------------------------------------------------------------------------

    async def decide_access(self, device: str, service: str, user: str, **more: str) -> Decision:
        """Whether a person may reach a service now; `more` are `role`, `name` and `address`."""
        query = urlencode({"device": device, "service": service, "user": user, **more})
        return read_json(await self._call("GET", f"{_ACCESS}?{query}"), Decision)

    # -- inspections ----------------------------------------------------------------------------

    async def begin_inspection(
        self, inspection_id: str, device: str, service: str, seconds: float, **more: bool | str
    ) -> Inspection:
        """Inspect a service for a time. `more` may be `bodies` and `askedBy`."""
        wanted = {"id": inspection_id, "device": device, "service": service, "seconds": seconds}
        body = msgspec.json.encode(wanted | more)
        return read_json(await self._call("POST", _INSPECTIONS, body), Inspection)

    async def list_inspections(self) -> list[Inspection]:
        """The inspections that run now."""
        return read_json(await self._call("GET", _INSPECTIONS), _Inspections).inspections

    async def get_inspection(self, inspection_id: str) -> tuple[Inspection, list[InspectedRequest]]:
        """One inspection with its requests, newest first and without bodies; raises
        SessionNotFound.
        """
        answer = await self._call("GET", f"{_INSPECTIONS}/{quote(inspection_id, safe='')}")
        found = read_json(answer, _InspectionDetails)
        return found.inspection, found.requests

    async def end_inspection(self, inspection_id: str) -> None:
        """End an inspection and drop its requests; raises SessionNotFound."""
        await self._call("POST", f"{_INSPECTIONS}/{quote(inspection_id, safe='')}/close")

    async def inspected_request(
        self, inspection_id: str, request_id: str, *, replay: bool = False
    ) -> InspectedRequest:
        """One request with its bodies. With `replay` it is sent again through the tunnel, and the
        repetition is returned. Raises SessionNotFound.
        """
        parts = quote(inspection_id, safe=""), quote(request_id, safe="")
        path = f"{_INSPECTIONS}/{parts[0]}/requests/{parts[1]}"
        if replay:
            answer = await self._call("POST", f"{path}/replay")
        else:
            answer = await self._call("GET", path)
        return read_json(answer, InspectedRequest)

    # -- below ----------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        timeout: float | None = None,
        accept: bytes | None = None,
    ) -> bytes:
        """The body of a 200 answer. Raises the errors that the class documents."""
        fields: list[Field] = [] if self._kept.is_open else [(b"Connection", b"close")]
        if body or method == "POST":
            fields.append((b"Content-Length", b"%d" % len(body)))
        if body:
            fields.append((b"Content-Type", b"application/json"))
        if accept is not None:
            fields.append((b"Accept", accept))
        call = _Call(method.encode("ascii"), path.encode("ascii"), self._headers(fields), body)
        limit = timeout or self._timeout
        try:
            with trio.fail_after(limit):
                status, answer = await self._answer_to(call)
        except trio.TooSlowError:
            raise ConnectError(f"{self._authority} did not answer within {limit:g} s") from None
        except (PeerGone, BadBody) as error:
            raise ConnectError(f"{self._authority} did not answer: {error}") from error
        if status != 200:
            _raise_error(status, answer)
        return answer

    async def _answer_to(self, call: _Call) -> tuple[int, bytes]:
        """Status and body, over a kept connection where there is one."""
        stream = await self._kept.take()
        if stream is not None:
            try:
                return await self._exchange(stream, call)
            except PeerGone:
                # The kept connection ended just now. Whether the call arrived is not known, so only
                # an idempotent one is sent again (RFC 9110 section 9.2.2).
                if call.method != b"GET":
                    raise
        return await self._exchange(await self._connect(), call)

    async def _exchange(self, stream: trio.abc.Stream, call: _Call) -> tuple[int, bytes]:
        is_whole = False
        try:
            client = ClientConnection(stream, self._limits)
            await client.send_request(
                call.method, call.path, call.headers, first=call.body, end=True
            )
            head = await client.read_head()
            answer = await client.read_whole_body(_MAX_ANSWER)
            ends = has_member(head.headers, b"connection", b"close")
            is_whole = not ends and not client.take_buffer()
            return head.status, answer
        finally:
            with trio.move_on_after(1, shield=True):
                if is_whole:
                    await self._kept.give(stream)
                else:
                    await trio.aclose_forcefully(stream)

    async def _connect(self) -> trio.abc.Stream:
        if self._dial is not None:
            return await self._dial()
        return await open_tcp(
            self._host, self._port, ssl_context=self._tls, timeout=_CONNECT_TIMEOUT
        )

    def _headers(self, fields: list[Field]) -> list[Field]:
        headers: list[Field] = [(b"Host", self._authority.encode("ascii"))]
        if self._secret is not None:
            headers.append((b"Authorization", b"Bearer " + self._secret.encode("ascii")))
        return headers + fields


def _session_event(fields: Fields) -> tuple[str, SessionEvent | None]:
    event_id = fields.get(b"id", b"").decode("latin-1")
    if fields.get(b"event") == b"gap":
        return event_id, None
    return event_id, _decoded(fields[b"data"], SessionEvent)


def _request_event(fields: Fields) -> RequestSeen | int:
    if fields.get(b"event") == b"dropped":
        return _decoded(fields[b"data"], _Dropped).count
    return _decoded(fields[b"data"], RequestSeen)


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return read_json(data, kind)
    except BadJson as error:
        raise BadBody(f"an event is malformed: {error}") from None


def _path_of(token: str) -> str:
    return f"/internal/session/{quote(token, safe='')}"


def _rounds(concurrency: int | None) -> int:
    """How many rounds a call can take at most: 1024 devices, `concurrency` (32 by default) at a
    time.
    """
    return 1024 // min(concurrency or 32, 1024) + 1


def _no_commands() -> ApiCallFailed:
    text = "this proxy has no /internal/exec: update it"
    return ApiCallFailed(text, status=404, code="NOT_FOUND")


def _raise_error(status: int, body: bytes) -> NoReturn:
    try:
        problem = read_json(body, _Error).error
    except BadJson:
        problem = _Problem("UNKNOWN", "the answer is not the internal API's: check the address")
    if problem.code == "NOT_FOUND":
        raise SessionNotFound("the proxy has no live session with this token")
    raise ApiCallFailed(problem.message, status=status, code=problem.code)
