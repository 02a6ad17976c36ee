"""Idle connections to a proxy, kept for the next call."""

from __future__ import annotations

import select
from collections import deque

import trio

__all__ = ["KeptConnections"]

MOST_KEPT = 8
"""Idle connections; one more is closed after its call. A program with more concurrent calls opens
new ones.
"""

KEPT_FOR = 30.0
"""Seconds that one may be idle: well under the proxy's own idle_timeout (75 s), so that a call
seldom finds its connection closing.
"""


class KeptConnections:
    """Idle connections; the most recently used is taken first."""

    def __init__(self) -> None:
        self.is_open = False
        """Whether connections are kept."""
        self._idle: deque[tuple[trio.abc.Stream, float]] = deque()

    async def take(self) -> trio.abc.Stream | None:
        """An idle connection that is still open, or None."""
        oldest = trio.current_time() - KEPT_FOR
        while self._idle:
            stream, since = self._idle.pop()
            if since >= oldest and not _has_something(stream):
                return stream
            await trio.aclose_forcefully(stream)
        return None

    async def give(self, stream: trio.abc.Stream) -> None:
        """Keep a connection whose answer was read to the end, or close it."""
        if self.is_open:
            self._idle.append((stream, trio.current_time()))
        if not self.is_open or len(self._idle) > MOST_KEPT:
            await trio.aclose_forcefully(self._idle.popleft()[0] if self.is_open else stream)

    async def close(self) -> None:
        """Close all; from now on none is kept."""
        self.is_open = False
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop()[0])


def _has_something(stream: trio.abc.Stream) -> bool:
    """Whether there is something to read: the end, or unexpected bytes."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(inner, trio.SocketStream):
        return False  # this cannot be seen on other kinds of stream
    poll = select.poll()
    poll.register(inner.socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
