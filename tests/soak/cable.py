"""A TCP connection that can be cut in the middle, and comes back at once."""

from __future__ import annotations

from functools import partial
from typing import Self

import trio

from tunnelmux.relay import abort, relay

__all__ = ["Cable"]


class Cable:
    """Listens on `port` and carries each connection on to another one."""

    def __init__(self, to: int) -> None:
        self.port = 0
        self._to = to
        self._carried: set[trio.SocketStream] = set()

    @classmethod
    async def plug(cls, nursery: trio.Nursery, to: int) -> Self:
        cable = cls(to)
        [listener] = await nursery.start(partial(trio.serve_tcp, cable._carry, 0, host="127.0.0.1"))
        cable.port = listener.socket.getsockname()[1]
        return cable

    async def cut(self) -> int:
        """Reset every connection; how many ends that were."""
        carried = list(self._carried)
        for stream in carried:
            await abort(stream)
        return len(carried)

    async def _carry(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._to)
        except OSError:
            await abort(near)
            return
        self._carried |= {near, far}
        try:
            await relay(near, far)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            self._carried -= {near, far}
            await abort(near)
            await abort(far)
