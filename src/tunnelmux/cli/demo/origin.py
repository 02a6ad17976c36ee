"""What the demo's device offers: a live web page and a TCP service. Neither knows of any tunnel."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import NoReturn

import h11
import trio
import trio_websocket

from tunnelmux.transports import open_listeners, serve_connections

__all__ = ["GOODBYE", "GREETING", "TICK_INTERVAL", "serve_echo", "serve_page"]

Started = trio.TaskStatus[list[tuple[str, int]]]

TICK_INTERVAL = 0.5
"""Seconds between two server-sent events."""

GREETING = b"You reached the echo service of the device. Type a line; Ctrl-D ends.\n"
GOODBYE = b"Goodbye: your end of input arrived, and this still came back.\n"

_HEAD_TIMEOUT = 10.0
_READ_SIZE = 65_536
_MAX_MESSAGE = 65_536  # bytes; a visitor of the demo has no reason to send a longer one
_CHAT_BACKLOG = 32  # messages a slow window may lag behind; what is more, it misses

_PATIENCE = 3600.0
"""Seconds a TCP visitor may type nothing; a forgotten one must not keep its port for ever."""


async def serve_page(*, task_status: Started = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Serve the page and its live parts on a loopback port, the started value, until cancelled."""
    await _serve(_PageServer().handle, task_status)


async def serve_echo(*, task_status: Started = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Serve a greeting, an echo and a goodbye over TCP on a loopback port, the started value."""
    await _serve(_echo, task_status)


async def _serve(
    handler: Callable[[trio.SocketStream], Awaitable[None]], task_status: Started
) -> NoReturn:
    async def quietly(stream: trio.SocketStream) -> None:
        # A visitor that leaves breaks its own connection, which is how it says so.
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(stream)

    listeners = await open_listeners("127.0.0.1", 0)
    await serve_connections(quietly, listeners, task_status=task_status)


async def _echo(stream: trio.SocketStream) -> None:
    await stream.send_all(GREETING)
    with trio.move_on_after(_PATIENCE) as scope:
        while data := await stream.receive_some(_READ_SIZE):
            await stream.send_all(data)
            scope.deadline = trio.current_time() + _PATIENCE
        await stream.send_all(GOODBYE)


class _PageServer:
    """One request per connection: that is what an agent sends, and it keeps this short."""

    def __init__(self) -> None:
        self._page = resources.files(__package__).joinpath("page.html").read_bytes()
        self._windows: set[trio.MemorySendChannel[str]] = set()

    async def handle(self, stream: trio.SocketStream) -> None:
        visit = _Visit(stream)
        try:
            with trio.fail_after(_HEAD_TIMEOUT):
                request = await visit.read_request()
        except (h11.RemoteProtocolError, trio.TooSlowError):
            return
        if request is None:
            return
        path = request.target.split(b"?")[0]
        is_upgrade = any(name == b"upgrade" for name, _ in request.headers)
        match request.method, path:
            case b"GET", b"/echo" if is_upgrade:
                await visit.run_websocket(_echo_messages)
            case b"GET", b"/chat" if is_upgrade:
                await visit.run_websocket(self._chat)
            case b"GET" | b"HEAD", b"/":
                await visit.answer(200, b"text/html; charset=utf-8", self._page)
            case b"GET", b"/ticks":
                await visit.send_ticks()
            case b"GET" | b"HEAD", b"/request":
                await visit.answer_json(_seen(request, stream))
            case b"POST", b"/digest":
                await visit.answer_json(await visit.digest_body())
            case _:
                await visit.answer(404, b"text/plain", b"The demo has no such page.\n")

    async def _chat(self, websocket: trio_websocket.WebSocketConnection) -> None:
        """What one window says, every window hears."""
        send, receive = trio.open_memory_channel[str](_CHAT_BACKLOG)
        self._windows.add(send)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, receive, websocket)
                with contextlib.suppress(trio_websocket.ConnectionClosed):
                    while True:
                        message = await websocket.get_message()
                        for window in self._windows:
                            with contextlib.suppress(trio.WouldBlock):
                                window.send_nowait(str(message))
                nursery.cancel_scope.cancel()
        finally:
            self._windows.discard(send)


async def _pass_on(
    messages: trio.MemoryReceiveChannel[str], websocket: trio_websocket.WebSocketConnection
) -> None:
    with contextlib.suppress(trio_websocket.ConnectionClosed):
        async for message in messages:
            await websocket.send_message(message)


async def _echo_messages(websocket: trio_websocket.WebSocketConnection) -> None:
    with contextlib.suppress(trio_websocket.ConnectionClosed):
        while True:
            await websocket.send_message(await websocket.get_message())


def _seen(request: h11.Request, stream: trio.SocketStream) -> dict[str, object]:
    """The request as it arrived here, which is not how the visitor sent it."""
    host, port = stream.socket.getsockname()[:2]
    return {
        "method": request.method.decode("ascii"),
        "target": request.target.decode("ascii"),
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")]
            for name, value in request.headers.raw_items()
        ],
        "server": f"{host}:{port}",
    }


class _Visit:
    """One connection: its request, and the one answer to it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER)
        self._received = b""

    async def read_request(self) -> h11.Request | None:
        """The request's head; None when the connection ends before it."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._stream.receive_some(_READ_SIZE)
            self._received += data
            self._http.receive_data(data)
        return event if isinstance(event, h11.Request) else None

    async def digest_body(self) -> dict[str, object]:
        """How long the request's body is, and its SHA-256."""
        size, digest = 0, hashlib.sha256()
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                # No deadline: the visitor's upload may take as long as the visitor likes.
                self._http.receive_data(await self._stream.receive_some(_READ_SIZE))
            elif isinstance(event, h11.Data):
                size += len(event.data)
                digest.update(event.data)
        return {"bytes": size, "sha256": digest.hexdigest()}

    async def answer(self, status: int, content_type: bytes, body: bytes) -> None:
        await self._send_head(status, content_type, (b"Content-Length", b"%d" % len(body)))
        await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def answer_json(self, value: object) -> None:
        await self.answer(200, b"application/json", json.dumps(value).encode())

    async def send_ticks(self) -> None:
        """Server-sent events until the visitor leaves, which breaks the connection."""
        await self._send_head(200, b"text/event-stream")
        number = 0
        while True:
            number += 1
            tick = json.dumps({"number": number, "time": round(time.time() * 1000)})
            await self._send(h11.Data(data=b"data: %s\n\n" % tick.encode()))
            await trio.sleep(TICK_INTERVAL)

    async def run_websocket(
        self, talk: Callable[[trio_websocket.WebSocketConnection], Awaitable[None]]
    ) -> None:
        # trio-websocket wants to read the handshake itself, so it gets it a second time.
        again = trio.StapledStream(self._stream, _Replayed(self._received, self._stream))
        async with trio.open_nursery() as nursery:
            handshake = await trio_websocket.wrap_server_stream(
                nursery, again, max_message_size=_MAX_MESSAGE
            )
            websocket = await handshake.accept()
            await talk(websocket)
            nursery.cancel_scope.cancel()

    async def _send_head(
        self, status: int, content_type: bytes, *more: tuple[bytes, bytes]
    ) -> None:
        headers = [
            (b"Content-Type", content_type),
            (b"Cache-Control", b"no-store"),
            (b"Connection", b"close"),
            *more,
        ]
        await self._send(h11.Response(status_code=status, headers=headers))

    async def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            await self._stream.send_all(data)


class _Replayed(trio.abc.ReceiveStream):
    """Gives out bytes that were read already, then what the stream has."""

    def __init__(self, data: bytes, stream: trio.SocketStream) -> None:
        self._data = data
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._data:
            await trio.lowlevel.checkpoint()
            size = len(self._data) if max_bytes is None else max_bytes
            data, self._data = self._data[:size], self._data[size:]
            return data
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
