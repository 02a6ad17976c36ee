"""POST /internal/forward/http: one request and its response, both wrapped in JSON."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from typing import Annotated, Any

import h11
import msgspec
import trio

from tunnelmux.http import ClientConnection, Field, ResponseHead, UpstreamGone
from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.http.fields import end_to_end
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits, InternalLimits
from tunnelmux.proxy.internal.answers import ApiError
from tunnelmux.proxy.internal.sessions import (
    ForwardGate,
    find_session,
    open_stream,
    response_timeout,
)
from tunnelmux.proxy.visitors.feed import RequestFeed
from tunnelmux.proxy.visitors.visit import AGENT_SLACK
from tunnelmux.relay import abort
from tunnelmux.sessions import DeviceStore, SessionHandle
from tunnelmux.wire import SERVICE_FIELD

__all__ = [
    "ForwardHTTPRequest",
    "ForwardHTTPResponse",
    "HttpForwarder",
    "base64_length",
    "decode_forward_request",
    "encode_target",
    "too_large",
]

_SENT_WHOLE = 65_536
# Bytes of a body that are sent before the response is read. They always fit into the window of a
# new stream; with more, a device that answers early without reading would block both sides.

_SERVICE = SERVICE_FIELD.decode("ascii").lower()

_SAFE_TO_REPEAT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
# RFC 9110 section 9.2.2: idempotent methods, which may be sent again.

_SET_HERE = frozenset({b"connection", b"content-length", b"expect", b"host", b"transfer-encoding"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_IN_TARGET = re.compile(r"[^\x21-\x7e]+")


def _told(description: str | None = None, **more: Any) -> msgspec.Meta:
    """A type for the OpenAPI description only: the handler checks values, with more specific
    errors.
    """
    return msgspec.Meta(description=description, extra_json_schema=more)


class ForwardHTTPRequest(msgspec.Struct, kw_only=True):
    """The caller's JSON. A key that is null counts as absent; unknown keys are ignored."""

    session_token: Annotated[str | None, _told(type="string", minLength=1)] = None
    method: Annotated[str | None, _told("GET when absent.")] = None
    path: Annotated[str | None, _told("With its query; / when absent.")] = None
    headers: dict[str, str] | None = None
    body: Annotated[str | None, _told("Empty means no body.", contentEncoding="base64")] = None
    timeout_ms: Annotated[float | None, _told(minimum=1)] = None


class ForwardHTTPResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer's JSON. Field names are in canonical case (`Content-Type`)."""

    status: int
    headers: dict[str, list[str]] = {}
    body: str = ""
    """Base64."""


def base64_length(size: int) -> int:
    """The length of `size` bytes in base64."""
    return (size + 2) // 3 * 4


def decode_forward_request(body: bytes) -> ForwardHTTPRequest:
    """The request in a JSON body. Raises ApiError."""
    try:
        return read_json(body, ForwardHTTPRequest)
    except BadJson as error:
        raise ApiError("INVALID_JSON", str(error)) from None


class _Prepared:
    """A validated request, ready for the wire. Raises ApiError for an invalid one."""

    def __init__(
        self, wanted: ForwardHTTPRequest, limits: InternalLimits, handle: SessionHandle
    ) -> None:
        self.body = _decode_body(wanted.body or "", limits.max_forward_body)
        headers = dict(wanted.headers or {})
        service = next((v for k, v in headers.items() if k.lower() == _SERVICE), None)
        # A service's own response timeout applies to callers as well as to visitors.
        self.service = service or ""
        own = response_timeout(handle, service) or 0.0
        most = max(limits.forward_timeout, own + AGENT_SLACK if own else 0.0)
        self.timeout = _timeout(wanted.timeout_ms, most)
        host = next((v for k, v in headers.items() if k.lower() == "host"), "127.0.0.1")
        try:
            fields = [(k.encode("ascii"), v.encode()) for k, v in headers.items()]
            fields = [pair for pair in end_to_end(fields) if pair[0].lower() not in _SET_HERE]
            event = h11.Request(
                method=(wanted.method or "GET").encode("ascii"),
                target=encode_target(wanted.path or "/"),
                headers=[(b"Host", host.encode("ascii")), *fields],
            )
        except UnicodeError:
            raise _invalid("a name or the method is not ASCII") from None
        except h11.LocalProtocolError as error:
            raise _invalid(str(error)) from None
        if event.method == b"CONNECT":
            raise _invalid("CONNECT needs the connection itself: use /internal/forward/raw")
        self.method, self.target = event.method, event.target
        self.headers: list[Field] = event.headers.raw_items()
        if self.body:
            self.headers.append((b"Content-Length", b"%d" % len(self.body)))
        self.headers.append((b"Connection", b"close"))


class _TunnelBroke(Exception):
    """The stream failed; `error` is the answer for the caller."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(str(error))
        self.error = error


class HttpForwarder:
    """Sends requests to agents; again over the new session where one was replaced meanwhile."""

    def __init__(self, store: DeviceStore, gate: ForwardGate, feed: RequestFeed) -> None:
        self._store = store
        self._gate = gate
        self._feed = feed

    async def forward(
        self,
        wanted: ForwardHTTPRequest,
        limits: InternalLimits,
        http_limits: IngressLimits,
        caller: str = "",
        handle: SessionHandle | None = None,
    ) -> ForwardHTTPResponse:
        """The device's response, by that session or the one that is named. Raises ApiError."""
        if handle is None:
            handle = await find_session(self._store, wanted.session_token or "")
        request = _Prepared(wanted, limits, handle)
        started = trio.current_time()
        what: dict[str, object] = {
            "device": handle.device,
            "service": request.service,
            "visitor": caller,
            "method": request.method.decode("ascii"),
            "path": request.target.decode("ascii").partition("?")[0],
            "bytes_in": len(request.body),
        }
        try:
            response = await self._forward_in_time(handle, request, limits, http_limits)
            what |= {"status": response.status, "bytes_out": len(response.body) * 3 // 4}
        except ApiError as error:
            what["problem"] = error.message
            raise
        finally:
            what["seconds"] = round(trio.current_time() - started, 4)
            self._feed.tell("call", what)
        return response

    async def _forward_in_time(
        self,
        handle: SessionHandle,
        request: _Prepared,
        limits: InternalLimits,
        http_limits: IngressLimits,
    ) -> ForwardHTTPResponse:
        token = handle.token
        with self._gate.hold(token, limits.max_forwards_per_session):
            try:
                with trio.fail_after(request.timeout):
                    return await self._forward(handle, request, limits, http_limits)
            except trio.TooSlowError:
                raise ApiError(
                    "TIMEOUT",
                    f"no complete response within {request.timeout:g} s: for a longer one set "
                    "timeout_ms or limits.forward_timeout, or use /internal/forward/raw",
                ) from None

    async def _forward(
        self,
        handle: SessionHandle,
        request: _Prepared,
        limits: InternalLimits,
        http_limits: IngressLimits,
    ) -> ForwardHTTPResponse:
        while True:  # bounded by the call's deadline; each round needs a new session
            try:
                stream = await open_stream(handle, http_limits.connect_timeout)
            except ApiError as error:
                if not handle.is_closed:
                    raise
                handle = await self._successor(handle, http_limits.reconnect_wait, error)
                continue
            exchange = _Exchange(stream, request, limits.max_forward_body, http_limits)
            try:
                return await exchange.run()
            except _TunnelBroke as broke:
                if not (handle.is_closed and request.method in _SAFE_TO_REPEAT):
                    raise broke.error from broke
                handle = await self._successor(handle, http_limits.reconnect_wait, broke.error)

    async def _successor(
        self, handle: SessionHandle, patience: float, error: ApiError
    ) -> SessionHandle:
        """The session that replaced this one; raises `error` when there is none in time."""
        until = trio.current_time() + patience
        successor = await self._store.wait_for_device(handle.device, until)
        # Another credential is another identity, which this caller did not name.
        if successor is None or successor.credential != handle.credential:
            raise error
        return successor


class _Exchange:
    """One request on one stream."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        request: _Prepared,
        max_body: int,
        limits: IngressLimits,
    ) -> None:
        self._stream = stream
        self._request = request
        self._max_body = max_body
        self._client = ClientConnection(stream, limits)
        self._is_sent = False
        self._is_answered = False

    async def run(self) -> ForwardHTTPResponse:
        try:
            if len(self._request.body) <= _SENT_WHOLE:
                await self._send()
                response = await self._receive()
            else:
                response = await self._send_and_receive()
        except BaseException:
            await abort(self._stream)
            raise
        if not self._is_sent:  # the device reads no more of the request
            await abort(self._stream)
            return response
        # Bounded by the call's deadline. The response is complete, so failures here do not matter.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.aclose()
        return response

    async def _send_and_receive(self) -> ForwardHTTPResponse:
        failure: Exception | None = None
        response: ForwardHTTPResponse | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            try:
                response = await self._receive()
            except (ApiError, _TunnelBroke) as error:
                failure = error  # raised below, where no nursery wraps it in a group
            nursery.cancel_scope.cancel(reason="the response is complete")
        if failure is not None:
            raise failure
        assert response is not None
        return response

    async def _send(self) -> None:
        request = self._request
        try:
            await self._client.send_request(
                request.method, request.target, request.headers, first=request.body, end=True
            )
            self._is_sent = True
        except UpstreamGone:
            pass  # it may have answered before it stopped reading: try to read the answer

    async def _receive(self) -> ForwardHTTPResponse:
        try:
            while (head := await self._client.read_head()).is_interim:
                pass
            self._is_answered = True
            body = await self._read_body()
        except (UpstreamGone, BadBody) as gone:
            raise self._broke(gone) from gone
        if head.status == 101:
            text = "read response from tunnel failed: it changed the protocol unasked (101)"
            raise ApiError("TUNNEL_READ_ERROR", text)
        return ForwardHTTPResponse(
            status=head.status,
            headers=_canonical_headers(head),
            body=base64.b64encode(body).decode("ascii"),
        )

    async def _read_body(self) -> bytes:
        try:
            return await self._client.read_whole_body(self._max_body)
        except BodyTooLong:
            raise ApiError(
                "RESPONSE_TOO_LARGE",
                f"the response is larger than {self._max_body} bytes "
                "(limits.max_forward_body): use /internal/forward/raw, which streams",
            ) from None

    def _broke(self, gone: UpstreamGone | BadBody) -> _TunnelBroke:
        if not (self._is_sent or self._is_answered):
            text = f"write request to tunnel failed: {gone}"
            return _TunnelBroke(ApiError("TUNNEL_WRITE_ERROR", text))
        text = f"read response from tunnel failed: {gone}"
        return _TunnelBroke(ApiError("TUNNEL_READ_ERROR", text))


def _decode_body(text: str, max_body: int) -> bytes:
    # Line breaks are allowed, as in Go's decoder.
    compact = text.replace("\r", "").replace("\n", "")
    try:
        body = base64.b64decode(compact, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError("INVALID_BODY", "body base64 decode failed") from None
    if len(body) > max_body:
        raise too_large(max_body)
    return body


def too_large(max_body: int) -> ApiError:
    """The error for a request that is too large to be buffered."""
    return ApiError(
        "BODY_TOO_LARGE",
        f"the request is larger than {max_body} bytes (limits.max_forward_body): use "
        "/internal/forward/raw, which streams",
    )


def _timeout(milliseconds: float | None, most: float) -> float:
    if not milliseconds:
        return most
    if not 0 < milliseconds <= most * 1000:
        raise _invalid(
            f"timeout_ms must be from 1 to {most * 1000:.0f} (limits.forward_timeout): for more "
            "use /internal/forward/raw"
        )
    return milliseconds / 1000


def encode_target(path: str) -> bytes:
    """A path with its query, encoded for a request line. Raises ApiError."""
    if _CONTROL.search(path):
        raise _invalid("the path has a control character in it")
    if not path.startswith("/"):
        raise _invalid("the path does not begin with /")
    # Characters that a request line cannot hold are percent-encoded, as Go's net/url does.
    return _NOT_IN_TARGET.sub(_percent_encode, path.partition("#")[0]).encode("ascii")


def _percent_encode(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _canonical_headers(head: ResponseHead) -> dict[str, list[str]]:
    """The fields with names as Go's `http.Header` has them, because Go back ends look them
    up so."""
    headers: dict[str, list[str]] = {}
    for name, value in end_to_end(head.headers):
        key = "-".join(part.capitalize() for part in name.decode("ascii").split("-"))
        headers.setdefault(key, []).append(value.decode("utf-8", "replace"))
    return headers


def _invalid(problem: str) -> ApiError:
    return ApiError("INVALID_REQUEST", f"build request failed: {problem}")
