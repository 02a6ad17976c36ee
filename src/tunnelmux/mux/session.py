"""A yamux session on any Trio byte stream: one task around one engine, two without a pump."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import trio

from tunnelmux.errors import (
    RemoteProtocolError,
    SessionClosed,
    SessionError,
    SessionLost,
    SessionTimeout,
)
from tunnelmux.limits import Limits
from tunnelmux.mux.stream import Stream
from tunnelmux.pump.data_pump import DataPump, Lent, Owner, lend
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream, WindowBudget

if TYPE_CHECKING:
    from tunnelmux.pump.relay import Relay
    from tunnelmux.pump.tunnel import Tunnel

__all__ = ["Session", "open_session"]

_LAST_ID = 2**32 - 1

READ_SIZE = 65_536
"""Bytes asked of the transport at once: one flush of the peer."""

CLOSE_TIMEOUT = 1.0
"""Seconds the transport gets to take our last frames, and again to deliver the peer's end, and
again to close. Enough for a round trip; a peer that is gone must not hold its session's place."""


@cache
def process_budget(capacity: int) -> WindowBudget:
    """The budget that all sessions of this process share when they are held to the same number."""
    return WindowBudget(capacity)


@asynccontextmanager
async def open_session(
    transport: trio.abc.Stream,
    *,
    is_client: bool,
    limits: Limits | None = None,
    window_budget: WindowBudget | None = None,
    pump: DataPump | None = None,
) -> AsyncIterator[Session]:
    """A session on *transport* for the length of an ``async with`` block.

    *is_client* is True on the side that dialled. *window_budget* is what the receive windows of all
    sessions that share it may grow by; None is the process's, `Limits.process_window_budget`. With
    a *pump* the bytes are moved by it, if the transport has a socket to lend.

    The session owns the transport: leaving the block sends what is queued (for at most
    `Limits.close_grace` seconds), says GoAway and closes it. Cancelling the block closes it at
    once. What the block raises comes out as it was raised.
    """
    session = Session(
        transport, is_client=is_client, limits=limits, window_budget=window_budget, pump=pump
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        try:
            yield session
        except Exception as exc:  # noqa: BLE001 - raised below, where no nursery wraps it in a group
            failure = exc
        finally:
            await session.aclose()
    if failure is not None:
        raise failure


class Session:
    """One yamux session. Made by `open_session`, `tunnelmux.connect` and `tunnelmux.serve`.

    Its maker gives it the transport for good, and calls `run`; the arguments are those of
    `open_session`. A session that is not to take streams resets those that the peer opens.

    Iterating accepts the peer's streams until the session ends cleanly. Methods raise
    `tunnelmux.errors.SessionClosed` (or what ended the session) once it is over; streams then raise
    `trio.BrokenResourceError`, after giving out everything that came before the end.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        *,
        is_client: bool,
        limits: Limits | None = None,
        window_budget: WindowBudget | None = None,
        pump: DataPump | None = None,
        takes_streams: bool = True,
    ) -> None:
        self.limits = limits = limits or Limits()
        self.last_received = trio.current_time()
        """When the last byte came, on Trio's clock."""
        self.on_offer: Callable[[EngineStream], bool] | None = None
        """Asked about each stream the peer opens, before `accept_stream` gives it out: answers
        whether it was taken. Only streams that a pump can carry are offered."""
        self.is_used_up = False
        """This side has used all its stream ids, 2**31. One that takes no streams drains then, so
        that the peer or its owner makes the next one."""
        self._takes_streams = takes_streams
        self._transport = transport
        self._pump = pump
        self._tunnel: Tunnel | None = None
        self._lent: Lent | None = None
        self._sent = 0
        self._received = 0
        new_engine = Engine if pump is None else pump.new_engine
        self._engine = new_engine(
            is_client=is_client,
            limits=limits,
            now=self.last_received,
            process_budget=window_budget or process_budget(limits.process_window_budget),
        )
        self._openers = trio.lowlevel.ParkingLot()
        self._acceptors = trio.lowlevel.ParkingLot()
        self._pingers = trio.lowlevel.ParkingLot()
        self._flushers = trio.lowlevel.ParkingLot()
        self._leavers = trio.lowlevel.ParkingLot()
        self._writer: trio.lowlevel.Task | None = None
        self._timer = trio.CancelScope()
        self._write_scope = trio.CancelScope()
        self._over = trio.Event()
        self._finished = trio.Event()
        self._forceful = False
        self._peer_ended = False

    def __repr__(self) -> str:
        role = "client" if self._engine.is_client else "server"
        state = f"over: {self.error}" if self.is_closed else f"{self.stream_count} streams"
        return f"<tunnelmux.Session {role}, {state}>"

    # -- looking ----------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """The session is over; `error` says why."""
        return self._engine.is_closed

    @property
    def is_draining(self) -> bool:
        """A GoAway(0) was sent or received: no new streams, live ones go on."""
        return self._engine.is_draining

    @property
    def error(self) -> SessionError | None:
        """Why the session is over (a plain `SessionClosed` when it ended in order), or None."""
        return self._engine.error

    @property
    def rtt(self) -> float | None:
        """Seconds the last ping took to come back; None before the first."""
        return self._engine.rtt

    @property
    def bytes_sent(self) -> int:
        """Bytes given to the transport so far, headers included."""
        return self._sent + (self._tunnel.bytes_sent if self._tunnel is not None else 0)

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the transport so far, headers included."""
        return self._received + (self._tunnel.bytes_received if self._tunnel is not None else 0)

    @property
    def window_stalls(self) -> int:
        """How often a stream had to wait for the peer to read: it had used up its window."""
        return self._engine.window_stalls

    @property
    def tunnel(self) -> Tunnel | None:
        """What carries this session in the pump, while the pump does."""
        return self._tunnel

    @property
    def stream_count(self) -> int:
        """Live streams in both directions, accepted or not."""
        return self._engine.stream_count

    # -- doing ------------------------------------------------------------------------------

    async def open_stream(self) -> Stream:
        """A new stream to the peer. Waits only while `Limits.max_unacked_opens` earlier ones have
        not been answered; data may be sent at once.

        Raises SessionClosed or what ended the session, SessionDraining, TooManyStreams,
        StreamIdsExhausted.
        """
        await trio.lowlevel.checkpoint()
        engine = self._engine
        while not (engine.can_open or engine.is_closed or engine.is_draining):
            self._watch()
            await self._openers.park()
        stream = Stream(self, self._open())
        self._kick()
        return stream

    def _open(self) -> EngineStream:
        stream = self._engine.open_stream(trio.current_time())
        if stream.id > _LAST_ID - 2:
            self.is_used_up = True
            if not self._takes_streams:
                self._engine.go_away()  # nothing is left to do but for its live streams
        return stream

    async def accept_stream(self) -> Stream:
        """The next stream the peer opened. Raises SessionClosed or what ended the session."""
        await trio.lowlevel.checkpoint()
        while True:
            engine_stream = self._engine.accept_stream()
            if engine_stream is not None:
                stream = Stream(self, engine_stream)
                self._kick()
                return stream
            if self._engine.error is not None:
                raise self._engine.error.with_traceback(None)
            await self._acceptors.park()

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Stream:
        try:
            return await self.accept_stream()
        except SessionClosed as exc:
            if type(exc) is SessionClosed:
                raise StopAsyncIteration from None
            raise

    async def ping(self) -> float:
        """Seconds a ping takes to the peer and back. Concurrent callers share one.

        Raises SessionClosed or what ended the session.
        """
        await trio.lowlevel.checkpoint()
        wanted = self._engine.ping(trio.current_time())
        self._kick()
        while self._engine.pings_answered < wanted:
            if self._engine.error is not None:
                raise self._engine.error.with_traceback(None)
            self._watch()
            await self._pingers.park()
        rtt = self._engine.rtt
        assert rtt is not None
        return rtt

    def open_relay(
        self, local: object, head: bytes, answer: bytes, owner: Owner, *, reads: bool = True
    ) -> Relay | None:
        """A new stream that begins with *head*, relayed with the socket *local* by the pump.

        What *local* sends follows *head* at once; the other way opens when the peer has answered
        with exactly *answer*. If it is not to read at once, so does the first. None when that
        cannot be had without waiting, or without a pump.
        """
        from tunnelmux.pump.relay import Relay

        stream = self._open_for_relay(head)
        if stream is None or self._tunnel is None:
            return None
        relay = Relay(self._tunnel, stream, local, owner)
        relay.start_awaiting(answer, reads)
        self._kick()
        return relay

    def open_leg(self, head: bytes) -> tuple[Tunnel, EngineStream] | None:
        """A new stream that begins with *head*, for compiled code to own, and what carries it; None
        when that cannot be had without waiting, or without a pump. Called within the pump's turns:
        the stream's frames leave with them."""
        stream = self._open_for_relay(head)
        return None if stream is None or self._tunnel is None else (self._tunnel, stream)

    def _open_for_relay(self, head: bytes) -> EngineStream | None:
        engine = self._engine
        if self._tunnel is None or engine.is_draining or not engine.can_open:
            return None
        try:
            stream = self._open()
        except SessionError:  # open_stream raises the error with its details
            return None
        stream.send(head)
        return stream

    def relay_offer(
        self,
        offered: EngineStream,
        local: object,
        owner: Owner,
        *,
        head_size: int,
        answer: bytes,
    ) -> Relay:
        """Relay a stream that `on_offer` was asked about with the socket *local*, which is being
        connected.

        Once it is, the first *head_size* bytes of the stream are dropped and *answer* is sent. If
        it cannot be, the relay is handed back with the stream untouched.
        """
        from tunnelmux.pump.relay import Relay

        assert self._tunnel is not None  # nothing is offered without
        relay = Relay(self._tunnel, offered, local, owner)
        relay.start_connecting(answer, head_size)
        return relay

    def join_offer(
        self, offered: EngineStream, onward: Session, *, head_size: int = 0, answer: bytes = b""
    ) -> bool:
        """Join a stream that `on_offer` was asked about to a new stream of *onward*, which the same
        pump carries: *answer* is sent, and all but its first *head_size* bytes passed on. False
        when that cannot be had without waiting; then the stream is untouched."""
        from tunnelmux.pump.joined import join_streams

        assert self._tunnel is not None  # nothing is offered without
        stream = onward._open_for_relay(b"")
        if stream is None or onward._tunnel is None:
            return False
        offered.drop(head_size)
        offered.send(answer)
        join_streams(self._tunnel, offered, onward._tunnel, stream)
        return True

    def adopt(self, stream: EngineStream) -> Stream:
        """The stream of a relay that was handed back, for a task to use."""
        return Stream(self, stream)

    def go_away(self) -> None:
        """Take no more streams from the peer; live ones go on, and when the last of them has ended
        the session closes. Harmless twice."""
        self._engine.go_away()
        self._kick()

    async def aclose(self) -> None:
        """Send what is queued, for at most `Limits.close_grace` seconds, say GoAway, and close the
        transport. Cancelled, it closes at once. Never fails; harmless twice."""
        try:
            with trio.move_on_after(self.limits.close_grace):
                while not self.is_closed and (self._engine.queued_bytes or self._engine.wants_send):
                    self._watch()
                    await self._flushers.park()
            self._engine.close()
            self._kick()
            await self._finished.wait()  # bounded: the tasks give each step CLOSE_TIMEOUT
        except trio.Cancelled:
            self.abort()
            raise

    def end(self, error: SessionError | None = None) -> None:
        """Like `abort`, but the peer is told: `run` sees a GoAway off and closes the transport in
        order, giving each step CLOSE_TIMEOUT seconds."""
        self._engine.close(error)
        self._kick()

    def abort(self, error: SessionError | None = None) -> None:
        """End the session now, whatever is queued; its streams fail with *error*."""
        self._forceful = True
        self._engine.close(error)
        self._kick()
        self._write_scope.cancel()

    async def wait_closed(self) -> None:
        """Return when the session is over."""
        await self._over.wait()

    async def wait_draining(self) -> None:
        """Return when a GoAway was sent or received, or the session is over."""
        await trio.lowlevel.checkpoint()
        while not (self._engine.is_draining or self._engine.is_closed):
            await self._leavers.park()

    async def wait_flushed(self) -> None:
        """Return when the transport has taken more of what is queued, or the session is over."""
        if not self.is_closed:
            self._watch()
            await self._flushers.park()

    # -- from start to end ------------------------------------------------------------------

    async def run(self) -> None:
        """Move bytes until the session is over, then see the transport closed; once per session.

        `open_session` has a task for this. A caller that only waits for the end calls it instead,
        and needs no other task. Cancelled, it closes the transport at once.
        """
        try:
            if self._pump is not None and (lent := await lend(self._transport)) is not None:
                await self._attend(self._pump, lent)
            await self._run_streamed()
        finally:
            self._engine.close(SessionClosed("the session was cancelled"))
            self._kick()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
                await trio.aclose_forcefully(self._transport)
            self._finished.set()

    # -- with a pump ------------------------------------------------------------------------

    async def _attend(self, pump: DataPump, lent: Lent) -> None:
        """Let the pump move the bytes until it has nothing more to move; keep the timers."""
        tunnel = self._attach(pump, lent)
        try:
            tunnel.feed(lent.early, trio.current_time())
            while not (self._engine.is_closed or tunnel.ended):
                deadline = self._engine.next_deadline()
                tunnel.deadline = math.inf if deadline is None else deadline
                with trio.CancelScope(deadline=tunnel.deadline) as self._timer:
                    self._kick()  # what came meanwhile may have ended the session
                    await trio.sleep_forever()
                if trio.current_time() >= tunnel.deadline:
                    self._note_input()
                    self._engine.handle_deadline(trio.current_time())
            if not (self._forceful or tunnel.lost):
                with trio.move_on_after(CLOSE_TIMEOUT):
                    await self._see_off(tunnel)
        finally:
            self._detach(tunnel, lent)

    def _attach(self, pump: DataPump, lent: Lent) -> Tunnel:
        tunnel = pump.new_tunnel(self._engine, lent, self)
        self._tunnel, self._lent = tunnel, lent
        if lent.on_lent is not None:
            lent.on_lent(tunnel)
        return tunnel

    def _detach(self, tunnel: Tunnel, lent: Lent) -> None:
        self._note_input()
        self._tunnel = self._lent = None
        torn = tunnel.detach()
        self._sent += tunnel.bytes_sent
        self._received += tunnel.bytes_received
        if lent.give_back is not None:
            lent.give_back(torn)
        if tunnel.lost is not None:
            self._lose_transport(tunnel.lost)

    async def _see_off(self, tunnel: Tunnel) -> None:
        """Wait until the last frames have left. The caller sets the deadline."""
        tunnel.want_flush()
        while not (tunnel.is_drained or tunnel.ended):
            tunnel.watched = True
            await self._flushers.park()

    def on_news(self) -> None:
        """Called by the pump after a batch that concerns more than relays."""
        tunnel, lent = self._tunnel, self._lent
        if tunnel is None or lent is None:
            return
        tunnel.watched = bool(self._openers or self._pingers or self._flushers)
        self._note_input()
        if lent.on_control is not None:
            lent.on_control()
        if tunnel.ended:
            self._timer.cancel()
        if tunnel.ended or tunnel.is_drained:
            self._flushers.unpark_all()
        self._kick()

    def _note_input(self) -> None:
        if self._tunnel is not None:
            self.last_received = self._tunnel.last_received

    def _watch(self) -> None:
        """Have the pump call after every batch that touches this session, while a task waits."""
        if self._tunnel is not None:
            self._tunnel.watched = True

    # -- without one ------------------------------------------------------------------------

    async def _run_streamed(self) -> None:
        async with trio.open_nursery() as nursery:
            written = trio.Event()
            nursery.start_soon(self._write, written)
            while not self._engine.is_closed:
                await self._read_once()
            await self._finish(written)
            self._write_scope.cancel()

    async def _read_once(self) -> None:
        engine = self._engine
        deadline = engine.next_deadline()
        try:
            with trio.CancelScope(deadline=math.inf if deadline is None else deadline) as scope:
                self._timer = scope
                data = await self._transport.receive_some(READ_SIZE)
            now = trio.current_time()
            if scope.cancelled_caught:
                engine.handle_deadline(now)
            elif data:
                self._received += len(data)
                self.last_received = now
                engine.receive_data(data, now)
            else:
                self._peer_ended = True
                engine.receive_eof(now)
        except RemoteProtocolError:
            pass  # the engine is closed with it, and has a GoAway to send
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose_transport(exc)
        self._kick()

    async def _finish(self, written: trio.Event) -> None:
        """See the last frames off: the peer should read our GoAway and not a connection reset,
        which is what closing a socket with unread input would make of it."""
        if self._forceful or isinstance(self.error, SessionTimeout):
            return
        with trio.move_on_after(CLOSE_TIMEOUT):
            await written.wait()
        if isinstance(self._transport, trio.abc.HalfCloseableStream) and not self._peer_ended:
            with trio.move_on_after(CLOSE_TIMEOUT):
                try:
                    await self._transport.send_eof()
                    while await self._transport.receive_some(READ_SIZE):
                        pass
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                    pass  # it is gone, or its writer is stuck: do not wait
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._transport.aclose()

    async def _write(self, written: trio.Event) -> None:
        """Give the transport what the engine has, until the session is over.

        No caller's cancellation can reach the transport here, so no frame is ever cut.
        """
        engine = self._engine
        try:
            with self._write_scope:
                while True:
                    data = engine.data_to_send(trio.current_time(), self.limits.flush_size)
                    self._kick()  # the engine has room again, or has ended with its last stream
                    if data:
                        await self._transport.send_all(data)
                        self._sent += len(data)
                    elif engine.is_closed:
                        break
                    else:
                        if not engine.queued_bytes:
                            self._flushers.unpark_all()
                        await self._park_writer()
                        # One scheduler turn for all tasks that are about to send: what they queue
                        # now, such as a FIN behind a body, leaves in the same message. No timer, no
                        # wait.
                        await trio.lowlevel.checkpoint()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._lose_transport(exc)
            self._kick()
        finally:
            written.set()

    async def _park_writer(self) -> None:
        def abort(_: Any) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _lose_transport(self, exc: Exception) -> None:
        cause = exc.__cause__ or exc
        error = SessionLost(f"the connection broke: {cause}")
        error.__cause__ = exc
        self._engine.close(error)
        self._forceful = True

    # -- after every touch of the engine ----------------------------------------------------

    def _kick(self) -> None:
        """Wake the tasks that the last touch of the engine concerns, each task at most once."""
        engine = self._engine
        self._wake_waiters()
        if self._tunnel is not None:
            if engine.wants_send or engine.is_closed:
                self._tunnel.want_flush()
        elif self._writer is not None and (engine.wants_send or engine.is_closed):
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)
        if engine.is_closed:
            self._wind_up()
        else:
            deadline = engine.next_deadline()
            if deadline is not None and deadline < self._timer.deadline:
                self._timer.deadline = deadline

    def _wake_waiters(self) -> None:
        engine = self._engine
        if engine.accept_pending and not self._takes_streams:
            self._reset_offers()
        for engine_stream in engine.take_changed():
            if engine_stream.owner is not None:
                engine_stream.owner._wake()
        if engine.accept_pending:
            if self.on_offer is not None and self._tunnel is not None:
                self._make_offers(self.on_offer)
            if self._acceptors and engine.accept_pending:
                self._acceptors.unpark(count=engine.accept_pending)
        if self._openers and (engine.can_open or engine.is_draining):
            self._openers.unpark_all()
        if self._pingers:
            self._pingers.unpark_all()
        if self._leavers and engine.is_draining:
            self._leavers.unpark_all()

    def _reset_offers(self) -> None:
        while (offered := self._engine.accept_stream()) is not None:
            offered.reset()

    def _make_offers(self, on_offer: Callable[[EngineStream], bool]) -> None:
        """Offer the streams that wait to be accepted, the oldest first, until one is declined."""
        engine = self._engine
        while (offered := engine.offered_stream()) is not None and on_offer(offered):
            engine.accept_stream()

    def _wind_up(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        for lot in (
            self._acceptors,
            self._openers,
            self._pingers,
            self._flushers,
            self._leavers,
        ):
            lot.unpark_all()
        self._timer.cancel()
        self._write_scope.deadline = trio.current_time() + CLOSE_TIMEOUT
