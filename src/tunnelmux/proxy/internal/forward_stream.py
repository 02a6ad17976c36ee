"""forward/raw and forward/ws: the caller's connection becomes a stream to the device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import trio

from tunnelmux.http import (
    Exchange,
    Field,
    RequestHead,
    ResponseHead,
    Upstream,
    VisitorGone,
    forward,
)
from tunnelmux.http.body import BadBody
from tunnelmux.http.fields import end_to_end, replace_host
from tunnelmux.http.head import field_values, first_value, has_member
from tunnelmux.http.tap import TappedStream
from tunnelmux.observability import get_logger
from tunnelmux.proxy.internal.answers import ApiConnection, ApiError
from tunnelmux.proxy.internal.forward_http import encode_target
from tunnelmux.proxy.internal.queries import WebSocketQuery, read_query
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.proxy.internal.sessions import (
    ForwardGate,
    find_session,
    open_stream,
    response_timeout,
)
from tunnelmux.proxy.visitors.visit import PATIENCE, Visit, VisitRegister, Way
from tunnelmux.relay import RelayResult, abort, relay
from tunnelmux.sessions import DeviceStore, SessionHandle, shorten_token
from tunnelmux.wire import LEASE_FIELD, REASON_FIELD, REQUEST_FIELD, SERVICE_FIELD

__all__ = ["LeaseRuns", "StreamForwarder", "no_leases"]

LeaseRuns = Callable[[str, str], bool]
"""Whether the lease of this id runs now and is for the device of this name."""


def no_leases(_lease_id: str, _device: str) -> bool:
    """For a proxy without leases."""
    return False


_log = get_logger("proxy.internal")

_NAMED_REQUEST = re.compile(rb"([A-Z-]{1,32}) (/[!->@-~]*)(?:\?[!-~]*)?")

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
_REASON_LINE = re.compile(
    rb"\r\n" + re.escape(REASON_FIELD) + rb":[ \t]*([a-z0-9-]{1,64})[ \t]*\r\n", re.IGNORECASE
)
_LONGEST_HEAD = 65_536
# Bytes of an answer that are looked through for its status: as max_head_bytes is by default.

_RAW_FIELDS = ((b"Content-Type", b"application/octet-stream"), (b"Connection", b"close"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Way:
    handle: SessionHandle
    stream: trio.abc.HalfCloseableStream
    visit: Visit

    @property
    def cut(self) -> dict[str, str]:
        """The end of a visit that was cut, for the log."""
        reason = self.visit.cut_reason
        return {} if reason is None else {"cut": reason}

    def tell(self, what: dict[str, object], moved: tuple[int, int], started: float) -> None:
        """Report to callers that watch requests that it is over."""
        visit, reason = self.visit, self.visit.cut_reason
        visit.feed.tell(
            visit.way,
            {
                "device": visit.device,
                "service": visit.service,
                "visitor": visit.visitor,
                **what,
                **({"problem": f"cut: {reason}"} if reason is not None else {}),
                "bytes_in": moved[0],
                "bytes_out": moved[1],
                "seconds": round(trio.current_time() - started, 4),
            },
        )


class StreamForwarder:
    """Serves forward/raw and forward/ws."""

    def __init__(
        self,
        store: DeviceStore,
        gate: ForwardGate,
        visits: VisitRegister,
        lease_runs: LeaseRuns = no_leases,
    ) -> None:
        self._lease_runs = lease_runs
        self._store = store
        self._visits = visits
        self._gate = gate

    @asynccontextmanager
    async def _open(self, call: Call, way: Way) -> AsyncIterator[_Way]:
        """Within the block: a place among the session's forwards, and a stream, which is reset if
        the block fails.
        """
        handle = await find_session(self._store, call.query_token)
        lease = (first_value(call.request.headers, LEASE_FIELD.lower()) or b"").decode("latin-1")
        if lease and not self._lease_runs(lease, handle.device):
            raise ApiError("LEASE_OVER", "this lease does not run, or is about another device")
        with self._gate.hold(handle.token, call.limits.max_forwards_per_session):
            stream = await open_stream(handle, call.http_limits.connect_timeout)
            service = first_value(call.request.headers, SERVICE_FIELD.lower())
            visit = self._visits.begin(
                way,
                device=handle.device,
                service=service.decode("latin-1") if service else None,
                visitor=call.remote,
                scheme=way,
            )
            visit.lease = lease
            with visit:
                visit.hold(stream)
                # The lease may have ended while the stream was opened.
                if lease and not self._lease_runs(lease, handle.device):
                    await abort(stream)
                    raise ApiError("LEASE_OVER", "this lease has just ended")
                try:
                    yield _Way(handle, stream, visit)
                except BaseException:
                    await abort(stream)
                    raise

    async def raw(self, call: Call) -> None:
        """Turn the connection into a stream to the agent, with bytes passed on unchanged. With an
        `Upgrade` the answer is 101, without one 200. A request that declares a body sends that
        body, and the end of the body is the end of sending.
        """
        server, request = call.server, call.request
        protocol = _offered_protocol(request)
        result = RelayResult()
        started = trio.current_time()
        named = _named_request(request)
        answer = _NamedAnswer()
        async with self._open(call, "api" if named else "raw") as way:
            way.visit.count = lambda: result.bytes_now
            # Only an answer to a request has a status to read; all else may go by the pump.
            onward = TappedStream(way.stream, answer) if named else way.stream
            try:
                if protocol is not None:
                    headers = [(b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
                    await server.send_switch(101, b"Switching Protocols", headers)
                else:
                    if has_member(request.headers, b"expect", b"100-continue"):
                        await server.send_interim(100, b"Continue", [])
                    await server.send_switch(200, b"OK", list(_RAW_FIELDS))
                if protocol is None and request.has_body:
                    await self._relay_body(server, onward, result)
                else:
                    early = server.take_buffer()
                    await relay(server.stream, onward, from_a=early, result=result)
            finally:
                _log.info(
                    "raw forward ended",
                    device=way.handle.device,
                    token=shorten_token(way.handle.token),
                    bytes_in=result.bytes_a_to_b,
                    bytes_out=result.bytes_b_to_a,
                    seconds=round(trio.current_time() - started, 4),
                    outcome="not begun" if result.ended == "running" else result.ended,
                    **({"status": answer.status} if answer.status else {}),
                    **way.cut,
                )
                way.tell(named | answer.fields, result.bytes_now, started)

    async def _relay_body(
        self, server: ApiConnection, stream: trio.abc.Stream, result: RelayResult
    ) -> None:
        await relay(_DeclaredBody(server), stream, result=result)
        if result.ended == "finished":
            await server.close()
        else:
            await server.abort()  # a cut response must not look like a complete one

    async def websocket(self, call: Call) -> None:
        """Connect a WebSocket of the caller to the path `?path=` of the device; frames are
        unchanged.
        """
        request = call.request
        is_upgrade = has_member(request.headers, b"connection", b"upgrade")
        if not is_upgrade or not has_member(request.headers, b"upgrade", b"websocket"):
            raise ApiError(
                "UPGRADE_REQUIRED",
                "forward/ws takes WebSocket upgrades only: open it with a WebSocket client",
                headers=[(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")],
            )
        target = encode_target(read_query(call.query, WebSocketQuery).path or "/")
        async with self._open(call, "ws") as way:
            limits = call.http_limits
            own = response_timeout(way.handle, way.visit.service)
            more = max(0.0, own - limits.response_timeout) if own is not None else 0.0
            upstream = Upstream(
                stream=way.stream,
                headers=_fields_for_device(request),
                describe=f"device {way.handle.device}",
                response_timeout=PATIENCE["answer"](limits) + more,
                broken_reason="tunnel-lost",
            )
            exchange = Exchange(request=request)
            way.visit.count = lambda: exchange.bytes_now
            onward = dataclasses.replace(request, target=target)
            try:
                await forward(call.server, onward, upstream, limits, exchange)
                if not exchange.upgraded:
                    await call.server.close()
            finally:
                _log.info(
                    "ws forward ended",
                    device=way.handle.device,
                    token=shorten_token(way.handle.token),
                    status=exchange.status or None,
                    bytes_in=exchange.bytes_in,
                    bytes_out=exchange.bytes_out,
                    seconds=round(trio.current_time() - exchange.started, 4),
                    **({"problem": exchange.problem} if exchange.problem else {}),
                    **way.cut,
                )
                what: dict[str, object] = {
                    "method": "GET",
                    "path": target.decode("ascii").partition("?")[0],
                    "status": exchange.status,
                    "upgraded": exchange.upgraded,
                    "problem": exchange.problem,
                }
                way.tell(what, (exchange.bytes_in, exchange.bytes_out), exchange.started)


def _named_request(request: RequestHead) -> dict[str, object]:
    """Method and path of the request that is to go through, where the caller has named it. Raises
    ApiError."""
    said = first_value(request.headers, REQUEST_FIELD.lower())
    if said is None:
        return {}
    found = _NAMED_REQUEST.fullmatch(said)
    if found is None:
        field = REQUEST_FIELD.decode("ascii")
        raise ApiError("INVALID_REQUEST", f'{field} is not "METHOD /path"')
    return {"method": found[1].decode("ascii"), "path": found[2].decode("ascii")}


class _NamedAnswer:
    """A tap that reads status and reason of an answer as its bytes pass, and changes nothing."""

    def __init__(self) -> None:
        self.status = 0
        self._reason = ""
        self._head: bytearray | None = bytearray()
        self._searched = 0

    @property
    def fields(self) -> dict[str, object]:
        """What those who watch requests are told of it; nothing of one without a status."""
        if not self.status:
            return {}
        upgraded = self.status == HTTPStatus.SWITCHING_PROTOCOLS
        return {"status": self.status, "reason": self._reason, "upgraded": upgraded}

    def asked(self, data: bytes) -> None:
        """The request's own bytes say nothing about the answer."""

    def began(self, head: ResponseHead) -> None:
        """Heads are not read one by one on this way."""

    def answered(self, data: bytes) -> None:
        """The next bytes of the answer; only those of its heads are looked at."""
        if self._head is None:
            return
        self._head += data[: _LONGEST_HEAD + 4]
        while (end := self._head.find(b"\r\n\r\n", self._searched)) >= 0:
            if self._is_final(bytes(self._head[: end + 2])):
                self._head = None
                return
            del self._head[: end + 4]
            self._searched = 0
        self._searched = max(0, len(self._head) - 3)
        if len(self._head) > _LONGEST_HEAD:
            self._head = None

    def _is_final(self, head: bytes) -> bool:
        """Read a whole head. Interim ones (RFC 9110 section 15.2) come before the final one."""
        line = _STATUS_LINE.match(head)
        status = int(line[1]) if line is not None else 0
        if 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:
            return False
        self.status = status
        if (reason := _REASON_LINE.search(head)) is not None:
            self._reason = reason[1].decode("ascii")
        return True


class _DeclaredBody(trio.abc.Stream):
    """A stream that reads the body of the caller's request and writes raw bytes. It does not own
    the connection: its maker closes or cuts that.
    """

    def __init__(self, server: ApiConnection) -> None:
        self._server = server

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        # A piece may be longer than was asked for; relay() accepts that.
        try:
            data, _ = await self._server.read_body()
        except (BadBody, VisitorGone) as error:
            raise trio.BrokenResourceError(str(error)) from error
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._server.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._server.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _fields_for_device(request: RequestHead) -> list[Field]:
    """The caller's fields without its credentials, which a device must not see."""
    kept = [
        (name, value)
        for name, value in end_to_end(request.headers)
        if (key := name.lower()) != b"authorization"
        and (not key.startswith(b"tunnelmux-") or key == SERVICE_FIELD.lower())
    ]
    return replace_host(kept, b"127.0.0.1")


def _offered_protocol(request: RequestHead) -> bytes | None:
    if not has_member(request.headers, b"connection", b"upgrade"):
        return None
    offered = field_values(request.headers, b"upgrade")
    return offered[0] if offered else None
