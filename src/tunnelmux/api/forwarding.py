"""Passes a program's request on to a service of a device, and the answer back, as they come.

A device's answer must never act as a page of this server. So only access tokens may forward (the
routes check that), cookies are not passed in either direction, and every answer is marked so that a
browser shows it in a sandbox.
"""

from __future__ import annotations

import contextlib
import re
from typing import cast

import trio
import trio_websocket
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from tunnelmux.api.problems import Refused, problem_response, unreachable_refusal
from tunnelmux.backend.proxies import Proxies
from tunnelmux.errors import DeviceUnreachable
from tunnelmux.http import (
    ClientConnection,
    ConnectFailed,
    ConnectStream,
    PeerGone,
    ResponseHead,
    open_connect,
)
from tunnelmux.http.fields import end_to_end, without_own_fields
from tunnelmux.http.head import Field
from tunnelmux.limits import IngressLimits
from tunnelmux.wire import SERVICE_FIELD

__all__ = [
    "ForwardedResponse",
    "answer_fields",
    "refuse_websocket",
    "relay_raw",
    "relay_websocket",
    "service_head",
]

_CONNECT_TIMEOUT = 15.0
# Seconds for an agent to reach its target: the agent's own limit is shorter, its reason better.

_STUCK = 30.0
# Seconds for one message to a caller that does not read; then the relay ends. Without it, the two
# directions could wait for each other for ever when both are full and the caller is gone.

_OWN_REQUEST_FIELDS = {b"authorization", b"cookie", b"host", b"content-length", b"expect"}
_OWN_ANSWER_FIELDS = {
    *(b"set-cookie", b"clear-site-data"),
    *(b"content-length", b"content-security-policy"),
    *(b"x-sendfile", b"x-lighttpd-send-file", b"x-reproxy-url"),
}
_FOR_NGINX = b"x-accel-"
# Like `X-Sendfile` an order to the proxy in front, which would answer with another path of ours, as
# the caller, or with a file of its own.

_SANDBOX = (
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
)

_CONNECT_CODES = {
    "unknown-service": (404, "no_such_service"),
    "target-timeout": (504, "device_timeout"),
}
# The codes for the agent's reasons (`Tunnelmux-Reason`); all other reasons are `service_away`.

_PLAIN_PATH = re.compile(rb"/[!->@-~]{0,4095}")

_LIMITS = IngressLimits()


def answer_fields(head: ResponseHead) -> list[Field]:
    """The header fields for the caller, of a service's answer with this head."""
    headers = [
        (name.lower(), value)
        for name, value in without_own_fields(end_to_end(head.headers))
        if name.lower() not in _OWN_ANSWER_FIELDS and not name.lower().startswith(_FOR_NGINX)
    ]
    if head.content_length is not None:
        headers.append((b"content-length", b"%d" % head.content_length))
    return [*headers, *_SANDBOX]


def service_head(service: str, headers: list[Field], host: bytes) -> list[Field]:
    """The header fields of a request to a service of a device."""
    kept = [
        (name, value)
        for name, value in without_own_fields(end_to_end(headers))
        if name.lower() not in _OWN_REQUEST_FIELDS
    ]
    return [(b"Host", host), *kept, (SERVICE_FIELD, service.encode("ascii"))]


class ForwardedResponse(Response):
    """The device's answer to a request, as a response.

    Bodies go both ways at once, as they come; an answer may begin before the request's body is
    complete. An error before the answer has begun is answered with a problem document.
    """

    def __init__(
        self, proxies: Proxies, label: str, service: str, target: bytes, timeout: float
    ) -> None:
        super().__init__()
        self._proxies = proxies
        self._label = label
        self._service = service
        self._target = target
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; called by the framework."""
        try:
            request = _for_watchers(scope["method"], self._target)
            async with self._proxies.stream_to(
                self._label, service=self._service, request=request
            ) as stream:
                client = ClientConnection(stream, _LIMITS)
                await self._exchange(client, scope, receive, send)
        except (Refused, DeviceUnreachable) as exc:
            cause = unreachable_refusal(exc) if isinstance(exc, DeviceUnreachable) else exc
            refusal = problem_response(
                cause.status, cause.code, cause.detail, headers=cause.headers
            )
            await refusal(scope, receive, send)

    async def _exchange(
        self, client: ClientConnection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        fields: list[Field] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        names = {name for name, _ in fields}
        length = next((value for name, value in fields if name == b"content-length"), None)
        headers = service_head(self._service, fields, self._label.encode("ascii"))
        if length is not None:
            headers.append((b"Content-Length", length))
        chunked = b"transfer-encoding" in names
        has_body = chunked or length is not None
        refusal: Refused | None = None
        async with trio.open_nursery() as nursery:
            try:
                await client.send_request(
                    scope["method"].encode("ascii"),
                    self._target,
                    headers,
                    chunked=chunked,
                    end=not has_body,
                )
                if has_body:
                    nursery.start_soon(_send_body, client, receive)
                head = await self._final_head(client)
            except PeerGone as exc:
                message = f"The device did not answer: {exc}."
                refusal = Refused(502, "device_answer_lost", message)
            except Refused as exc:
                refusal = exc
            else:
                await self._answer(client, head, send)
            nursery.cancel_scope.cancel()
        if refusal is not None:
            raise refusal

    async def _final_head(self, client: ClientConnection) -> ResponseHead:
        with trio.move_on_after(self._timeout):
            while (head := await client.read_head()).is_interim:
                pass
            if head.status == 101:
                message = "The service changed the protocol: use the path with /ws/ for WebSockets."
                raise Refused(502, "unexpected_upgrade", message)
            return head
        message = f"The service did not answer within {self._timeout:g} s."
        raise Refused(504, "device_timeout", message)

    async def _answer(self, client: ClientConnection, head: ResponseHead, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": head.status,
                "headers": answer_fields(head),
            }
        )
        done = False
        while not done:
            # An error here ends the caller's connection too, and must not be turned into the end of
            # the body: an answer that was cut short must not look complete.
            data, done = await client.read_body()
            await send({"type": "http.response.body", "body": data, "more_body": not done})


def _for_watchers(method: str, target: bytes) -> str:
    """The request line for people who watch requests; empty if the path cannot be in a field."""
    path = target.partition(b"?")[0]
    return f"{method} {path.decode('ascii')}" if _PLAIN_PATH.fullmatch(path) else ""


async def _send_body(client: ClientConnection, receive: Receive) -> None:
    """Pass the request's body on until its end, or until the device stops reading it."""
    with contextlib.suppress(PeerGone):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            more = message.get("more_body", False)
            await client.send_body(message.get("body", b""), end=not more)
            if not more:
                return


async def relay_raw(proxies: Proxies, label: str, service: str, websocket: WebSocket) -> None:
    """Join a WebSocket of binary messages to a raw connection to a service of a device.

    An empty message is the end of one direction (FIN). The close of the WebSocket is the end of
    both, with the code 4502 and a reason when the connection broke. The handshake is answered when
    the service has accepted the connection; a refusal is a problem document instead.
    """
    try:
        async with proxies.stream_to(label, service=service) as stream:
            connection = await open_connect(
                stream, service, _LIMITS, answer_timeout=_CONNECT_TIMEOUT
            )
            await _agreed(connection)
            await websocket.accept()
            await _carry(websocket, connection)
    except DeviceUnreachable as exc:
        await refuse_websocket(websocket, unreachable_refusal(exc))
    except Refused as exc:
        await refuse_websocket(websocket, exc)
    except (ConnectFailed, PeerGone) as exc:
        await websocket.close(4502, str(exc)[:120])


async def _agreed(connection: ConnectStream) -> None:
    """Return when the service has accepted the connection; raises Refused."""
    try:
        await connection.wait_answer()
    except ConnectFailed as exc:
        status, code = _CONNECT_CODES.get(exc.reason or "", (502, "service_away"))
        said = str(exc).removesuffix(f" ({exc.reason})")
        raise Refused(status, code, said) from exc


async def refuse_websocket(websocket: WebSocket, refusal: Refused) -> None:
    """Answer a handshake that was not accepted with a problem document."""
    response = problem_response(
        refusal.status,
        refusal.code,
        refusal.detail,
        # anycorn closes after it, but does not add this field.
        headers={**(refusal.headers or {}), "connection": "close"},
    )
    await websocket.send_denial_response(response)


async def _carry(websocket: WebSocket, connection: trio.abc.HalfCloseableStream) -> None:
    broken: list[Exception] = []

    async def down() -> None:
        try:
            async for data in connection:
                with trio.fail_after(_STUCK):
                    await websocket.send_bytes(bytes(data))
            with trio.fail_after(_STUCK):
                await websocket.send_bytes(b"")
        except (ConnectFailed, PeerGone) as exc:
            broken.append(exc)
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass
        else:
            ended.set()
            return
        nursery.cancel_scope.cancel()

    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(down)
        with contextlib.suppress(WebSocketDisconnect, trio.BrokenResourceError, KeyError):
            while data := await websocket.receive_bytes():
                await connection.send_all(data)
            await connection.send_eof()
            await ended.wait()
        nursery.cancel_scope.cancel()
    if broken:
        raise broken[0]
    with contextlib.suppress(RuntimeError):
        await websocket.close()


_NO_WEBSOCKET = (
    trio_websocket.HandshakeError,
    trio.TooSlowError,
    OSError,
    trio.BrokenResourceError,
)


async def relay_websocket(
    proxies: Proxies, label: str, service: str, websocket: WebSocket, target: bytes
) -> None:
    """Join a WebSocket to one of a service of a device, message by message."""
    accepted = False
    wanted: list[str] = list(websocket.scope.get("subprotocols", []))
    headers = [(SERVICE_FIELD, service.encode("ascii"))]
    try:
        request = _for_watchers("GET", target)
        async with (
            proxies.stream_to(label, service=service, request=request) as stream,
            trio.open_nursery() as nursery,
        ):
            with trio.fail_after(_CONNECT_TIMEOUT):
                upstream = await trio_websocket.wrap_client_stream(
                    nursery,
                    cast("trio.SocketStream", stream),  # any stream will do
                    label,
                    target.decode("ascii"),
                    subprotocols=wanted or None,
                    extra_headers=headers,
                )
            await websocket.accept(upstream.subprotocol or None)
            accepted = True
            await _carry_messages(websocket, upstream)
            nursery.cancel_scope.cancel()
    except* (DeviceUnreachable, *_NO_WEBSOCKET) as group:
        found = group.exceptions[0]
        if accepted:
            with contextlib.suppress(RuntimeError):
                await websocket.close(4502, "the device's connection ended")
        elif isinstance(found, DeviceUnreachable):
            await refuse_websocket(websocket, unreachable_refusal(found))
        else:
            refusal = Refused(502, "no_websocket", "The service took no WebSocket.")
            await refuse_websocket(websocket, refusal)


async def _carry_messages(
    websocket: WebSocket, upstream: trio_websocket.WebSocketConnection
) -> None:
    async def down() -> None:
        with contextlib.suppress(trio_websocket.ConnectionClosed, trio.TooSlowError, RuntimeError):
            while True:
                message = await upstream.get_message()
                with trio.fail_after(_STUCK):
                    if isinstance(message, str):
                        await websocket.send_text(message)
                    else:
                        await websocket.send_bytes(message)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(down)
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while (message := await websocket.receive())["type"] == "websocket.receive":
                text: str | None = message.get("text")
                content: bytes = message.get("bytes") or b""
                await upstream.send_message(text if text is not None else content)
        nursery.cancel_scope.cancel()
    with contextlib.suppress(RuntimeError):
        await websocket.close()
