"""Two streams of two sessions, relayed to each other by the pump that carries both."""

from __future__ import annotations

import trio

from tunnelmux.mux import Stream
from tunnelmux.relay.splice import abort, relay

__all__ = ["join"]


async def join(a: Stream, b: Stream, from_a: bytes = b"") -> None:
    """Like `relay`, for two streams. Where a pump carries both, no byte passes through Python.
    `from_a` goes to b first.
    """
    end = _End()
    joined = None
    try:
        if a.session.tunnel is not None and b.session.tunnel is not None:
            if from_a:
                await b.send_all(from_a)
            joined = a.join_in_pump(b, end)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await _abort_both(a, b)
        return
    except BaseException:
        await _abort_both(a, b)
        raise
    if joined is None:
        await relay(a, b, from_a=from_a)
        return
    try:
        # No deadline: a connection may rest for days; both sessions have their own liveness.
        await end.came.wait()
    finally:
        joined.abort()


async def _abort_both(a: Stream, b: Stream) -> None:
    await abort(a)
    await abort(b)


class _End:
    """Waits for the pump to report the end."""

    def __init__(self) -> None:
        self.came = trio.Event()

    def on_news(self) -> None:
        self.came.set()
