"""Visitors with a browser who need no task: accepted, carried by the pump, and said goodbye to.

Only the plain case: heads that leave no doubt and say of where they go what h11 has
accepted before, on whichever connection. The followers take nothing that h11 would not take with
the same meaning, so h11 is not asked again. All else goes to a task, which finds every byte that
came and was not passed on.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, NoReturn

import trio

from tunnelmux.http.connection import DRAIN_BYTES, DRAIN_TIMEOUT
from tunnelmux.http.fields import Visitor
from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.carrier import Carrier, PumpRoutes, carry
from tunnelmux.proxy.visitors.http_visit import HttpVisit
from tunnelmux.proxy.visitors.kept_visitor import RelayTimes
from tunnelmux.proxy.visitors.routing import IngressSettings
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.relay import reset_socket
from tunnelmux.relay.timeouts import Timeouts

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay
    from tunnelmux.pump.pump_socket import PumpSocket
    from tunnelmux.pump.sockets import SocketWatch

__all__ = ["DirectVisitor", "DirectVisitors"]

_log = get_logger("proxy.http")

_READ = 16_384
# Bytes asked for at once of what is thrown away at the end.

_LOOK = 5.0
# Seconds after which a visitor that is still there is looked at, and again: phases of requests and
# answers change without a word, so by as much their times may be late.


class DirectVisitors:
    """All visitors of one ingress that have no task."""

    def __init__(
        self, routes: PumpRoutes, go_on: Callable[[DirectVisitor, bytes], Awaitable[None]]
    ) -> None:
        self.routes = routes
        self.go_on = go_on
        """Serves, in a task, a visitor that is no more in here, of whom these bytes were read."""
        self.pump: DataPump | None = None
        self._looks = Timeouts(self._look)

    def take(
        self,
        nursery: trio.Nursery,
        local: socket.socket,
        visit: HttpVisit,
        visitor: Visitor,
        settings: IngressSettings,
    ) -> None:
        """Serve this visitor, in the pump that is there; under TLS, make the handshake as well."""
        DirectVisitor(self, nursery, local, visit, visitor, settings).arrive()

    def look_after(self, visitor: DirectVisitor) -> None:
        """Call its `on_look` in a while."""
        self._looks.set(visitor, trio.current_time() + visitor.patience)

    def remove(self, visitor: DirectVisitor) -> None:
        """It is over, or has a task."""
        self._looks.clear(visitor)

    async def run(self, pump: DataPump) -> NoReturn:
        """Have visitors taken into this pump, until cancelled; then those who are there are cut."""
        self.pump = pump
        try:
            await self._looks.run()
        finally:
            self.pump = None
            for visitor in self._looks:
                visitor.cut()

    def _look(self, visitor: DirectVisitor) -> None:
        try:
            visitor.on_look()
        except Exception:  # noqa: BLE001  a bug met by one connection must not end the others
            _log.exception("unhandled error in connection", visitor=visitor.visit.visitor)
            visitor.cut()


class DirectVisitor:
    """One visitor. Its socket is in the pump: watched, or carried by a relay."""

    __slots__ = (
        "_all",
        "_dropped",
        "_nursery",
        "_says_goodbye",
        "_since",
        "_state",
        "_times",
        "_watch",
        "carrier",
        "local",
        "patience",
        "relay",
        "settings",
        "visit",
        "wire",
    )

    def __init__(
        self,
        everybody: DirectVisitors,
        nursery: trio.Nursery,
        local: socket.socket,
        visit: HttpVisit,
        visitor: Visitor,
        settings: IngressSettings,
    ) -> None:
        self.local = local
        self.visit = visit
        self.wire = _wire(local, settings.tls)
        """The same socket as the pump uses it."""
        self.relay: HttpRelay | None = None
        self._times = RelayTimes(settings.limits)
        self.patience = min(self._times.look, _LOOK)
        if settings.tls is not None:
            self.patience = min(self.patience, settings.limits.handshake_timeout)
        """Seconds until it is looked at."""
        self._all = everybody
        self._nursery = nursery
        self.settings = settings
        self.carrier = Carrier(settings, everybody.routes, visitor, visit)
        self._watch: SocketWatch | None = None
        self._state: Literal["carried", "leaving", "over"] = "carried"
        self._since = trio.current_time()
        self._dropped = 0
        self._says_goodbye = False
        visit.connection = self
        visit.place.on_give_way = self.cut

    def arrive(self) -> None:
        """Take the first request, or wait for it."""
        assert self._all.pump is not None
        self._all.look_after(self)
        self.relay = carry(self._all.pump, self.wire, self, self.carrier, self.settings, b"")
        self.visit.count = self._bytes

    def _bytes(self) -> tuple[int, int]:
        return (self.relay.bytes_in, self.relay.bytes_out) if self.relay is not None else (0, 0)

    def on_news(self) -> None:
        """Called by the pump when there is something to read, or the relay is over."""
        if self._watch is not None and self._watch.error is not None:
            self.cut()  # the pump was stopped
        elif self._state == "leaving":
            self._drop_one()
        elif self._state == "carried" and self.relay is not None and self.relay.outcome:
            self._after_relay(self.relay)

    def on_look(self) -> None:
        """Called when some time has passed."""
        waited = trio.current_time() - self._since
        relay = self.relay
        if self._state == "carried" and relay is not None:
            is_silent = relay.requests == 0 and relay.phase == "idle"
            limit = self.settings.limits.handshake_timeout
            if not self.wire.is_shaken and waited < limit:
                self._all.look_after(self)
            elif not self.wire.is_shaken:
                relay.abort()
                self._lose(f"no TLS handshake within {limit:g} s")
            elif is_silent and waited < self.settings.limits.head_timeout:
                self._all.look_after(self)
            elif is_silent:
                self.finish_soon()
            elif trio.current_time() < self._times.due(relay):
                self._all.look_after(self)
            elif not self._times.time_out(relay):
                self.finish_soon()
        elif self._state == "leaving" and waited >= DRAIN_TIMEOUT:
            self._end()
        else:
            self._all.look_after(self)

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self._state != "carried" or self.relay is None or self.relay.phase == "idle"

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of it, not even the socket."""
        return self.local.fileno() < 0

    def finish_soon(self) -> None:
        """End after the current request; now, when there is none."""
        if self._state == "carried" and self.relay is not None:
            self._says_goodbye = True
            self.relay.finish_soon()

    def cut(self) -> None:
        """End now: an answer that is being sent must not look like a whole one."""
        if self._state == "carried" and self.relay is not None:
            is_silent = self.relay.requests == 0 and self.relay.phase == "idle"
            self.relay.abort()
            self.carrier.log_end(self.relay)
            if not is_silent:
                reset_socket(self.local)
        self._end()

    def _lose(self, problem: str) -> None:
        _log.info("visitor lost", visitor=self.visit.visitor, problem=problem)
        self._stop_watching()
        self.wire.reset()
        self._end()

    def _wait(self) -> None:
        from tunnelmux.pump.sockets import SocketWatch

        if self._all.pump is None:
            self._end()
        else:
            self._watch = SocketWatch(self._all.pump.core, self.wire, self)

    def _after_relay(self, relay: HttpRelay) -> None:
        if not self.wire.is_shaken:
            self._lose(f"the TLS handshake failed: {relay.error or 'the visitor left'}")
            return
        if self._says_goodbye and relay.outcome == "handed back" and relay.phase == "idle":
            self._leave()
            return
        if relay.outcome == "handed back" and (relay.problem is not None or not relay.is_spent):
            self._go_on(b"")
            return
        self.carrier.log_end(relay)
        if relay.outcome == "handed back":
            self._end()
        elif relay.outcome == "finished":
            self._leave()
        elif relay.outcome == "local broke" and relay.phase == "idle":
            self._end()
        else:
            reset_socket(self.local)
            self._end()

    def _leave(self) -> None:
        """Close so that the visitor can read all that was sent to it (RFC 9112 9.6)."""
        self._stop_watching()
        self._state = "leaving"
        self._since = trio.current_time()
        self._all.look_after(self)
        self.wire.half_close()
        self._wait()

    def _drop_one(self) -> None:
        """Throw away what it still sends: no more in one go than leaves the others their turn."""
        try:
            data = self.local.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            data = b""
        self._dropped += len(data)
        if data and self._dropped < DRAIN_BYTES:
            self._wait()
        else:
            self._end()

    def _go_on(self, data: bytes) -> None:
        self._stop_watching()
        self._all.remove(self)
        self._state = "over"
        self._nursery.start_soon(self._all.go_on, self, data)

    def _end(self) -> None:
        if self.relay is not None and (bound := self.carrier.take_bound(self.relay)) is not None:
            bound.reset()
        self._stop_watching()
        self._all.remove(self)
        self._state = "over"
        self.relay = None  # which knows its owner
        self.visit.end()
        self.local.close()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def _wire(local: socket.socket, tls: ssl.SSLContext | None) -> PumpSocket:
    from tunnelmux.pump.pump_socket import PumpSocket

    if tls is None:
        return PumpSocket(local)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return PumpSocket(
        local, (tls.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    )
