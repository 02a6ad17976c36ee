"""The connection that a visitor's login belongs to (NTLM, Negotiate: RFC 4559 section 6). Such a
login takes several requests on one connection, and is valid for all that follow on it. So once one
begins, the connection to the target is reserved for the visitor's connection.
"""

from __future__ import annotations

import trio

from tunnelmux.http.exchange import Upstream
from tunnelmux.http.fields import binds_connection
from tunnelmux.http.head import RequestHead
from tunnelmux.relay import abort

__all__ = ["KeptUpstream"]


_LOOK = 0.001
# Seconds to detect that the connection has ended: reading available bytes takes no time.


class KeptUpstream:
    """At most one connection to a target, kept between the requests of one connection."""

    def __init__(self) -> None:
        self._stream: trio.abc.Stream | None = None
        self._name: object = None

    def wanted(self, request: RequestHead, name: object) -> bool:
        """Whether to keep the connection of this request to the target of this name: a login begins
        on it, or was made on it.
        """
        made = self._stream is not None and self._name == name
        return made or binds_connection(request.headers, b"authorization")

    @property
    def holds_any(self) -> bool:
        """Whether there is one."""
        return self._stream is not None

    def is_kept(self, name: object) -> bool:
        """Whether there is one to the target of this name."""
        return self._stream is not None and self._name == name

    async def take(self, name: object) -> trio.abc.Stream | None:
        """Take the connection to the target of this name; None when there is none, or the target
        has closed it. A connection to another target is closed.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return None
        if self._name == name and await _is_silent(stream):
            return stream
        await abort(stream)
        return None

    def put_back(self, name: object, upstream: Upstream) -> None:
        """Keep the connection of a finished exchange, if that is wanted and possible."""
        if upstream.kept:
            self.hold(name, upstream.stream)

    def hold(self, name: object, stream: trio.abc.Stream) -> None:
        """Keep this one."""
        self._stream, self._name = stream, name

    async def drop(self) -> None:
        """Close the kept connection, if any."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await abort(stream)


async def _is_silent(stream: trio.abc.Stream) -> bool:
    """Whether the connection is open and nothing has come on it."""
    with trio.move_on_after(_LOOK) as look:
        try:
            await stream.receive_some(1)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
    return look.cancelled_caught
