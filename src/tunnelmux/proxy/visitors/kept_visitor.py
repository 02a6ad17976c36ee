"""Visitors in the pump: it carries the plain requests of a connection whose host h11 has accepted.

Whether a connection may be carried is decided by the ingress and by the agent: the request was
routed by its host alone, the visitor is no trusted proxy, the session is the
pump's, and the agent has said that the service takes raw connections. Which requests are carried
the scanner of `pump.head` decides, for each; the others come back to h11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tunnelmux.http import Refusal, ServerConnection
from tunnelmux.http.connect import CONNECT_ANSWER, connect_head
from tunnelmux.http.fields import Visitor, forwarding_fields
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session
from tunnelmux.observability import get_logger
from tunnelmux.observability.lines import line_about
from tunnelmux.observability.logs import wants_info
from tunnelmux.pump.data_pump import Owner

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay
    from tunnelmux.pump.pump_socket import PumpSocket

__all__ = ["CarriedLog", "KeptVisitor", "open_carrying"]

_log = get_logger("proxy.http")

_REASONS = {400: "bad-request", 408: "body-stalled", 502: "target-broke", 504: "target-timeout"}


def open_carrying(
    session: Session,
    local: PumpSocket,
    service: str,
    owner: Owner,
    *,
    host: bytes,
    visitor: Visitor,
    limits: IngressLimits,
    early: bytes,
) -> HttpRelay | None:
    """Open a stream to the service and hand the connection to the pump, with what was read from it
    and not used; None when that cannot be had now."""
    fields = forwarding_fields([], visitor, host)
    return session.open_http_relay(
        local,
        connect_head(service),
        CONNECT_ANSWER,
        owner,
        host=host,
        fields=b"".join([b"%s: %s\r\n" % pair for pair in fields]),
        max_head_bytes=limits.max_head_bytes,
        early=early,
    )


@dataclass(frozen=True, slots=True)
class CarriedLog:
    """The log's lines about the requests that the pump carries on a connection: the pump writes
    those that are answered whole, this the one that is not."""

    visitor: str
    device: str
    service: str

    def begin(self, relay: HttpRelay) -> None:
        """Have the lines written from now on, if anybody wants them."""
        if wants_info():
            about = line_about("proxy.http", "request", **self._who(relay))
            relay.about = about.encode("ascii")

    def end(self, relay: HttpRelay) -> None:
        """Write the line of the request that the end of the relay left without a whole answer."""
        unfinished, problem = relay.unfinished, relay.problem
        if unfinished is None or (problem is None and relay.outcome in {"handed back", None}):
            return  # there is none, or somebody else goes on with it
        method, path, status, bytes_in, bytes_out, seconds = unfinished
        reason = None
        if problem is not None:
            status = relay.status
            reason = _REASONS[status]
        elif relay.outcome == "local broke":
            problem = f"the visitor broke the connection: {relay.error}"
        elif relay.outcome == "aborted":
            problem = "cut by the proxy's end"
        else:
            problem = str(relay.error)
        _log.info(
            "request",
            **self._who(relay),
            method=method,
            path=path,
            **({"status": status} if status else {}),
            **({"reason": reason} if reason else {}),
            problem=problem,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            seconds=round(seconds, 4),
        )

    def _who(self, relay: HttpRelay) -> dict[str, str | int]:
        return {
            "visitor": self.visitor,
            "device": self.device,
            "service": self.service,
            "stream": relay.stream.id,
        }


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
            relay.finish_soon()  # h11 knows what to say

    async def _refuse(self, status: int, problem: str) -> None:
        message = f"The request could not be served: {problem}."
        await self._server.refuse(Refusal(status, _REASONS[status], message))
