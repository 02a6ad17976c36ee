"""Visitors in the pump that have a task: it waits for the end, and knows all the times.

Whether a connection may be carried is decided by the ingress: the visitor is on plain TCP, and the
session that its request needs is the pump's. Which requests are carried the followers of
`pump.followers` decide, for each; the others come back to h11.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tunnelmux.http import Refusal, ServerConnection
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.visitors.carrier import REASONS_OF_STATUS

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay

__all__ = ["KeptVisitor"]


class KeptVisitor:
    """One connection in the pump's hands, from the request that h11 has read to the one that needs
    more care."""

    def __init__(self, server: ServerConnection, limits: IngressLimits) -> None:
        self._server = server
        self._limits = limits
        self._patience = {
            "agreeing": limits.connect_timeout,
            "idle": limits.idle_timeout,
            "reading": limits.head_timeout,
            "sending": limits.body_stall,
            "waiting": limits.response_timeout + limits.connect_timeout,
        }
        self._moved = (0, 0.0)  # bytes of a body that had come, and when that was noticed
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
                # Phases change without a word, so a look now and then: no more often than the
                # shortest of their times, by which the others may be late.
                look = trio.current_time() + min(self._patience.values())
                with trio.move_on_at(min(look, self._due(relay))):
                    await self._over.wait()
                if trio.current_time() >= self._due(relay):
                    self._time_out(relay)
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

    def _due(self, relay: HttpRelay) -> float:
        """When whatever it waits for has taken too long. A body that moves may take its time."""
        since = relay.phase_since
        if relay.phase == "sending":
            if relay.bytes_in != self._moved[0]:
                self._moved = relay.bytes_in, trio.current_time()
            since = max(since, self._moved[1])
        return since + self._patience.get(relay.phase, math.inf)

    def _time_out(self, relay: HttpRelay) -> None:
        if relay.phase == "waiting":
            seconds = self._limits.response_timeout
            relay.give_up(f"the target did not answer within {seconds:g} s", 504)
        elif relay.phase == "sending":
            seconds = self._limits.body_stall
            relay.give_up(f"no byte of the request's body came within {seconds:g} s", 408)
        elif relay.phase == "idle":
            self._server.finish_soon()
        elif relay.phase in {"agreeing", "reading"}:
            relay.give_up(None, 0)  # h11 knows what to say

    async def _refuse(self, status: int, problem: str) -> None:
        message = f"The request could not be served: {problem}."
        await self._server.refuse(Refusal(status, REASONS_OF_STATUS[status], message))
