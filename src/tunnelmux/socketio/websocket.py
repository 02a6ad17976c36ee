"""Text and binary messages over one WebSocket (RFC 6455), client and server.

The tunnel's WebSocket (`transports.websocket`) is a byte stream of binary messages. Engine.IO needs
text and binary messages, and small limits before a peer has authenticated. So this one uses
wsproto, which gives messages in pieces that can be counted as they come.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import NoReturn

import trio
import wsproto
from wsproto import events
from wsproto.utilities import ProtocolError

from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.socketio.cookies import CookieJar

__all__ = ["WebSocket", "WebSocketOver"]

_READ_SIZE = 16_384
# wsproto moves the bytes that it has not parsed once for each frame. This bounds that work even
# when the frames are as small as possible.

_CLOSE_TIMEOUT = 1.0  # s, as for the tunnel's own WebSockets
_TOO_BIG = 1009
_BROKEN_RULE = 1002


class WebSocketOver(Exception):
    """The WebSocket has ended. The message says how."""


class WebSocket:
    """One open WebSocket on a stream that it owns. One task receives; any may send.

    Cancelling a send ends the connection: the peer may have got half a frame.
    """

    def __init__(
        self, stream: trio.abc.Stream, connection: wsproto.WSConnection, max_message: int
    ) -> None:
        self.max_message = max_message
        """Bytes one message may have; more closes the connection with code 1009."""
        self._stream = stream
        self._connection = connection
        self._events: Iterator[events.Event] = iter(())
        self._unread = b""
        self._sending = trio.StrictFIFOLock()
        self._torn = False

    # -- the two handshakes -----------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        stream: trio.abc.Stream,
        authority: str,
        target: str,
        *,
        where: str,
        max_message: int,
        jar: CookieJar,
    ) -> WebSocket:
        """Upgrade a new connection; the caller bounds the time, and closes `stream` on errors.

        Raises ConnectError; ConnectRefused when the answer is not a 101.
        """
        socket = cls(stream, wsproto.WSConnection(wsproto.ConnectionType.CLIENT), max_message)
        try:
            await socket._send(
                events.Request(host=authority, target=target, extra_headers=jar.fields())
            )
            event = await socket._next_event()
        except WebSocketOver as over:
            raise ConnectError(f"the WebSocket handshake with {where} failed: {over}") from None
        if isinstance(event, events.AcceptConnection):
            jar.take(event.extra_headers)
        if isinstance(event, events.RejectConnection):
            raise ConnectRefused(
                f"{where} refused the WebSocket: {event.status_code}", status=event.status_code
            )
        if not isinstance(event, events.AcceptConnection):
            raise ConnectError(f"{where} did not answer the WebSocket handshake")
        return socket

    @classmethod
    async def accept(
        cls,
        stream: trio.abc.Stream,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        *,
        rest: bytes,
        max_message: int,
    ) -> WebSocket:
        """Answer an upgrade request whose head was read already; `rest` came behind the head.

        Raises WebSocketOver when the request is no valid upgrade (nothing is sent then), or when
        the peer has left.
        """
        connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        socket = cls(stream, connection, max_message)
        try:
            connection.initiate_upgrade_connection(headers, target)
            next(iter(connection.events()))  # the request, which the caller has checked
        except (ProtocolError, ValueError, UnicodeError, StopIteration) as error:
            raise WebSocketOver(f"it is no WebSocket upgrade: {error}") from None
        await socket._send(events.AcceptConnection())
        socket._unread = rest
        return socket

    # -- messages ---------------------------------------------------------------------------

    async def receive(self) -> str | bytes:
        """The next message. Raises WebSocketOver."""
        # Pieces are joined as they come, not kept in a list: a piece may be one byte, or empty.
        text, data = io.StringIO(), bytearray()
        size = 0
        while True:
            event = await self._next_event()
            match event:
                case events.TextMessage() | events.BytesMessage():
                    size += _bytes_in(event.data)
                    if size > self.max_message:
                        problem = f"a message is larger than {self.max_message} bytes"
                        await self._fail(_TOO_BIG, problem)
                    if isinstance(event, events.TextMessage):
                        text.write(event.data)
                    else:
                        data += event.data
                    if event.message_finished:
                        is_text = isinstance(event, events.TextMessage)
                        return text.getvalue() if is_text else bytes(data)
                case events.Ping():
                    await self._send(event.response())
                case events.CloseConnection():
                    with contextlib.suppress(WebSocketOver):
                        await self._send(event.response())
                    raise WebSocketOver(f"the peer closed it with code {int(event.code)}")
                case _:
                    pass  # an unsolicited Pong (RFC 6455 section 5.5.3)

    async def send(self, message: str | bytes) -> None:
        """Send one message. Raises WebSocketOver."""
        if isinstance(message, str):
            await self._send(events.TextMessage(data=message))
        else:
            await self._send(events.BytesMessage(data=message))

    async def aclose(self) -> None:
        """Send a Close frame, for at most a second, and close the stream."""
        try:
            if not self._torn:
                with trio.move_on_after(_CLOSE_TIMEOUT), contextlib.suppress(WebSocketOver):
                    await self._send(events.CloseConnection(code=1000))
        finally:
            await trio.aclose_forcefully(self._stream)

    # -- below ------------------------------------------------------------------------------

    async def _send(self, event: events.Event) -> None:
        async with self._sending:
            if self._torn:
                raise WebSocketOver("an earlier send was cut short")
            try:
                data = self._connection.send(event)
                self._torn = True  # until all of it is sent
                await self._stream.send_all(data)
                self._torn = False
            except ProtocolError as error:
                raise WebSocketOver(f"it is closing: {error}") from None
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise WebSocketOver("the connection broke") from error

    async def _next_event(self) -> events.Event:
        while True:
            try:
                # One event at a time: a frame of two bytes makes an event of a hundred.
                for event in self._events:
                    return event
                data, self._unread = self._unread or await self._read(), b""
                if not data:
                    raise WebSocketOver("the connection ended without a Close frame")
                self._connection.receive_data(data)
                self._events = self._connection.events()
            except ProtocolError as error:
                await self._fail(_BROKEN_RULE, f"the peer broke the WebSocket protocol: {error}")

    async def _read(self) -> bytes:
        try:
            # No deadline here: Engine.IO's pings find a silent peer.
            return bytes(await self._stream.receive_some(_READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WebSocketOver("the connection broke") from error

    async def _fail(self, code: int, problem: str) -> NoReturn:
        with trio.move_on_after(_CLOSE_TIMEOUT), contextlib.suppress(WebSocketOver):
            await self._send(events.CloseConnection(code=code))
        raise WebSocketOver(problem)


def _bytes_in(data: str | bytes | bytearray) -> int:
    if isinstance(data, str) and not data.isascii():
        return len(data.encode("utf-8", "surrogatepass"))
    return len(data)
