"""Server-sent events on a caller's connection, until it leaves or the proxy drains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from tunnelmux.commands import LineSplitter
from tunnelmux.http import VisitorGone
from tunnelmux.proxy.internal.answers import ApiConnection
from tunnelmux.proxy.internal.routes import Call

__all__ = ["HELLO", "STILL_HERE", "EventSplitter", "Send", "stream_events", "write_all"]

HELLO = b"retry: 1000\n\n"
"""The first bytes of every stream."""

STILL_HERE = b": still here\n\n"
"""The comment that is sent after `event_heartbeat` seconds without an event."""

_SEND_TIMEOUT = 30.0
# Seconds for which a reader may read nothing before it is cut: two heartbeats missed. It can come
# back with Last-Event-ID.

Send = Callable[[bytes], Awaitable[None]]


class EventSplitter:
    """Splits a stream of this kind into its events, in pieces of any size. Each byte is scanned
    once, even when the pieces are small.
    """

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self._event: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; returns the events that are complete now, without comments and advice."""
        complete = []
        for line in self._lines.feed(data):
            self._event.append(line)
            if not line:
                event, self._event = self._event, []
                if event[0].startswith(b"event:"):
                    complete.append(b"\n".join([*event, b""]))
        return complete


async def write_all(send: Send, writers: Sequence[Callable[[Send], Awaitable[None]]]) -> None:
    """Have all of them write at once, each event whole. Raises VisitorGone."""
    turn = trio.Lock()
    gone: VisitorGone | None = None

    async def send_one(data: bytes) -> None:
        nonlocal gone
        async with turn:
            try:
                await send(data)
            except VisitorGone as error:
                gone = error
                nursery.cancel_scope.cancel(reason="the reader is gone")

    async with trio.open_nursery() as nursery:
        for write in writers:
            nursery.start_soon(write, send_one)
    if gone is not None:
        raise gone


async def stream_events(
    call: Call, first: bytes, write: Callable[[Send], Awaitable[None]], draining: trio.Event
) -> None:
    """Answer with a stream of events that begins with `first`; `write` sends what follows, until it
    returns, the reader leaves or takes nothing, or `draining` is set. Closes the connection."""
    server = call.server
    try:
        await server.send_response(
            200,
            b"OK",
            [
                (b"Content-Type", b"text/event-stream"),
                (b"Cache-Control", b"no-store"),
                (b"X-Accel-Buffering", b"no"),  # otherwise nginx buffers events up to 4 KiB
            ],
            first=first,
        )
        if await _write_until_over(server, write, draining):
            with trio.move_on_after(_SEND_TIMEOUT):
                await server.send_body(b"", end=True)
            await server.close()
    finally:
        await server.abort()  # without effect on a connection that was closed in order


async def _write_until_over(
    server: ApiConnection, write: Callable[[Send], Awaitable[None]], draining: trio.Event
) -> bool:
    """Write until the stream ends. True if it can be ended in order."""
    is_over = False

    async def send(data: bytes) -> None:
        try:
            with trio.fail_after(_SEND_TIMEOUT):
                await server.send_body(data)
        except trio.TooSlowError:
            raise VisitorGone(f"it took nothing for {_SEND_TIMEOUT:g} s") from None

    with trio.CancelScope() as reading:

        async def send_all() -> None:
            nonlocal is_over
            try:
                await write(send)
                is_over = True
                reading.cancel(reason="there is no more to tell")
            except VisitorGone:
                reading.cancel(reason="the reader is gone, or takes nothing")

        async def watch() -> None:
            try:
                await server.watch()
            except VisitorGone:
                reading.cancel(reason="the reader is gone")

        async def end_when_draining() -> None:
            await draining.wait()  # no deadline: a reader may stay for any time
            reading.cancel(reason="the proxy is shutting down")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            nursery.start_soon(watch)
            nursery.start_soon(end_when_draining)
    return is_over or draining.is_set()
