"""Connections to a proxy that wait for the next call."""

from __future__ import annotations

import select
from collections import deque

import trio

__all__ = ["KeptConnections"]

MOST_KEPT = 8
"""Connections that wait; one more is closed after its call. A program that makes more calls than
that at once is answered soon enough with new ones."""

KEPT_FOR = 30.0
"""Seconds that one waits at most: well under the proxy's own idle_timeout (75 s), so that a call
does not meet the end of its connection."""


class KeptConnections:
    """Connections without a call, the latest used again first. Closed when it is closed."""

    def __init__(self) -> None:
        self.is_open = False
        """Whether any are kept."""
        self._idle: deque[tuple[trio.abc.Stream, float]] = deque()

    async def take(self) -> trio.abc.Stream | None:
        """One that is as it was left, or None."""
        oldest = trio.current_time() - KEPT_FOR
        while self._idle:
            stream, since = self._idle.pop()
            if since >= oldest and not _has_something(stream):
                return stream
            await trio.aclose_forcefully(stream)
        return None

    async def give(self, stream: trio.abc.Stream) -> None:
        """Keep one whose answer was read whole and that stays open, or close it."""
        if self.is_open:
            self._idle.append((stream, trio.current_time()))
        if not self.is_open or len(self._idle) > MOST_KEPT:
            await trio.aclose_forcefully(self._idle.popleft()[0] if self.is_open else stream)

    async def close(self) -> None:
        """Close them all; from now on none is kept."""
        self.is_open = False
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop()[0])


def _has_something(stream: trio.abc.Stream) -> bool:
    """Whether there is something to read: the end, or what was not asked for."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(inner, trio.SocketStream):
        return False  # of other streams that cannot be seen
    poll = select.poll()
    poll.register(inner.socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
