"""A relay that the pump runs: the task only waits for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import trio

from tunnelmux.mux import Stream
from tunnelmux.pump.data_pump import Lent, lend_socket

if TYPE_CHECKING:
    from tunnelmux.pump.relay import Relay

__all__ = ["PumpedRelay", "pumpable"]


class PumpedRelay:
    """The bytes between a stream and a local socket, plain or under TLS, moved by the pump of the
    stream's session."""

    def __init__(self, stream: Stream, local: Lent) -> None:
        from tunnelmux.pump.pump_socket import PumpSocket

        self.stream = stream
        self.core: Relay = stream.relay_in_pump(PumpSocket(local.socket, local.tls), self)
        self._over = trio.Event()

    async def run(self) -> None:
        """Wait until both directions ended, or one side broke. Cancelled, it resets the stream;
        the socket stays with the caller, however it ends."""
        self.core.start()
        try:
            # No deadline: a connection may rest for days; both legs have their own liveness.
            await self._over.wait()
        except BaseException:
            self.core.abort()
            raise

    @property
    def broken_side(self) -> Literal["stream", "local"] | None:
        """Which side failed; None when neither did."""
        if self.core.outcome == "stream broke":
            return "stream"
        return "local" if self.core.outcome == "local broke" else None

    @property
    def error(self) -> trio.BrokenResourceError:
        """The exception that using the broken side would have raised."""
        error = trio.BrokenResourceError(str(self.core.error))
        error.__cause__ = self.core.error
        return error

    def on_news(self) -> None:
        """Called by the pump at the end."""
        self._over.set()


def pumpable(a: trio.abc.Stream, b: trio.abc.Stream) -> PumpedRelay | None:
    """A relay of the two, in either order, if a pump can run it; else None."""
    stream, local = (a, b) if isinstance(a, Stream) else (b, a)
    if not isinstance(stream, Stream) or stream.session.tunnel is None:
        return None
    lent = lend_socket(local)
    return PumpedRelay(stream, lent) if lent is not None else None
