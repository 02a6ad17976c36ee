"""A byte stream inside a WebSocket (RFC 6455), client and server, on trio-websocket.

Binary messages only; together they are one byte stream, and message boundaries mean nothing.
trio-websocket does the framing, ping/pong and close. Between it and the transport stands a
`_Wire`, which keeps three of its weaknesses from mattering: a cancelled write that leaves half a
frame ends the connection instead of tearing the byte stream; the handshake ends at once, with a
clear error, when the peer leaves or answers anything but 101; and an error inside the library
breaks this one stream, never its listener.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
import trio_websocket

from tunnelmux.conflict import OneAtATime
from tunnelmux.errors import ConnectError, RemoteProtocolError
from tunnelmux.observability import get_logger
from tunnelmux.transports.handshake import HANDSHAKE_TIMEOUT, Headers, UpgradeRequest, read_response
from tunnelmux.transports.tcp import TCP_USER_TIMEOUT, open_tcp
from tunnelmux.transports.url import TunnelURL, parse_url

__all__ = [
    "CLOSE_TIMEOUT",
    "MAX_MESSAGE_SIZE",
    "SUBPROTOCOL",
    "WebSocketStream",
    "accept_websocket",
    "connect_websocket",
    "start_websocket_client",
    "start_websocket_server",
]

_log = get_logger("transports")

SUBPROTOCOL = "tunnelmux.v1"

MAX_MESSAGE_SIZE = 16 * 1024 * 1024 + 65_536
"""Largest message taken from a peer, in bytes; a larger one ends the stream with close code 1009.
Ours are 64 KiB at most, but hashicorp/yamux sends whatever the window allows as one frame, and
`Limits.max_stream_window` allows 16 MiB."""

CLOSE_TIMEOUT = 1.0
"""Seconds a closing handshake may take. The session above has said goodbye by then: what is left
is politeness, and a dead peer must not hold up a restart."""

_SEND_MESSAGE = 65_536
_RECEIVE_BUFFER = 65_536  # 256 KiB was measured to be no faster; 4 KiB halves the rate
_QUEUED_MESSAGES = 1  # read ahead while the receiver works; times MAX_MESSAGE_SIZE is the bound
_CLEAN_CLOSES = frozenset({1000, 1001, 1005})  # normal, going away, no code at all


class _Wire(trio.abc.Stream):
    """The stream trio-websocket reads and writes: the transport, with the handshake guarded.

    On the client side `awaits_response` has the server's answer checked before trio-websocket sees
    it. On the server side the `request` was read already: its head comes first, and what the peer
    sent behind it only once the 101 is out.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        *,
        where: str,
        awaits_response: bool = False,
        request: UpgradeRequest | None = None,
    ) -> None:
        self.transport = transport
        self.response_headers: Headers = ()
        self.torn = False
        self._where = where
        self._awaits_response = awaits_response
        self._head = request.head if request is not None else b""
        self._behind_head = request.rest if request is not None else b""
        self._opened = trio.Event()
        self._lock = trio.StrictFIFOLock()

    def set_opened(self) -> None:
        """The 101 has passed: bytes after the request head may be given out as frames."""
        self._opened.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._lock:
            if self.torn:
                raise trio.BrokenResourceError("an earlier send was cut short")
            # Until send_all returns, part of a frame may be on the wire and the rest not.
            self.torn = True
            await self.transport.send_all(data)
            self.torn = False

    async def wait_send_all_might_not_block(self) -> None:
        async with self._lock:
            await self.transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._awaits_response:
            self._awaits_response = False
            data, self.response_headers = await read_response(
                self.transport.receive_some, self._where
            )
            return data
        if self._head:
            head, self._head = self._head, b""
            return head
        # Frames sent before our 101 would be lost in wsproto's HTTP parser: hold them back.
        # Bounded by the handshake's own deadline.
        await self._opened.wait()
        if self._behind_head:
            data, self._behind_head = self._behind_head, b""
            return data
        return await self.transport.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.transport.aclose()


class WebSocketStream(trio.abc.Stream):
    """A byte stream over the binary messages of one WebSocket, as Trio's streams go.

    A send that is cancelled or fails breaks the stream for good: the peer may have half a frame,
    so the connection is aborted and later sends raise BrokenResourceError. A cancelled receive
    loses nothing. A text message, an oversize message and a close with an error code raise
    BrokenResourceError with the cause.
    """

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        wire: _Wire,
        reader: trio.CancelScope,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._reader = reader
        self._sending = OneAtATime("another task is sending on this WebSocket")
        self._receiving = OneAtATime("another task is receiving on this WebSocket")
        self._unread = memoryview(b"")
        self._closed = False
        self._at_eof = False
        self._broken: Exception | None = None

    @property
    def response_headers(self) -> Headers:
        """The header fields of the server's 101 (client side), names in lower case."""
        return self._wire.response_headers

    @property
    def subprotocol(self) -> str | None:
        """The agreed subprotocol; None with a plain yamux peer."""
        return self._connection.subprotocol

    @property
    def transport(self) -> trio.abc.Stream:
        """The stream below: TCP, TLS or memory."""
        return self._wire.transport

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this WebSocket was closed")
        if self._broken is not None:
            raise trio.BrokenResourceError(str(self._broken)) from self._broken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every byte, as messages of at most 64 KiB."""
        with self._sending:
            self._check()
            try:
                await trio.lowlevel.checkpoint()
                with memoryview(data) as view, view.cast("B") as octets:
                    for start in range(0, len(octets), _SEND_MESSAGE):
                        message = bytes(octets[start : start + _SEND_MESSAGE])
                        await self._connection.send_message(message)
            except trio_websocket.ConnectionClosed as exc:
                self._check()  # closed by aclose() meanwhile, or broken by the receiver
                raise trio.BrokenResourceError(self._describe(exc)) from None
            except BaseException:
                self._break(ConnectError("a send on this WebSocket was cut short"))
                await self._abort()
                raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport might take bytes."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check()
            try:
                await self._wire.wait_send_all_might_not_block()
            except trio.ClosedResourceError:
                self._check()
                raise trio.BrokenResourceError("the connection was aborted") from None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to `max_bytes` bytes, whatever has come when None; b"" after the peer's close."""
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this WebSocket was closed")
            while not self._unread:
                self._check()
                if self._at_eof:
                    return b""
                await self._next_message()
            if max_bytes is None or max_bytes >= len(self._unread):
                whole, self._unread = self._unread, memoryview(b"")
                # A message is taken whole without a copy where it can be.
                return whole.obj if len(whole) == len(whole.obj) else bytes(whole)  # type: ignore[arg-type,return-value]
            data = bytes(self._unread[:max_bytes])
            self._unread = self._unread[max_bytes:]
            return data

    async def _next_message(self) -> None:
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            self._check()
            if exc.reason is not None and exc.reason.code in _CLEAN_CLOSES:
                self._at_eof = True
                return
            error = RemoteProtocolError(self._describe(exc))
            self._break(error)
            await self._abort()
            raise trio.BrokenResourceError(str(error)) from error
        if isinstance(message, str):
            text = RemoteProtocolError(
                "the peer sent a WebSocket text message; a tunnel carries binary messages only"
            )
            self._break(text)
            await self._close_connection(1003, "binary messages only")
            await self._abort()
            raise trio.BrokenResourceError(str(text)) from text
        self._unread = memoryview(message)

    def _break(self, error: Exception) -> None:
        if self._broken is None:
            self._broken = error

    def _describe(self, exc: trio_websocket.ConnectionClosed) -> str:
        reason = exc.reason
        if reason is None or reason.code == 1006:
            return "the WebSocket connection ended without a closing handshake"
        if reason.code == 1009:
            return f"a WebSocket message was larger than {MAX_MESSAGE_SIZE} bytes (1009)"
        text = f": {reason.reason}" if reason.reason else ""
        return f"the WebSocket was closed with code {reason.code} {reason.name}{text}"

    async def aclose(self) -> None:
        """Close with a closing handshake of at most 1 s, then drop the connection."""
        already, self._closed = self._closed, True
        try:
            if already or self._broken is not None or self._wire.torn or self._sending.busy:
                await trio.lowlevel.checkpoint()
            else:
                await self._close_connection(1000, None)
        finally:
            await self._abort()

    async def _close_connection(self, code: int, reason: str | None) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._connection.aclose(code, reason)

    async def _abort(self) -> None:
        """Drop the connection without waiting for anyone; both halves wake with an error."""
        self._reader.cancel()
        # Shielded: it does not wait, and a cancelled caller must still not leave a socket open.
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._wire.transport)


class _Handshake:
    """Runs trio-websocket's reader for one connection, and turns its failures into ours."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._done = False

    async def run_client(
        self,
        url: TunnelURL,
        headers: Headers,
        subprotocols: Sequence[str],
        *,
        task_status: trio.TaskStatus[WebSocketStream],
    ) -> None:
        try:
            async with trio.open_nursery() as nursery:
                connection = await trio_websocket.wrap_client_stream(
                    nursery,
                    self._wire,  # type: ignore[arg-type]  # any Trio stream does
                    url.authority,
                    url.target,
                    subprotocols=subprotocols,
                    extra_headers=list(headers),
                    message_queue_size=_QUEUED_MESSAGES,
                    max_message_size=MAX_MESSAGE_SIZE,
                    receive_buffer_size=_RECEIVE_BUFFER,
                )
                self._opened(connection, nursery, task_status)
        except BaseExceptionGroup as group:
            self._handle(group)
        finally:
            await self._drop()

    async def run_server(
        self,
        subprotocol: str | None,
        headers: Headers,
        *,
        task_status: trio.TaskStatus[WebSocketStream],
    ) -> None:
        try:
            async with trio.open_nursery() as nursery:
                request = await trio_websocket.wrap_server_stream(
                    nursery,
                    self._wire,
                    message_queue_size=_QUEUED_MESSAGES,
                    max_message_size=MAX_MESSAGE_SIZE,
                    receive_buffer_size=_RECEIVE_BUFFER,
                )
                try:
                    connection = await request.accept(
                        subprotocol=subprotocol, extra_headers=list(headers)
                    )
                except trio_websocket.ConnectionClosed:
                    raise ConnectError("the peer left during the handshake") from None
                self._opened(connection, nursery, task_status)
        except BaseExceptionGroup as group:
            self._handle(group)
        finally:
            await self._drop()

    def _opened(
        self,
        connection: trio_websocket.WebSocketConnection,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[WebSocketStream],
    ) -> None:
        self._done = True
        self._wire.set_opened()
        task_status.started(WebSocketStream(connection, self._wire, nursery.cancel_scope))

    def _handle(self, group: BaseExceptionGroup[BaseException]) -> None:
        _cancelled, rest = group.split(trio.Cancelled)
        if rest is None:
            raise group
        if not self._done:
            ours = rest.subgroup(ConnectError)
            first: BaseException = ours or rest
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            if isinstance(first, ConnectError):
                raise first from first.__cause__
            if not isinstance(first, Exception):
                raise first
            raise ConnectError(f"the WebSocket handshake failed: {first}") from first
        if not isinstance(rest, ExceptionGroup):
            raise rest
        # The library failed on what the peer sent. The stream breaks (its queue is closed and
        # the connection dropped); nobody else is concerned.
        _log.warning("websocket failed", error=repr(rest.exceptions[0]))

    async def _drop(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._wire.transport)


async def start_websocket_client(
    nursery: trio.Nursery,
    transport: trio.abc.Stream,
    url: TunnelURL,
    *,
    headers: Headers = (),
    subprotocols: Sequence[str] = (SUBPROTOCOL,),
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> WebSocketStream:
    """Make the WebSocket handshake on a connected `transport`, which the stream then owns.

    The reader runs in `nursery` until the stream ends; it never raises there. Raises ConnectError
    or ConnectRefused, with the transport closed.
    """
    handshake = _Handshake(_Wire(transport, where=str(url), awaits_response=True))
    try:
        with trio.fail_after(handshake_timeout):
            stream: WebSocketStream = await nursery.start(
                partial(handshake.run_client, url, headers, subprotocols)
            )
            return stream
    except trio.TooSlowError:
        raise ConnectError(
            f"{url} did not finish the WebSocket handshake within {handshake_timeout:g} s; check "
            "that the port is the tunnel port"
        ) from None


async def start_websocket_server(
    nursery: trio.Nursery,
    request: UpgradeRequest,
    *,
    headers: Headers = (),
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> WebSocketStream:
    """Answer `request` with a 101 that carries `headers`; `tunnelmux.v1` is echoed if offered.

    The reader runs in `nursery` until the stream ends; it never raises there. Raises ConnectError,
    with the transport closed, when the peer leaves meanwhile.
    """
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in request.subprotocols else None
    handshake = _Handshake(_Wire(request.stream, where="the peer", request=request))
    try:
        with trio.fail_after(handshake_timeout):
            stream: WebSocketStream = await nursery.start(
                partial(handshake.run_server, subprotocol, headers)
            )
            return stream
    except trio.TooSlowError:
        raise ConnectError(
            f"the peer did not take the answer within {handshake_timeout:g} s"
        ) from None


@asynccontextmanager
async def _owned(nursery: trio.Nursery, stream: WebSocketStream) -> AsyncIterator[WebSocketStream]:
    try:
        yield stream
    finally:
        await stream.aclose()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connect_websocket(
    url: str | TunnelURL,
    *,
    headers: Headers = (),
    subprotocols: Sequence[str] = (SUBPROTOCOL,),
    ssl_context: ssl.SSLContext | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    tcp_user_timeout: float | None = TCP_USER_TIMEOUT,
) -> AsyncIterator[WebSocketStream]:
    """A WebSocket byte stream to a ws:// or wss:// URL for the length of the block.

    The connection, TLS and the handshake together may take `handshake_timeout` seconds. Raises
    ConnectError when nobody answers properly and ConnectRefused when the answer is no 101; what
    the block raises comes out unchanged.
    """
    if isinstance(url, str):
        url = parse_url(url)
    if url.is_secure and ssl_context is None:
        ssl_context = ssl.create_default_context()
    started = trio.current_time()
    transport = await open_tcp(
        url.host,
        url.port,
        ssl_context=ssl_context if url.is_secure else None,
        timeout=handshake_timeout,
        user_timeout=tcp_user_timeout,
    )
    remaining = max(started + handshake_timeout - trio.current_time(), 0.1)
    async with _body_errors_unwrapped() as nursery:
        stream = await start_websocket_client(
            nursery,
            transport,
            url,
            headers=headers,
            subprotocols=subprotocols,
            handshake_timeout=remaining,
        )
        async with _owned(nursery, stream):
            yield stream


@asynccontextmanager
async def accept_websocket(
    request: UpgradeRequest,
    *,
    headers: Headers = (),
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> AsyncIterator[WebSocketStream]:
    """Accept `request` and give its byte stream for the length of the block.

    `headers` go into the 101. Raises ConnectError when the peer leaves before it is complete;
    what the block raises comes out unchanged.
    """
    async with _body_errors_unwrapped() as nursery:
        stream = await start_websocket_server(
            nursery, request, headers=headers, handshake_timeout=handshake_timeout
        )
        async with _owned(nursery, stream):
            yield stream


@asynccontextmanager
async def _body_errors_unwrapped() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks never raise, so that the body's own exception needs no group."""
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
                raise
    except BaseExceptionGroup:
        if failure is None:
            raise
        raise failure from failure.__cause__
