"""GET /internal/events: session events, as server-sent events."""

from __future__ import annotations

import msgspec
import trio

from tunnelmux.http.head import first_value
from tunnelmux.proxy.internal.event_stream import HELLO, STILL_HERE, Send, stream_events
from tunnelmux.proxy.internal.routes import Call
from tunnelmux.sessions import EventLog

__all__ = ["EventStreamer"]


class EventStreamer:
    """Serves the readers of one event log. Ids are `EPOCH-SEQ`; `EPOCH` identifies the process, or
    the sequence of all nodes."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.readers = 0
        self.draining = trio.Event()
        """Set to end all readers' streams in order."""

    async def serve(self, call: Call) -> None:
        """Send the events after `Last-Event-ID`, or from now on, until the reader leaves."""
        last = first_value(call.request.headers, b"last-event-id")
        seq, first = self._start(last.decode("latin-1") if last else None)
        epoch, heartbeat = self._log.epoch, call.limits.event_heartbeat

        async def write(send: Send) -> None:
            await self._send_events_after(epoch, seq, send, heartbeat)

        self.readers += 1
        try:
            await stream_events(call, first, write, self.draining)
        finally:
            self.readers -= 1

    def _start(self, last: str | None) -> tuple[int, bytes]:
        """The position where a reader begins, and the first bytes for it."""
        log = self._log
        hello = HELLO
        if last is None:
            # An id at once, so that a reader that loses its connection misses no event.
            return log.last_seq, hello + b"id: %s\n\n" % self._id(log.last_seq)
        epoch, _, number = last.partition("-")
        known = epoch == log.epoch and number.isascii() and number.isdigit()
        seq = int(number[:18]) if known else -1
        if not 0 <= seq <= log.last_seq or seq < log.first_seq - 1:
            return log.first_seq - 1, hello + self._gap(log.first_seq - 1)
        return seq, hello

    async def _send_events_after(self, epoch: str, seq: int, send: Send, heartbeat: float) -> None:
        while True:
            if epoch != self._log.epoch or seq < self._log.first_seq - 1:
                epoch = self._log.epoch
                seq = self._log.first_seq - 1
                await send(self._gap(seq))
            events = self._log.after(seq)
            if events:
                seq = events[-1].seq
                await send(
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
                await send(STILL_HERE)

    def _id(self, seq: int) -> bytes:
        return f"{self._log.epoch}-{seq}".encode("ascii")

    def _gap(self, seq: int) -> bytes:
        """The event that says that events are missing: the reader should list the
        sessions again."""
        return b'id: %s\nevent: gap\ndata: {"oldestSeq":%d}\n\n' % (self._id(seq), seq + 1)
