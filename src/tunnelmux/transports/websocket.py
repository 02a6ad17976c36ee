"""A byte stream inside a WebSocket (RFC 6455), client and server, on trio-websocket.

Binary messages only; together they are one byte stream, and message boundaries mean nothing.
trio-websocket does handshake, ping/pong and close. Between it and the transport stands a `_Wire`:
it takes the payload out of the frames and puts it into frames with our compiled framing, so that
trio-websocket sees control frames only and a payload byte is touched once. It also keeps three
weaknesses from mattering: a cancelled write that leaves half a frame ends the connection instead
of tearing the byte stream; the handshake ends at once, with a clear error, when the peer leaves or
answers anything but 101; and an error inside the library breaks this one stream, never its
listener.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import trio
import trio_websocket

from tunnelmux.conflict import OneAtATime
from tunnelmux.errors import ConnectError, RemoteProtocolError
from tunnelmux.observability import get_logger
from tunnelmux.pump.data_pump import ControlSender, Lent, lend_socket
from tunnelmux.pump.websocket import FrameReader, encode_binary
from tunnelmux.transports.dialling import WayOut, try_addresses
from tunnelmux.transports.handshake import HANDSHAKE_TIMEOUT, Headers, UpgradeRequest, read_response
from tunnelmux.transports.tcp import TCP_USER_TIMEOUT
from tunnelmux.transports.url import TunnelURL, parse_url

__all__ = [
    "CLOSE_TIMEOUT",
    "SUBPROTOCOL",
    "WebSocketStream",
    "accept_websocket",
    "connect_websocket",
    "start_websocket_client",
    "start_websocket_server",
]

_log = get_logger("transports")

SUBPROTOCOL = "tunnelmux.v1"

CLOSE_TIMEOUT = 1.0
"""Seconds a closing handshake may take. The session above has said goodbye by then: what is left
is politeness, and a dead peer must not hold up a restart."""

_SEND_MESSAGE = 65_536
_RECEIVE_BUFFER = 65_536  # 256 KiB was measured to be no faster; 4 KiB halves the rate
_READ_AHEAD = 65_536
# Bytes of payload that may wait for the receiver before the transport is read again. Pings behind
# them wait as well; a receiver that reads, as every session's does, is never that far behind.
_CLEAN_CLOSES = frozenset({1000, 1001, 1005})  # normal closure, going away, no status code


class _Wire(trio.abc.Stream):
    """The stream trio-websocket reads and writes: the transport, without the payload.

    On the client side `awaits_response` has the server's answer checked before trio-websocket sees
    it. On the server side the `request` was read already: its head comes first, and what the peer
    sent behind it only once the 101 is out. From then on everything is frames: the payload of
    binary messages goes to `take_payload`, whole control frames to trio-websocket.
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
        self.frames = FrameReader(masked=request is not None)
        self.where = where
        self._awaits_response = awaits_response
        self._head = request.head if request is not None else b""
        self._behind_head = request.rest if request is not None else b""
        self._is_open = False
        self._lock = trio.StrictFIFOLock()
        self._payload: list[bytes] = []  # few pieces: an empty deque takes ten times as much
        self._payload_size = 0
        self._ended = False
        self._changed = trio.lowlevel.ParkingLot()
        self._reading: trio.CancelScope | None = None
        self._sender: ControlSender | None = None
        self._lent = False
        self._dropped = False

    def set_opened(self) -> None:
        """The 101 has passed: bytes after the request head may be given out as frames."""
        self._is_open = True
        self._notify()

    # -- lending the socket -------------------------------------------------------------------

    async def lend(self) -> Lent | None:
        """Let a pump have the socket. Until it gives it back, payload does not come by here."""
        lent = lend_socket(self.transport)
        if lent is None:
            return None
        # Bounded: only a control frame can be on its way, and the peer's kernel takes that.
        async with self._lock:
            if self.torn:
                return None
            self._lent = True
            while self._reading is not None:
                self._reading.cancel()
                await self._changed.park()  # one turn: the reader was cancelled, or has read
        behind_head, self._behind_head = self._behind_head, b""
        self._put_payload(self.frames.receive_data(behind_head))
        if self._ended or self.frames.error is not None or self.frames.close is not None:
            self._take_back(torn=False)  # nothing more will come: a pump would wait for it for ever
            return None
        early = b"".join(self._payload)
        self._payload.clear()
        self._payload_size = 0
        self._notify()
        return replace(
            lent,
            frames=self.frames,
            masks=not self.frames.masked,
            early=early,
            on_lent=self._on_lent,
            on_control=self._on_control,
            give_back=self._take_back,
        )

    def _on_lent(self, sender: ControlSender) -> None:
        self._sender = sender

    def _on_control(self) -> None:
        if self.frames.has_control or self._lock.locked():
            self._notify()

    def _take_back(self, torn: bool) -> None:
        self._lent = False
        self._sender = None
        self.torn = self.torn or torn
        self._notify()

    # -- sending ------------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._lock:
            if self._sender is not None:
                self._sender.queue_control(bytes(data))
                await self._sender_idle()
                return
            if self.torn:
                raise trio.BrokenResourceError("an earlier send was cut short")
            # Until send_all returns, part of a frame may be on the wire and the rest not.
            self.torn = True
            await self.transport.send_all(data)
            self.torn = False

    async def _sender_idle(self) -> None:
        """Wait until what was queued is on its way, so that no more than a flush's worth waits."""
        while self._sender is not None and self._sender.controls_waiting:
            await self._changed.park()

    async def wait_send_all_might_not_block(self) -> None:
        async with self._lock:
            await self.transport.wait_send_all_might_not_block()

    # -- receiving, as trio-websocket's reader does -------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._awaits_response:
            self._awaits_response = False
            data, rest, self.response_headers = await read_response(
                self.transport.receive_some, self.where
            )
            self._behind_head = rest
            return data
        if self._head:
            head, self._head = self._head, b""
            return head
        # Frames sent before our 101 would be lost in wsproto's HTTP parser: hold them back.
        # Bounded by the handshake's own deadline.
        while not (self._is_open or self._ended):
            await self._changed.park()
        while not self._ended:
            if control := self.frames.take_control():
                return control
            if self._lent or self._payload_size >= _READ_AHEAD or self._is_lost():
                await self._changed.park()  # no deadline: the receiver may be slow
                continue
            frames: bytes | bytearray | None = self._behind_head
            self._behind_head = b""
            if not frames:
                frames = await self._read(max_bytes)
                if frames is None:
                    continue
            if not frames:
                self.end()
            else:
                self._put_payload(self.frames.receive_data(frames))
        return b""

    def _is_lost(self) -> bool:
        """The input is unusable: the receiver has been told, and ends the connection."""
        return self.frames.error is not None and self.frames.error[0] != 1003

    async def _read(self, max_bytes: int | None) -> bytes | bytearray | None:
        """Read from the transport; None when the socket was lent meanwhile."""
        frames = None
        try:
            with trio.CancelScope() as self._reading:
                frames = await self.transport.receive_some(max_bytes)
        finally:
            self._reading = None
            if self._lent:
                self._notify()
        return frames

    def _put_payload(self, payload: bytes) -> None:
        if payload:
            self._payload.append(payload)
            self._payload_size += len(payload)
        if payload or self.frames.error is not None or self.frames.close is not None:
            self._notify()

    # -- receiving, as the stream's user does -------------------------------------------------

    async def take_payload(self, max_bytes: int | None) -> bytes:
        """The next bytes of payload; b"" when none will come any more."""
        while not self._payload:
            if self._ended or self.frames.error is not None or self.frames.close is not None:
                return b""
            await self._changed.park()
        payload = self._payload.pop(0)
        if max_bytes is not None and len(payload) > max_bytes:
            self._payload.insert(0, payload[max_bytes:])
            payload = payload[:max_bytes]
        held_back = self._payload_size >= _READ_AHEAD
        self._payload_size -= len(payload)
        if held_back:
            self._notify()
        return payload

    def end(self) -> None:
        """No more bytes will come: wake the receiver."""
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        self._changed.unpark_all()

    async def aclose(self) -> None:
        await self.transport.aclose()

    async def drop(self) -> None:
        """Drop the connection without waiting for the peer; tasks that wait here are woken."""
        self.end()
        if self._sender is not None:
            self._sender.withdraw()  # the pump lets go of the socket before it is closed
        # Shielded: it does not wait, and a cancelled caller must still not leave a socket open.
        with trio.CancelScope(shield=True):
            if self._dropped:  # closing again costs as much as the first time
                await trio.lowlevel.checkpoint()
                return
            self._dropped = True
            await trio.aclose_forcefully(self.transport)


class WebSocketStream(trio.abc.Stream):
    """A byte stream over the binary messages of one WebSocket, as Trio's streams go.

    A send that is cancelled or fails breaks the stream for good: the peer may have half a frame,
    so the connection is aborted and later sends raise BrokenResourceError. A cancelled receive
    loses nothing. A text message, a frame against the rules and a close with an error code raise
    BrokenResourceError with the cause.
    """

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        wire: _Wire,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._sending = OneAtATime("another task is sending on this WebSocket")
        self._receiving = OneAtATime("another task is receiving on this WebSocket")
        self._closed = False
        self._broken: Exception | None = None
        self.goodbye: tuple[int, str | None] = (1000, None)
        """Code and reason of the Close that `aclose` sends; at most 123 bytes of reason."""

    @property
    def response_headers(self) -> Headers:
        """The header fields of the server's 101 (client side), names in lower case."""
        return self._wire.response_headers

    @property
    def subprotocol(self) -> str | None:
        """The agreed subprotocol; None with a plain yamux peer."""
        return self._connection.subprotocol

    @property
    def peer_close(self) -> tuple[int, str] | None:
        """Code and reason of the peer's Close, once it has come."""
        return self._wire.frames.close

    @property
    def transport(self) -> trio.abc.Stream:
        """The stream below: TCP, TLS or memory."""
        return self._wire.transport

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this WebSocket was closed")
        if self._broken is not None:
            raise trio.BrokenResourceError(str(self._broken)) from self._broken

    async def lend(self) -> Lent | None:
        """Let a pump have the socket, if there is a plain one below."""
        return await self._wire.lend()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every byte, as messages of at most 64 KiB."""
        with self._sending:
            self._check()
            self._check_peer()
            try:
                await trio.lowlevel.checkpoint()
                with memoryview(data) as view, view.cast("B") as octets:
                    for start in range(0, len(octets), _SEND_MESSAGE):
                        frame = self._frame(octets[start : start + _SEND_MESSAGE])
                        await self._wire.send_all(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._check()  # closed by aclose() meanwhile, or broken by the receiver
                self._break(exc)
                await self._wire.drop()
                raise trio.BrokenResourceError(str(exc)) from exc
            except BaseException:
                self._break(ConnectError("a send on this WebSocket was cut short"))
                await self._wire.drop()
                raise

    def _frame(self, payload: memoryview) -> bytes:
        # RFC 6455 section 5.3: the mask must come from a strong source of entropy.
        return encode_binary(payload, os.urandom(4) if self._connection.is_client else None)

    def _check_peer(self) -> None:
        """A peer that has said Close takes no more data."""
        if (close := self._wire.frames.close) is not None:
            raise trio.BrokenResourceError(_describe_close(*close))

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
            self._check()
            payload = await self._wire.take_payload(max_bytes)
            if payload:
                return payload
            self._check()
            return await self._end()

    async def _end(self) -> bytes:
        """There is no more payload: b"" after a clean close, BrokenResourceError with the cause."""
        frames = self._wire.frames
        if frames.error is not None:
            code, sentence = frames.error
            error = RemoteProtocolError(f"the peer broke the WebSocket protocol: {sentence}")
            self._break(error)
            await self._close_connection(code, sentence)
        elif frames.close is None:
            error = RemoteProtocolError("the WebSocket ended without a closing handshake")
            self._break(error)
        elif frames.close[0] in _CLEAN_CLOSES:
            return b""
        else:
            error = RemoteProtocolError(_describe_close(*frames.close))
            self._break(error)
        await self._wire.drop()
        raise trio.BrokenResourceError(str(error)) from error

    def _break(self, error: Exception) -> None:
        if self._broken is None:
            self._broken = error

    async def aclose(self) -> None:
        """Close with a closing handshake of at most 1 s, then drop the connection."""
        already, self._closed = self._closed, True
        try:
            if already or self._broken is not None or self._wire.torn or self._sending.busy:
                await trio.lowlevel.checkpoint()
            else:
                await self._close_connection(*self.goodbye)
        finally:
            await self._wire.drop()

    async def _close_connection(self, code: int, reason: str | None) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._connection.aclose(code, reason)


def _describe_close(code: int, text: str) -> str:
    name = trio_websocket.CloseReason(code, text).name
    return f"the WebSocket was closed with code {code} {name}{f': {text}' if text else ''}"


class _Handshake:
    """The opening handshake of one connection, and the task of the library's reader from then on.

    trio-websocket is given it in place of a nursery, of which it wants `start_soon` only. So the
    reader's failure ends the handshake, or later breaks this one stream, with no nursery and no
    task around each reader for as long as it runs.
    """

    def __init__(self, nursery: trio.Nursery, wire: _Wire) -> None:
        self._nursery = nursery
        self._wire = wire
        self._opening: trio.CancelScope | None = None
        self._failure: Exception | None = None

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception as exc:  # noqa: BLE001  the library failed on what the peer sent
            if self._opening is None:
                # The stream breaks, as the connection is dropped; nothing else is concerned.
                _log.warning("websocket failed", error=repr(exc))
            else:
                self._failure = exc
                self._opening.cancel()
        else:
            if self._opening is not None:
                # It could not send the request, and tells the task that awaits the answer nothing.
                self._failure = ConnectError(
                    f"the connection to {self._wire.where} broke during the handshake"
                )
                self._opening.cancel()
        finally:
            await self._wire.drop()

    async def open(
        self,
        shake_hands: Callable[[trio.Nursery], Awaitable[trio_websocket.WebSocketConnection]],
        timeout: float,
        too_late: str,
    ) -> WebSocketStream:
        """Do the handshake. Returns the stream. Raises ConnectError, with the transport closed."""
        try:
            with trio.move_on_after(timeout) as opening:
                self._opening = opening
                connection = await shake_hands(cast("trio.Nursery", self))
                self._opening = None
                self._wire.set_opened()
                return WebSocketStream(connection, self._wire)
        except trio_websocket.ConnectionClosed:
            raise ConnectError("the peer left during the handshake") from None
        except Exception as exc:  # noqa: BLE001  whatever it is, this connection has failed of it
            self._failure = exc
        finally:
            if self._opening is not None:
                await self._wire.drop()
        failure = self._failure
        if failure is None:
            raise ConnectError(too_late)
        if isinstance(failure, ConnectError):
            raise failure from failure.__cause__
        raise ConnectError(f"the WebSocket handshake failed: {failure}") from failure


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
    wire = _Wire(transport, where=str(url), awaits_response=True)

    async def shake_hands(readers: trio.Nursery) -> trio_websocket.WebSocketConnection:
        return await trio_websocket.wrap_client_stream(
            readers,
            wire,  # type: ignore[arg-type]  # any Trio stream does
            url.authority,
            url.target,
            subprotocols=subprotocols,
            extra_headers=list(headers),
            receive_buffer_size=_RECEIVE_BUFFER,
        )

    return await _Handshake(nursery, wire).open(
        shake_hands,
        handshake_timeout,
        f"{url} did not finish the WebSocket handshake within {handshake_timeout:g} s; check "
        "that the port is the tunnel port",
    )


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
    wire = _Wire(request.stream, where="the peer", request=request)

    async def shake_hands(readers: trio.Nursery) -> trio_websocket.WebSocketConnection:
        proposal = await trio_websocket.wrap_server_stream(
            readers, wire, receive_buffer_size=_RECEIVE_BUFFER
        )
        return await proposal.accept(
            subprotocol=SUBPROTOCOL if SUBPROTOCOL in request.subprotocols else None,
            extra_headers=list(headers),
        )

    return await _Handshake(nursery, wire).open(
        shake_hands,
        handshake_timeout,
        f"the peer did not take the answer within {handshake_timeout:g} s",
    )


def connect_websocket(
    url: str | TunnelURL,
    *,
    headers: Headers = (),
    subprotocols: Sequence[str] = (SUBPROTOCOL,),
    ssl_context: ssl.SSLContext | None = None,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    tcp_user_timeout: float | None = TCP_USER_TIMEOUT,
    way: WayOut | None = None,
) -> AbstractAsyncContextManager[WebSocketStream]:
    """A WebSocket byte stream to a ws:// or wss:// URL for the length of the block.

    The connection, TLS and the handshake together may take `handshake_timeout` seconds, some more
    where several addresses have to be tried (`dialling.try_addresses`, which has `way`). Raises
    ConnectError when no WebSocket server answers and ConnectRefused when the answer is no 101; what
    the block raises comes out unchanged.
    """
    where = parse_url(url) if isinstance(url, str) else url
    if where.is_secure and ssl_context is None:
        ssl_context = ssl.create_default_context()

    async def start(nursery: trio.Nursery) -> WebSocketStream:
        async def shake_hands(transport: trio.abc.Stream, seconds: float) -> WebSocketStream:
            return await start_websocket_client(
                nursery,
                transport,
                where,
                headers=headers,
                subprotocols=subprotocols,
                handshake_timeout=seconds,
            )

        return await try_addresses(
            where.host,
            where.port,
            shake_hands,
            ssl_context=ssl_context if where.is_secure else None,
            timeout=handshake_timeout,
            user_timeout=tcp_user_timeout,
            way=way,
        )

    return _while_it_lasts(start)


def accept_websocket(
    request: UpgradeRequest,
    *,
    headers: Headers = (),
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
) -> AbstractAsyncContextManager[WebSocketStream]:
    """Accept `request` and give its byte stream for the length of the block.

    `headers` go into the 101. Raises ConnectError when the peer leaves before it is complete;
    what the block raises comes out unchanged.
    """
    return _while_it_lasts(
        partial(
            start_websocket_server,
            request=request,
            headers=headers,
            handshake_timeout=handshake_timeout,
        )
    )


@asynccontextmanager
async def _while_it_lasts(
    start: Callable[[trio.Nursery], Awaitable[WebSocketStream]],
) -> AsyncIterator[WebSocketStream]:
    """Within the block, the stream that `start` makes, with a nursery for its reader. The reader
    never raises, so exceptions need no group.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                stream = await start(nursery)
                del start  # free the arguments: the block may last for months
                try:
                    yield stream
                finally:
                    await stream.aclose()
                    nursery.cancel_scope.cancel()
            except BaseException as exc:
                failure = exc
                raise
    except BaseExceptionGroup:
        if failure is None:
            raise
        raise failure from failure.__cause__
