"""One yamux stream as a Trio stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tunnelmux.conflict import OneAtATime
from tunnelmux.errors import SessionError, StreamClosed, StreamError

if TYPE_CHECKING:
    from types import TracebackType

    from tunnelmux.mux.session import Session
    from tunnelmux.pump.data_pump import Owner
    from tunnelmux.pump.joined import JoinedStream
    from tunnelmux.pump.pump_socket import PumpSocket
    from tunnelmux.pump.relay import Relay
    from tunnelmux.yamux.streams import EngineStream

__all__ = ["Stream"]

RECEIVE_SIZE = 65_536
"""Most bytes that `receive_some` gives without an argument: the size the transport is read in."""


class Stream(trio.abc.HalfCloseableStream):
    """One stream of a `Session`, with the contract of `trio.abc.HalfCloseableStream`.

    `send_eof` is yamux's FIN: the peer reads to the end and may go on sending. Raises
    `trio.BrokenResourceError` when the peer reset the stream or the session ended, and
    `trio.ClosedResourceError` after this side closed it, with a `tunnelmux.errors` exception as the
    cause; `trio.BusyResourceError` when two tasks use the same half. Cancelling `receive_some`
    loses nothing; a cancelled `send_all` may have sent any part, as with a socket.
    """

    __slots__ = (
        "_closed",
        "_engine_stream",
        "_receive_guard",
        "_receiver",
        "_send_guard",
        "_sender",
        "bytes_received",
        "bytes_sent",
        "session",
    )

    def __init__(self, session: Session, engine_stream: EngineStream) -> None:
        self.session = session
        self.bytes_sent = 0
        """Payload bytes taken for sending so far."""
        self.bytes_received = 0
        """Payload bytes given out by `receive_some` so far."""
        self._engine_stream = engine_stream
        self._closed = False
        self._receiver: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None
        self._send_guard = OneAtATime("another task is sending on this stream")
        self._receive_guard = OneAtATime("another task is receiving from this stream")
        engine_stream.owner = self

    @property
    def id(self) -> int:
        """The 32-bit stream id on the wire; odd when the client opened it."""
        return self._engine_stream.id

    def __repr__(self) -> str:
        return f"<tunnelmux.Stream {self.id}{' closed' if self._closed else ''}>"

    # -- sending ----------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue all of *data*, waiting while the stream's or the session's buffer is full.

        Returns when the last byte is queued; the session sends it as the peer's window allows.
        """
        with self._send_guard:
            self._require_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            view = data if isinstance(data, bytes) else memoryview(data).cast("B")
            sent = 0
            parked = False
            with _TRIO_ERRORS:
                self._raise_if_broken()
                while sent < len(view):
                    taken = self._engine_stream.send(view, sent)
                    if taken:
                        sent += taken
                        self.bytes_sent += taken
                        self.session._kick()
                    else:
                        await self._park_sender()
                        self._require_open()
                        parked = True
            if not parked:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Return when `send_all` could take at least one byte at once, or would fail."""
        with self._send_guard:
            self._require_open()
            await trio.lowlevel.checkpoint()
            while not self._engine_stream.writable:
                await self._park_sender()
                self._require_open()
            with _TRIO_ERRORS:
                self._raise_if_broken()

    async def send_eof(self) -> None:
        """Send no more: the peer reads the end after the last byte. Receiving goes on."""
        with self._send_guard:
            self._require_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            with _TRIO_ERRORS:
                self._engine_stream.finish()
            self.session._kick()
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_sent(self) -> None:
        """Return when nothing that was queued waits any more, or never will leave."""
        await trio.lowlevel.checkpoint()
        while self._engine_stream.queued_bytes and self._engine_stream.error is None:
            await self.session.wait_flushed()

    # -- receiving --------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte and at most *max_bytes* (64 KiB by default); b"" at the end."""
        size = RECEIVE_SIZE if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._receive_guard:
            self._require_open()
            await trio.lowlevel.checkpoint_if_cancelled()
            parked = False
            while True:
                with _TRIO_ERRORS:
                    data = self._engine_stream.receive(size)
                if data is not None:
                    break
                await self._park_receiver()
                parked = True
                self._require_open()
            self.bytes_received += len(data)
            self.session._kick()
            if not parked:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return data

    # -- ending -----------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Send the end after what is queued, and stop receiving: if the peer sends more, it is told
        by a reset that is not read. Does not wait for the peer; never fails."""
        if not self._closed:
            self._closed = True
            self._engine_stream.close(trio.current_time())
            self._wake()
            self.session._kick()
        await trio.lowlevel.checkpoint()

    def reset(self, code: int = 0) -> None:
        """End both directions at once and drop what is queued; the peer's next use of the stream
        fails with this 32-bit *code*. Harmless when it is over already."""
        self._closed = True
        self._engine_stream.reset(code)
        self._wake()
        self.session._kick()

    # -- with a pump ------------------------------------------------------------------------

    def relay_in_pump(self, local: PumpSocket, owner: Owner) -> Relay:
        """A relay, not started yet, between this stream and a connected socket, carried by the
        session's pump. From `Relay.start` to its end nothing else may use either."""
        from tunnelmux.pump.relay import Relay

        self._require_open()
        tunnel = self.session.tunnel
        if tunnel is None:
            raise ValueError("this session is not carried by a pump")
        return Relay(tunnel, self._engine_stream, local, owner)

    def join_in_pump(self, other: Stream, owner: Owner) -> JoinedStream | None:
        """Join the two streams in the pump that carries both their sessions; None where no pump
        does. *owner* is called at the end, and nothing else may use either stream until then."""
        from tunnelmux.pump.joined import join_streams

        self._require_open()
        other._require_open()
        one, two = self.session.tunnel, other.session.tunnel
        if one is None or two is None:
            return None
        return join_streams(one, self._engine_stream, two, other._engine_stream, owner)

    # -- waiting ----------------------------------------------------------------------------

    def _wake(self) -> None:
        """Reschedule the tasks that can go on now; called by the session, once per batch."""
        if self._receiver is not None and self._engine_stream.readable:
            task, self._receiver = self._receiver, None
            trio.lowlevel.reschedule(task)
        if self._sender is not None and self._engine_stream.writable:
            task, self._sender = self._sender, None
            trio.lowlevel.reschedule(task)

    async def _park_receiver(self) -> None:
        def abort(_: Any) -> trio.lowlevel.Abort:
            self._receiver = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._receiver = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _park_sender(self) -> None:
        def abort(_: Any) -> trio.lowlevel.Abort:
            self._sender = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sender = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _require_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"stream {self.id} was closed by this side")

    def _raise_if_broken(self) -> None:
        if self._engine_stream.error is not None:
            raise self._engine_stream.error.with_traceback(None)


class _TrioErrors:
    """The one place where our errors become Trio's. Holds nothing, so one serves all."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, StreamClosed):
            raise trio.ClosedResourceError(str(error)) from error
        if isinstance(error, StreamError | SessionError):
            raise trio.BrokenResourceError(str(error)) from error


_TRIO_ERRORS = _TrioErrors()
