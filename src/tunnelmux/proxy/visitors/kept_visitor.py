"""The times of visitors in the pump, and those who have a task: it waits for the end.

Whether a connection may be carried is decided by the ingress: the visitor's connection stands in
the pump, and so does the session that its request needs. Which requests are carried the followers
of `pump.followers` decide, for each; the others come back to h11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tunnelmux.http import Refusal, ServerConnection
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.visitors.carrier import REASONS_OF_STATUS
from tunnelmux.proxy.visitors.visit import PATIENCE, Wait

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay

__all__ = ["KeptVisitor", "RelayTimes"]

_PHASES: tuple[Wait, ...] = ("agreeing", "idle", "reading", "sending", "waiting")


class RelayTimes:
    """The times of one relay, whoever watches them: phases change without a word, so a look now
    and then, by which a time may be late."""

    def __init__(self, limits: IngressLimits) -> None:
        self._limits = limits
        self._moved = (0, 0.0)  # bytes of a body that had come, and when that was noticed

    @property
    def look(self) -> float:
        """Seconds between two looks: no more than the shortest time there is."""
        return min(PATIENCE[phase](self._limits) for phase in _PHASES)

    def due(self, relay: HttpRelay) -> float:
        """When whatever it waits for has taken too long. A body that moves may take its time."""
        since = relay.phase_since
        if relay.phase == "sending":
            if relay.bytes_in != self._moved[0]:
                self._moved = relay.bytes_in, trio.current_time()
            since = max(since, self._moved[1])
        return since + PATIENCE[relay.phase](self._limits)

    def time_out(self, relay: HttpRelay) -> bool:
        """End what has taken too long, so that the relay hands over; False when it only rests, and
        is to be said goodbye to."""
        if relay.phase == "idle":
            return False
        if relay.phase == "waiting":
            seconds = self._limits.response_timeout
            relay.give_up(f"the target did not answer within {seconds:g} s", 504)
        elif relay.phase == "sending":
            seconds = self._limits.body_stall
            relay.give_up(f"no byte of the request's body came within {seconds:g} s", 408)
        else:
            relay.give_up(None, 0)  # h11 knows what to say
        return True


class KeptVisitor:
    """One connection in the pump's hands, from the request that h11 has read to the one that needs
    more care."""

    def __init__(self, server: ServerConnection, limits: IngressLimits) -> None:
        self._server = server
        self._times = RelayTimes(limits)
        self._over = trio.Event()

    def on_news(self) -> None:
        """Called by the pump at the end."""
        self._over.set()

    def adopt(self, relay: HttpRelay) -> None:
        """Go on with a relay that had another owner; it may be over already."""
        relay.owner = self
        if relay.outcome is not None:
            self._over.set()

    async def run(self, relay: HttpRelay) -> bool | None:
        """Wait until the relay is over: whether the connection can go on with another request, or
        None when the very first one was not taken and is to be served in another way."""
        self._server.on_finish = relay.finish_soon
        try:
            while not self._over.is_set():
                look = trio.current_time() + self._times.look
                with trio.move_on_at(min(look, self._times.due(relay))):
                    await self._over.wait()
                is_late = trio.current_time() >= self._times.due(relay)
                if is_late and not self._times.time_out(relay):
                    self._server.finish_soon()
        except BaseException:
            relay.abort()
            raise
        finally:
            self._server.on_finish = None
        if relay.outcome == "handed back":
            pending, first = relay.take_pending(), self._server.raw_head
            if relay.problem is not None:
                self._server.put_back(pending)
                await self._refuse(relay.status, relay.problem)
                return False
            untouched = relay.requests == 0 and pending.startswith(first)
            self._server.put_back(pending[len(first) :] if untouched else pending)
            return None if untouched else True
        if relay.outcome == "finished":
            await self._server.close()
        else:
            await self._server.abort()
        return False

    async def _refuse(self, status: int, problem: str) -> None:
        message = f"The request could not be served: {problem}."
        await self._server.refuse(Refusal(status, REASONS_OF_STATUS[status], message))
