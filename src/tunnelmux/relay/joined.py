"""Two streams of two sessions, relayed to each other by the pump that carries both."""

from __future__ import annotations

import array
import fcntl
import socket
import termios

import trio

from tunnelmux.mux import Stream
from tunnelmux.pump.data_pump import Lent
from tunnelmux.relay.pumped import PumpedRelay
from tunnelmux.relay.splice import CLOSE_TIMEOUT, abort, relay

__all__ = ["join"]

_LOOK = 0.005
# Seconds between two checks whether the last bytes before a cut have been taken over.


async def join(a: Stream, b: Stream, from_a: bytes = b"") -> None:
    """Like `relay`, for two streams. Where a pump carries both, no byte passes through Python: each
    is relayed with one end of a socket pair. `from_a` goes to b first.
    """
    ends = None
    if a.session.tunnel is not None and b.session.tunnel is not None:
        try:
            ends = socket.socketpair()
        except OSError:
            ends = None  # no descriptor left: relay without the pump
    if ends is None:
        await relay(a, b, from_a=from_a)
        return
    try:
        for end in ends:
            end.setblocking(False)
        if from_a:
            await b.send_all(from_a)
        one, other = _Half(a, ends[0]), _Half(b, ends[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, other)
            await other.run(one)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await _abort_both(a, b)
    except BaseException:
        await _abort_both(a, b)
        raise
    finally:
        for end in ends:
            end.close()


async def _abort_both(a: Stream, b: Stream) -> None:
    await abort(a)
    await abort(b)


class _Half:
    """One of the streams, and its end of the socket pair."""

    def __init__(self, stream: Stream, end: socket.socket) -> None:
        self._end = end
        self._relay = PumpedRelay(stream, Lent(trio.socket.from_stdlib_socket(end)))

    async def run(self, other: _Half) -> None:
        """Relay until the stream ends. When it is cut, cut the other stream too, before the end of
        the socket pair could look like the end of the data; what came before the cut is passed on
        first.
        """
        await self._relay.run()
        if self._relay.broken_side is None:
            self._end.close()  # which is how the other half hears of the end
            return
        with trio.move_on_after(CLOSE_TIMEOUT):
            while other.has_more:  # noqa: ASYNC110  a cut is rare, and mostly nothing is left
                await trio.sleep(_LOOK)
            await other._relay.stream.wait_sent()
        other._relay.core.abort()

    @property
    def has_more(self) -> bool:
        """Whether this half still has to take over bytes that the other half has written."""
        if self._relay.core.outcome is not None:
            return False
        count = array.array("i", [0])
        fcntl.ioctl(self._end.fileno(), termios.FIONREAD, count)
        return count[0] > 0
