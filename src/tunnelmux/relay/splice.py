"""Carry bytes both ways between two streams until both directions have ended.

The rule behind everything here: a reader must be able to tell the end of the data from a cut. So an
end is passed on as an end (FIN to shutdown(SHUT_WR), half by half), and everything else, a reset, a
broken transport, a timeout, a cancellation, is passed on as a reset, behind what came before it: a
server that is full says so, and resets.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import trio

from tunnelmux.relay.pumped import PumpedRelay, pumpable
from tunnelmux.transports.tcp import reset_socket

__all__ = ["READ_SIZE", "RelayResult", "abort", "relay", "reset_socket"]

READ_SIZE = 65_536
"""Bytes asked for in one read. Larger reads cost more memory per relay and measured no faster."""

RECHECK_INTERVAL = 5.0
"""Seconds between looks at a side that has sent its FIN, while the other direction still runs. A
FIN looks the same whether the peer finished sending or went away altogether; only a later reset
tells, and only a reader learns of it."""

CLOSE_TIMEOUT = 5.0
"""Seconds a graceful close may take (TLS close_notify, a WebSocket close frame), and what a side
that broke had said before it may take to be passed on."""


Ending = Literal["running", "finished", "broken", "idle", "cancelled"]


@runtime_checkable
class _Resettable(Protocol):
    def reset(self) -> None: ...


@runtime_checkable
class _Queueing(Protocol):
    async def wait_sent(self) -> None: ...


@dataclass(slots=True)
class RelayResult:
    """What a relay carried and how it ended.

    `ended` is "finished" when both directions ended cleanly, "broken" when a side failed (then
    `broken_side` names it and `error` is what it raised), "idle" when nothing moved for the idle
    timeout, "cancelled" when the relay's task was cancelled.
    """

    bytes_a_to_b: int = 0
    bytes_b_to_a: int = 0
    ended: Ending = "running"
    broken_side: Literal["a", "b"] | None = None
    error: Exception | None = None
    carried: Callable[[], tuple[int, int]] | None = None
    """What a pump has carried so far, a→b and b→a; it is added to the counts at the end."""

    @property
    def bytes_now(self) -> tuple[int, int]:
        """Bytes a→b and b→a at this moment."""
        forth, back = self.carried() if self.carried is not None else (0, 0)
        return self.bytes_a_to_b + forth, self.bytes_b_to_a + back


async def abort(stream: trio.abc.AsyncResource) -> None:
    """End `stream` so that its peer sees a reset, never a clean end. Does not wait for the peer.

    A stream with a `reset()` is reset. A TCP socket is closed with SO_LINGER 0, which sends RST.
    TLS is cut without a close_notify, and the TCP connection below it is reset. Anything else is
    closed forcefully.
    """
    if isinstance(stream, _Resettable):
        stream.reset()
    elif isinstance(stream, trio.SocketStream):
        reset_socket(stream.socket)
    elif isinstance(stream, trio.SSLStream):
        await abort(stream.transport_stream)
    else:
        with trio.CancelScope(shield=True):  # forceful: nothing in there may wait
            await trio.aclose_forcefully(stream)


async def relay(
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    *,
    from_a: bytes = b"",
    from_b: bytes = b"",
    idle_timeout: float | None = None,
    result: RelayResult | None = None,
) -> RelayResult:
    """Carry bytes a→b and b→a until both directions end, and close both streams.

    `from_a` and `from_b` are bytes that were read from that side already; they go first. An end of
    one direction becomes `send_eof` on the other side, and the other direction goes on; a side
    that has no `send_eof` is closed instead, which ends the relay. When a side breaks, when
    nothing moved either way for `idle_timeout` seconds (None: for as long as both sides like), or
    when the task is cancelled, both streams are aborted. At most one read per direction is held in
    memory: the next read waits until the other side took it.

    Returns the counts and the ending; a broken side is a result, not an exception. Pass `result`
    to have the counts also when the relay is cancelled.
    """
    if result is None:
        result = RelayResult()
    pumped = pumpable(a, b) if idle_timeout is None else None
    if pumped is not None:
        return await _relay_in_pump(pumped, a, b, (from_a, from_b), result)
    # Only data moves the deadline. Infinite without an idle timeout: a TCP connection may rest for
    # days, and the liveness of each leg is checked below (yamux ping, TCP keepalive).
    scope = trio.CancelScope(
        deadline=trio.current_time() + (math.inf if idle_timeout is None else idle_timeout)
    )
    forth = _Direction(a, b, result, "a", scope, idle_timeout)
    back = _Direction(b, a, result, "b", scope, idle_timeout)
    try:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(back.run, from_b, forth)
                await forth.run(from_a, back)
        clean = result.error is None
        if scope.cancelled_caught:
            clean = clean and (forth.clean or back.clean)
        if clean:
            await _close_both(a, b)
        elif result.error is not None:
            await _wait_sent(b if result.broken_side == "a" else a)
    except BaseException:  # Cancelled, above all
        result.ended = "cancelled"
        await _abort_both(a, b)
        raise
    if clean:
        result.ended = "finished"
    else:
        result.ended = "idle" if result.error is None else "broken"
        await _abort_both(a, b)
    return result


async def _relay_in_pump(
    pumped: PumpedRelay,
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    early: tuple[bytes, bytes],
    result: RelayResult,
) -> RelayResult:
    """Like `relay`, with the pump moving the bytes; `early` are the bytes read from a and b
    already.
    """
    a_is_stream = a is pumped.stream
    core = pumped.core

    def carried() -> tuple[int, int]:
        to_stream, to_local = core.bytes_in, core.bytes_out
        return (to_local, to_stream) if a_is_stream else (to_stream, to_local)

    result.carried = carried
    try:
        try:
            for data, sink in zip(early, (b, a), strict=True):
                if data:
                    await _send_early(data, sink, "b" if sink is b else "a", result)
            if result.error is None:
                await pumped.run()
        finally:
            (result.bytes_a_to_b, result.bytes_b_to_a), result.carried = result.bytes_now, None
    except BaseException:  # Cancelled, above all
        result.ended = "cancelled"
        await _abort_both(a, b)
        raise
    if pumped.broken_side is not None:
        result.broken_side = "a" if (pumped.broken_side == "stream") == a_is_stream else "b"
        result.error = pumped.error
    if result.error is None:
        result.ended = "finished"
        await _close_both(a, b)
    else:
        result.ended = "broken"
        await _abort_both(a, b)
    return result


async def _wait_sent(stream: trio.abc.Stream) -> None:
    """Wait until the bytes passed on have left: a reset would overtake them."""
    if isinstance(stream, _Queueing):
        with trio.move_on_after(CLOSE_TIMEOUT):
            await stream.wait_sent()


async def _send_early(
    data: bytes, sink: trio.abc.Stream, side: Literal["a", "b"], result: RelayResult
) -> None:
    try:
        await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        result.broken_side, result.error = side, exc
    else:
        if side == "b":
            result.bytes_a_to_b += len(data)
        else:
            result.bytes_b_to_a += len(data)


class _Direction:
    """One direction of a relay: everything from `source` goes to `sink`."""

    def __init__(
        self,
        source: trio.abc.Stream,
        sink: trio.abc.Stream,
        result: RelayResult,
        side: Literal["a", "b"],
        scope: trio.CancelScope,
        idle_timeout: float | None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._result = result
        self._side: Literal["a", "b"] = side
        self._scope = scope
        self._idle_timeout = idle_timeout
        self.ended = trio.Event()
        self.clean = False  # the other direction was ended by this one's clean end

    async def run(self, first: bytes, opposite: _Direction) -> None:
        """Carry until the source ends; then watch the source until the opposite one has ended."""
        if await self._carry(first, opposite) and not opposite.ended.is_set():
            await self._watch(opposite)

    async def _carry(self, data: bytes | bytearray, opposite: _Direction) -> bool:
        """Carry the bytes. True when the source ended cleanly and the sink was told so."""
        try:
            while True:
                if data:
                    try:
                        await self._sink.send_all(data)
                    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                        self._break_sink(exc, opposite)
                        return False
                    self._count(len(data))
                data = await self._source.receive_some(READ_SIZE)
                if not data:
                    break
                self._touch()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._break(self._side, exc)
            return False
        if self._result.error is not None:  # this end is the cut that the other task has seen
            self._scope.cancel(reason="all bytes of the broken side were passed on")
            return False
        return await self._pass_on_end(opposite)

    async def _pass_on_end(self, opposite: _Direction) -> bool:
        if not isinstance(self._sink, trio.abc.HalfCloseableStream):
            # TLS and WebSocket have no half-close. Saying nothing could leave both peers waiting
            # for each other, so the end of one direction is the end of all.
            self.clean = self._result.error is None
            self._scope.cancel(reason="a side that cannot half-close was closed")
            return False
        try:
            await self._sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._break_sink(exc, opposite)
            return False
        self.ended.set()
        return True

    async def _watch(self, opposite: _Direction) -> None:
        while not opposite.ended.is_set():
            with trio.move_on_after(RECHECK_INTERVAL):
                await opposite.ended.wait()
                return
            try:
                await self._source.receive_some(1)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._break(self._side, exc)
                return

    def _count(self, n: int) -> None:
        if self._side == "a":
            self._result.bytes_a_to_b += n
        else:
            self._result.bytes_b_to_a += n
        self._touch()

    def _touch(self) -> None:
        if self._idle_timeout is not None and self._result.error is None:
            self._scope.deadline = trio.current_time() + self._idle_timeout

    def _break(self, side: Literal["a", "b"], exc: Exception) -> None:
        if self._result.error is None:  # the first failure is the cause, later ones follow
            self._result.broken_side = side
            self._result.error = exc
        self._scope.cancel(reason="one side of the relay broke")

    def _break_sink(self, exc: Exception, opposite: _Direction) -> None:
        """Nothing more can be sent to the sink; what it had said before is still passed on."""
        if self._result.error is None:
            self._result.broken_side = "b" if self._side == "a" else "a"
            self._result.error = exc
        deadline = trio.current_time() + CLOSE_TIMEOUT
        self._scope.deadline = min(self._scope.deadline, deadline)
        if opposite.ended.is_set():
            self._scope.cancel(reason="one side of the relay broke")


async def _abort_both(a: trio.abc.Stream, b: trio.abc.Stream) -> None:
    try:
        await abort(a)
    finally:
        await abort(b)


async def _close_both(a: trio.abc.Stream, b: trio.abc.Stream) -> None:
    # Every byte was handed over and every end passed on. What is left is courtesy, so neither a
    # slow goodbye nor a failing one makes the relay a failure.
    for stream in (a, b):
        with (
            trio.move_on_after(CLOSE_TIMEOUT),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await stream.aclose()
