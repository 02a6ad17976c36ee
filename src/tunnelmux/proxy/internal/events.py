"""GET /internal/events: what happens to sessions, as server-sent events."""

from __future__ import annotations

import msgspec
import trio

from tunnelmux.http import VisitorGone
from tunnelmux.http.head import first_value
from tunnelmux.proxy.internal.answers import ApiConnection
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.sessions import EventLog

__all__ = ["EventStreamer"]

_SEND_TIMEOUT = 30.0
# Seconds a reader may take nothing at all before it is cut: two heartbeats missed. It comes back
# with Last-Event-ID.


class EventStreamer:
    """Serves the readers of one event log. Ids are `EPOCH-SEQ`, and `EPOCH` is one process."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.readers = 0
        self.draining = trio.Event()
        """Set to end every reader's stream, in order."""

    async def serve(self, call: Call) -> None:
        """Send the events after `Last-Event-ID`, or from now on, until the reader leaves."""
        server = call.server
        last = first_value(call.request.headers, b"last-event-id")
        self.readers += 1
        try:
            seq, first = self._start(last.decode("latin-1") if last else None)
            await server.send_response(
                200,
                b"OK",
                [
                    (b"Content-Type", b"text/event-stream"),
                    (b"Cache-Control", b"no-store"),
                    (b"X-Accel-Buffering", b"no"),  # nginx would keep events until 4 KiB are full
                ],
                first=first,
            )
            with trio.CancelScope() as reading:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, server, reading)
                    nursery.start_soon(self._end_when_draining, reading)
                    nursery.start_soon(self._send_events, server, seq, call, reading)
            if self.draining.is_set():
                with trio.move_on_after(_SEND_TIMEOUT):
                    await server.send_body(b"", end=True)
                await server.close()
        finally:
            self.readers -= 1
            await server.abort()  # of a connection that was closed in order, nothing is left

    def _start(self, last: str | None) -> tuple[int, bytes]:
        """Where a reader begins, and what it is told first."""
        log = self._log
        hello = b"retry: 1000\n\n"
        if last is None:
            # An id at once, so that a reader that loses its connection misses nothing.
            return log.last_seq, hello + b"id: %s\n\n" % self._id(log.last_seq)
        epoch, _, number = last.partition("-")
        known = epoch == log.epoch and number.isascii() and number.isdigit()
        seq = int(number[:18]) if known else -1
        if not 0 <= seq <= log.last_seq or seq < log.first_seq - 1:
            return log.first_seq - 1, hello + self._gap(log.first_seq - 1)
        return seq, hello

    async def _send_events(
        self, server: ApiConnection, seq: int, call: Call, reading: trio.CancelScope
    ) -> None:
        try:
            await self._send_events_after(seq, server, call.limits.event_heartbeat)
        except VisitorGone:
            reading.cancel(reason="the reader is gone, or takes nothing")

    async def _send_events_after(self, seq: int, server: ApiConnection, heartbeat: float) -> None:
        while True:
            if seq < self._log.first_seq - 1:
                seq = self._log.first_seq - 1
                await self._send(server, self._gap(seq))
            events = self._log.after(seq)
            if events:
                seq = events[-1].seq
                await self._send(
                    server,
                    b"".join(
                        b"id: %s\nevent: %s\ndata: %s\n\n"
                        % (self._id(e.seq), e.type.encode("ascii"), msgspec.json.encode(e))
                        for e in events
                    ),
                )
                continue
            with trio.move_on_after(heartbeat) as wait:
                await self._log.wait_after(seq)
            if wait.cancelled_caught:
                await self._send(server, b": still here\n\n")

    async def _send(self, server: ApiConnection, data: bytes) -> None:
        try:
            with trio.fail_after(_SEND_TIMEOUT):
                await server.send_body(data)
        except trio.TooSlowError:
            raise VisitorGone(f"it took nothing for {_SEND_TIMEOUT:g} s") from None

    async def _watch(self, server: ApiConnection, reading: trio.CancelScope) -> None:
        try:
            await server.watch()
        except VisitorGone:
            reading.cancel(reason="the reader is gone")

    async def _end_when_draining(self, reading: trio.CancelScope) -> None:
        await self.draining.wait()  # no deadline: a reader stays for as long as it likes
        reading.cancel(reason="the proxy is shutting down")

    def _id(self, seq: int) -> bytes:
        return f"{self._log.epoch}-{seq}".encode("ascii")

    def _gap(self, seq: int) -> bytes:
        """Says that events are missing: the reader should list the sessions anew."""
        return b'id: %s\nevent: gap\ndata: {"oldestSeq":%d}\n\n' % (self._id(seq), seq + 1)
