"""A visitor's HTTP connection as a visit: the one owner of the connection, from accept to close.

The pump carries requests with unambiguous heads; h11, in a task, serves the others one by one, and
gives the connection back with the first request that the pump can carry. No byte is lost at a
hand-over: the next part gets every byte that was received and not passed on.

| stage   | what has the connection                     | waits for, until (`visit.PATIENCE`)     |
|---------|---------------------------------------------|-----------------------------------------|
| seen    | the pump, which looks and does not read     | the same as carried                     |
| carried | a relay in the pump, to its close           | handshake, silent, the relay's phases   |
| judged  | a task, in which h11 reads and writes       | the times of `tunnelmux.http`           |
| over    | nothing: it is closed                       |                                         |

| from    | to      | when                                                                      |
|---------|---------|---------------------------------------------------------------------------|
| seen    | carried | it will be served here                                                    |
| seen    | over    | it was passed to the worker that has its device                           |
| carried | judged  | the relay hands back a request, or a part of it, or a problem to answer   |
| judged  | carried | the next request is one that the pump can carry                           |
| any     | over    | the visitor left or broke it, it was cut, its time is over                |

Only where there are other workers a connection is `seen` first.
Without a pump (in memory, on other platforms), and while the proxy drains, a connection stays
`judged`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from tunnelmux.errors import TunnelmuxError
from tunnelmux.http.connection import ServerConnection
from tunnelmux.http.refusal import Refusal
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Stream
from tunnelmux.observability import get_logger
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.visitors.by_h11 import RequestsByH11
from tunnelmux.proxy.visitors.carrier import (
    Carrier,
    PumpRoutes,
    carry,
    failure_of,
)
from tunnelmux.proxy.visitors.elsewhere import HandsOver, WayThere
from tunnelmux.proxy.visitors.inspector import RunningInspection
from tunnelmux.proxy.visitors.names import Destination
from tunnelmux.proxy.visitors.routing import IngressSettings, Router, crowd_refusal
from tunnelmux.proxy.visitors.visit import PATIENCE, Visit, VisitRegister, Wait
from tunnelmux.proxy.visitors.wrong_protocol import (
    PLAIN_HTTP_ANSWER,
    explain_handshake,
    speaks_plain_http,
)
from tunnelmux.pump.data_pump import DataPump, lend_socket, tls_stream, watch_records
from tunnelmux.relay import abort, reset_socket
from tunnelmux.transports.admission import Place
from tunnelmux.transports.tcp import python_socket

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay
    from tunnelmux.pump.passing import FirstLook
    from tunnelmux.pump.pump_socket import PumpSocket
    from tunnelmux.pump.sockets import BareSocket

__all__ = ["SLOT", "HttpVisit", "IngressParts", "Said", "host_of"]

_log = get_logger("proxy.http")

_Bytes = bytes  # Visit has a property `bytes`

Said = tuple[bytes, bytes, bytes]
"""Host, `Tunnelmux-Device` and `Tunnelmux-Service` of a request; absent ones are empty."""

SLOT = "http"
"""The name of the ingress' listener."""

_AT_REST = frozenset({"idle", "leaving", "left"})
# Phases of a relay in which no request is in progress.


@dataclass
class IngressParts:
    """The objects that all visits of one ingress share."""

    router: Router
    routes: PumpRoutes
    gate: Gate
    pump: DataPump | None = None
    """The pump that carries requests, while it runs."""
    hand_over: HandsOver | None = None
    """What passes visitors to other workers, where there are some."""
    pass_visitor: Callable[[str, int, str], bool] | None = None
    """Gives a connection to the program that follows this one, where one does."""
    is_draining: bool = False

    def way_for(
        self, said: Said, settings: IngressSettings
    ) -> WayThere | Literal["here", "unknown"]:
        """The way to the worker that should serve a connection whose first bytes say that."""
        device = self.device_of(said, settings)
        if not device or self.hand_over is None:
            return "here"
        return self.hand_over.way_to(device)

    def device_of(self, said: Said, settings: IngressSettings) -> str:
        """The device that the first bytes name, empty for none."""
        destination = self.routes.find(said, settings)
        return self.router.named(destination.device) if destination is not None else ""


class HttpVisit(Visit):
    """One connection. Until its first request it has no device, and holds a place of the admission.
    Start it with `arrive`, or with `serve` when it stays with h11.
    """

    __slots__ = (
        "_bytes_before",
        "_has_asked",
        "_is_finishing",
        "_look",
        "_nursery",
        "_offered",
        "_overdue",
        "_parts",
        "_scope",
        "_stage",
        "_wire",
        "by_h11",
        "carrier",
        "local",
        "place",
        "relay",
        "settings",
    )

    def __init__(
        self,
        visits: VisitRegister,
        remote: str,
        place: Place,
        parts: IngressParts,
        settings: IngressSettings,
    ) -> None:
        super().__init__(
            visits, "http", device="", service=None, visitor=remote, scheme=settings.scheme
        )
        address = host_of(remote)
        visitor = settings.trusted.visitor(address, settings.scheme)
        if visitor.trusted:
            self.counts_as = ""  # until a request names its client
        self.place = place
        self.settings = settings
        self.carrier = Carrier(settings, parts.routes, visitor, self, parts.gate)
        self.relay: HttpRelay | None = None
        """The relay that carries its requests, while the pump does."""
        self.by_h11: RequestsByH11 | None = None
        """Serves its requests with h11 in a task, once a request needs that."""
        self.local: BareSocket | socket.socket | None = None
        self._wire: PumpSocket | None = None  # the same socket, as the pump uses it
        self._parts = parts
        self._look: FirstLook | None = None
        self._stage: Literal["seen", "carried", "judged", "over"] = "judged"
        self._has_asked = self._is_finishing = False
        self._offered = b""  # the last head that h11 gave to the pump
        self._overdue: Refusal | None = None  # the refusal for the next request
        self._bytes_before = (0, 0)  # bytes of earlier relays and requests by h11
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        place.on_give_way = self.stop
        visits.add(self)
        if parts.is_draining:
            self._is_finishing = True

    # -- for other parts of the proxy -----------------------------------------------------------

    def admit(self, destination: Destination, named: Destination) -> Refusal | None:
        """Decide whether a request may go to this destination now; None if so. *named* is the same,
        or the group that its device was chosen from. The only place for
        this: the pump asks before it carries a request, and h11 before it serves one. The pump
        leaves a refused request to h11, which asks again and answers.
        """
        self._has_asked = True
        self.place.leave()
        if self.carrier.heeds:
            client = self.carrier.client or ""
            self._register.count_as(self, "" if client in self.settings.trusted else client)
        group = "" if named.device == destination.device else named.device
        self.go_to(destination.device, destination.service, group)
        return crowd_refusal(self, self.settings.limits)

    def inspection(self, destination: Destination, routes: PumpRoutes) -> RunningInspection | None:
        """The inspection of the service that a request goes to, if there is one."""
        inspector = self._register.inspector
        if not inspector.is_on:
            return None
        default = routes.default_service(destination.device)
        return inspector.find(destination.device, destination.service, default)

    @property
    def has_asked(self) -> bool:
        """Whether the access of a request of the connection was decided already."""
        return self._has_asked

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        if self._stage == "carried":
            return self.relay is None or self.relay.phase in _AT_REST
        return self.by_h11 is not None and self.by_h11.is_idle

    @property
    def busy_for(self) -> float:
        if self._stage == "carried" and self.relay is not None:
            unfinished = self.relay.unfinished
            return unfinished[-1] if unfinished is not None else 0.0
        if self._stage == "judged" and self.by_h11 is not None and not self.by_h11.is_idle:
            return trio.current_time() - self.by_h11.busy_since
        return 0.0

    @property
    def asked_by(self) -> str:
        client = self.carrier.client if self._stage != "over" else None
        return client or self.visitor

    @property
    def stream_now(self) -> int | None:
        if self._stage == "carried" and self.relay is not None:
            return self.relay.stream_id
        return self.by_h11.stream_now if self.by_h11 is not None else None

    @property
    def state(self) -> Wait:
        if self._stage == "carried" and self.relay is not None and self._wire is not None:
            phase = self.relay.phase
            if phase == "left":
                return "leaving"
            if phase != "leaving" and not self._wire.handshake_done:
                return "handshake"
            return "silent" if phase == "idle" and not self._has_asked else phase
        if self._stage == "seen":
            return "silent" if self.settings.tls is None else "handshake"
        return self.waits_for

    @property
    def bytes(self) -> tuple[int, int]:
        bytes_in, bytes_out = self._bytes_before
        if self.relay is not None:
            bytes_in, bytes_out = bytes_in + self.relay.bytes_in, bytes_out + self.relay.bytes_out
        return bytes_in, bytes_out

    def count_more(self, bytes_in: int, bytes_out: int) -> None:
        """Add the bytes of a part that has ended."""
        self._bytes_before = self._bytes_before[0] + bytes_in, self._bytes_before[1] + bytes_out

    def finish_soon(self) -> None:
        """End after the current request; now, when there is none."""
        self._is_finishing = True
        if self._stage == "seen":
            self._serve_seen()
        if self._stage == "carried" and self.relay is not None:
            self.relay.finish_soon()
        elif self._stage == "judged" and self.by_h11 is not None:
            self.by_h11.server.finish_soon()

    def stop(self) -> None:
        """End now: an answer in progress must not look complete."""
        if self._stage == "judged":
            self._scope.cancel()  # this resets the connection
            return
        if self._stage == "over":
            return
        if self._look is not None:
            self._look.stop()
        if self.relay is not None:
            may_read_on = self.state in ("silent", "leaving")
            self.relay.abort()
            self.carrier.log_end(self.relay)
            if not may_read_on:
                self._reset()
        self._close()

    def leave_pump(self) -> None:
        """Cut the connection, because the pump stops."""
        if self._stage != "judged":
            self.stop()

    # -- in the pump ------------------------------------------------------------------------------

    def arrive(self, nursery: trio.Nursery, local: BareSocket) -> None:
        """Serve a connection that was just accepted, including its TLS handshake. `nursery` owns
        the tasks for requests that need one."""
        self._nursery, self.local = nursery, local
        self._carry(_accepted(local, self.settings.tls), b"")

    def arrive_to_be_passed(
        self, nursery: trio.Nursery, local: BareSocket, look: FirstLook
    ) -> None:
        """The same when another worker may have the visitor's device, which the first look could
        not tell: that worker gets the connection, and nothing is read from it here."""
        self._nursery, self.local = nursery, local
        self._stage, self._look = "seen", look
        look.wait(self)
        self._watch_time()
        if look.is_over:
            nursery.start_soon(self._find_way, self._parts.device_of(look.said, self.settings))

    def _after_look(self, look: FirstLook) -> None:
        way = self._parts.way_for(look.said, self.settings)
        if way == "unknown" and self._nursery is not None:
            device = self._parts.device_of(look.said, self.settings)
            self._nursery.start_soon(self._find_way, device)
        else:
            self._go_or_stay(way)

    async def _find_way(self, device: str) -> None:
        assert self._parts.hand_over is not None
        await self._parts.hand_over.find_way(device)
        if self._stage == "seen":  # its time may be over, or it was cut
            self._go_or_stay(self._parts.hand_over.way_to(device))

    def _go_or_stay(self, way: WayThere | Literal["here", "unknown"]) -> None:
        if isinstance(way, str):
            self._serve_seen()
            return
        assert self._look is not None
        self._look.stop()  # before it is passed: epoll would watch it there
        if not self._passes(way):
            self._look = None
            self._carry(_accepted(self._bare, self.settings.tls), b"")

    @property
    def _bare(self) -> BareSocket:
        """The connection as it was accepted: no task has had it yet."""
        assert self.local is not None
        assert not isinstance(self.local, socket.socket)
        return self.local

    def _passes(self, way: WayThere) -> bool:
        """Pass the connection on. True if another worker has it now."""
        if not way.pass_on(SLOT, self._bare, self.visitor):
            return False
        self.end()
        return True

    def _serve_seen(self) -> None:
        """Serve the connection here, after the first look at it."""
        look, self._look = self._look, None
        self._carry(_accepted(self._bare, self.settings.tls), b"", instead_of=look)

    def _carry(self, wire: PumpSocket, early: _Bytes, instead_of: FirstLook | None = None) -> None:
        """Let the pump carry requests from now on; the bytes *early* were read already."""
        assert self._parts.pump is not None
        self._stage = "carried"
        self._wire = wire
        self.relay = carry(
            self._parts.pump, wire, self, self.carrier, self.settings, early, instead_of
        )
        self._watch_time()

    def on_news(self) -> None:
        """Called by the pump when enough was seen, when the relay is over, and when the visitor has
        left."""
        if self._stage == "seen" and self._look is not None:
            self._after_look(self._look)
        elif self._stage == "carried" and self.relay is not None:
            phase = self.relay.phase
            if phase == "left":
                self._close()
            elif phase != "leaving" and self.relay.outcome:
                self._after_relay(self.relay)

    def _after_relay(self, relay: HttpRelay) -> None:
        assert self._wire is not None
        if not self._wire.handshake_done:
            self._end_handshake(relay.error)
        elif relay.outcome != "handed back":
            if not isinstance(relay.error, TunnelmuxError | OSError | None):
                effect = "this request is cut, the others go on"
                _log.error("unhandled error in the pump", effect=effect, exc_info=relay.error)
            self.carrier.log_end(relay)
            if relay.outcome != "local broke" or relay.phase != "idle":
                self._reset()
            self._close()
        elif self._is_finishing and relay.phase == "idle":
            if self._parts.pass_visitor is None or self.settings.tls is not None:
                self._leave()
            else:
                self._go_to(self._parts.pass_visitor)
        elif relay.problem is None and relay.is_spent:
            self._close()
        else:
            self._judge_soon(relay)

    def _go_to(self, pass_visitor: Callable[[str, int, str], bool]) -> None:
        """Have the next program go on: of the next request nothing was read here."""
        assert self.local is not None
        if (bound := self._drop_relay()) is not None:
            bound[1].reset()
        self.end()
        pass_visitor(SLOT, self.local.detach(), self.visitor)

    def _end_handshake(self, error: BaseException | None) -> None:
        """Tell the visitor that the TLS handshake failed: by an HTTP answer if it speaks plain
        HTTP, else by the TLS alert."""
        assert self._wire is not None
        problem = explain_handshake(error)
        if not isinstance(error, ssl.SSLError):
            self.figures.tls_failures += 1
            self._lose(problem)
            return
        self._note_failed_handshake(problem)
        tls = self._wire.release()
        alert = tls[2].read() if tls is not None else b""
        told = PLAIN_HTTP_ANSWER if speaks_plain_http(error) else alert
        self._wire.send_bare(told)  # the first bytes of a connection: they fit, or it is over
        self._leave()

    def _note_failed_handshake(self, problem: str) -> None:
        self.figures.tls_failures += 1
        self._note_lost(problem)

    def _note_lost(self, problem: str) -> None:
        if self.lines.lost.may_write(self.source):
            _log.info("visitor lost", visitor=self.visitor, problem=problem)

    def _leave(self) -> None:
        """Close so that the visitor can read everything that was sent (RFC 9112 section 9.6)."""
        assert self.relay is not None
        if self._parts.pump is None:
            self._close()
        else:
            self.relay.leave()
            self._watch_time()

    # -- deadlines ---------------------------------------------------------------------------

    def _watch_time(self) -> None:
        # The relay changes what it waits for without a notice. Its next wait begins after this
        # check and may last at least `least_patience`: a check by then, or at the end of the
        # present wait, is never late.
        self.until = min(self._due(), trio.current_time() + self.settings.least_patience)
        self._register.watch(self)

    def _due(self) -> float:
        """The deadline of the present wait."""
        state = self.state
        if state in ("handshake", "silent") or self.relay is None:
            since = self.began
        else:
            since = self.relay.phase_since
        return since + PATIENCE[state](self.settings.limits)

    def late(self) -> None:
        if self._stage == "seen" and trio.current_time() >= self._due():
            self._serve_seen()
        if self._stage == "seen":
            self._watch_time()
            return
        if self._stage != "carried":
            return
        if trio.current_time() < self._due():
            self._watch_time()
        else:
            self._time_out()

    def _time_out(self) -> None:
        state, relay, limits = self.state, self.relay, self.settings.limits
        if relay is None:
            self._close()
        elif state == "leaving":
            relay.abort()
            self._close()
        elif state == "handshake":
            relay.abort()
            self._lose(f"no TLS handshake within {limits.handshake_timeout:g} s")
        elif state in ("silent", "idle"):
            self.finish_soon()
        elif state == "waiting":
            seconds = limits.response_timeout
            relay.give_up(f"the target did not answer within {seconds:g} s", 504)
        elif state == "sending":
            seconds = limits.body_stall
            relay.give_up(f"no byte of the request's body came within {seconds:g} s", 408)
        else:
            if state == "agreeing":
                message = f"The target took no connection within {limits.connect_timeout:g} s."
                self._overdue = Refusal(504, "target-timeout", message)
            relay.give_up(None, 0)  # the answer depends on the part of the request that came

    # -- in a task --------------------------------------------------------------------------------

    def _judge_soon(self, relay: HttpRelay) -> None:
        assert self._nursery is not None
        self.carrier.log_end(relay)
        began = relay.phase_since if relay.phase == "reading" else trio.current_time()
        pending, tried = relay.take_pending()
        begun = failure_of(relay, tried)
        if begun is not None and relay.status >= 500:
            self._parts.router.groups.failed(self.device, self.service)
        # A request that the pump has tried is not given to it again.
        insists = self.carrier.has_tried(relay) or bool(
            self._offered and pending.startswith(self._offered)
        )
        bound = self._drop_relay()
        self._stage = "judged"
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._judge, (pending, began), insists, begun, bound)

    async def _judge(
        self,
        came: tuple[_Bytes, float],
        insists: bool,
        begun: tuple[Refusal, _Bytes] | None,
        bound: tuple[object, Stream] | None,
    ) -> None:
        """Serve requests with h11 until the pump can go on. *early* are bytes of the next request.
        With `insists`, h11 serves that one in any case. `begun` is the refusal for the request in
        progress, and the value of its field Accept.
        """
        goes_on = False
        overdue, self._overdue = self._overdue, None
        try:
            with self._scope as scope:
                requests = await self._come_to_h11()
                if bound is not None:
                    requests.raw.hold(*bound)
                requests.server.put_back_request(*came)
                if begun is not None:
                    refusal, accept = begun
                    await requests.server.refuse(await requests.explained(refusal), accept=accept)
                else:
                    goes_on = await requests.serve(insists=insists, overdue=overdue)
            if scope.cancelled_caught:
                self._reset()
        except Exception:  # noqa: BLE001  a bug in one connection is no reason to drop the others
            _log.exception("unhandled error in connection", visitor=self.visitor)
        finally:
            if not goes_on:
                try:
                    if self.by_h11 is not None:
                        await self.by_h11.drop_kept()
                finally:
                    self._close()
        if goes_on and self.by_h11 is not None:
            server = self.by_h11.server
            self._offered, early = server.take_request()
            self._carry(self._wire_of(server), self._offered + early)

    async def _come_to_h11(self) -> RequestsByH11:
        """Serve requests with h11 on the connection that the pump had."""
        assert self.local is not None
        assert self._wire is not None
        tls = self._wire.release()
        if self.by_h11 is not None:
            return self.by_h11
        if not isinstance(self.local, socket.socket):
            self.local = python_socket(self.local)
        below = trio.SocketStream(trio.socket.from_stdlib_socket(self.local))
        requests = self._begin_by_h11(below if tls is None else await tls_stream(below, tls))
        requests.server.is_new = not self._has_asked
        return requests

    def _begin_by_h11(self, stream: trio.abc.Stream) -> RequestsByH11:
        server = ServerConnection(stream, self.settings.limits)
        parts = self._parts
        self.by_h11 = RequestsByH11(self, server, parts.router, parts.routes, parts.gate)
        if self._is_finishing:
            server.finish_soon()
        return self.by_h11

    def _wire_of(self, server: ServerConnection) -> PumpSocket:
        from tunnelmux.pump.pump_socket import PumpSocket

        lent = lend_socket(server.stream)
        assert lent is not None  # it came from the pump
        return PumpSocket(self.local, lent.tls)

    @property
    def may_be_carried(self) -> bool:
        """Whether the pump could take the connection, apart from the next request."""
        return self._nursery is not None and self._parts.pump is not None and not self._is_finishing

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve the connection with h11 until it is over, and close it."""
        below, limits = stream, self.settings.limits
        with self:
            with self._scope as scope:
                if self.settings.tls is not None:
                    stream = trio.SSLStream(
                        below, self.settings.tls, server_side=True, https_compatible=True
                    )
                    watch_records(stream)
                    problem = await _shake_hands(stream, self.place, limits)
                    if problem is not None:
                        self._note_failed_handshake(problem)
                        await abort(stream)
                        return
                requests = self._begin_by_h11(stream)
                try:
                    await requests.serve()
                finally:
                    await requests.drop_kept()
            if scope.cancelled_caught:
                await abort(stream)

    # -- the end ----------------------------------------------------------------------------------

    def _drop_relay(self) -> tuple[object, Stream] | None:
        """Drop a relay that has ended. Returns the stream that a login belongs to, if it left
        one.
        """
        relay, self.relay = self.relay, None  # breaks a reference cycle
        if relay is None:
            return None
        self.count_more(relay.bytes_in, relay.bytes_out)
        stream = self.carrier.take_bound(relay)
        return None if stream is None else (relay.destination, stream)

    def _lose(self, problem: str) -> None:
        self._note_lost(problem)
        self._reset()
        self._close()

    def _reset(self) -> None:
        assert self.local is not None
        if isinstance(self.local, socket.socket):
            reset_socket(self.local)
        else:
            self.local.reset()

    def _close(self) -> None:
        """Close the connection."""
        assert self.local is not None
        if (bound := self._drop_relay()) is not None:
            bound[1].reset()
        self.end()
        self.local.close()

    def end(self) -> None:
        if self._stage != "over":
            self._stage = "over"
            self._look = None
            self.place.leave()
            super().end()
            self.by_h11 = None
            del self.carrier  # breaks reference cycles


async def _shake_hands(
    stream: trio.SSLStream[trio.abc.Stream], place: Place, limits: IngressLimits
) -> str | None:
    """Do the TLS handshake. Returns why it failed, as a text, or None."""
    below = stream.transport_stream
    with trio.move_on_after(limits.handshake_timeout):
        if isinstance(below, trio.SocketStream) and not await place.hear(
            below, limits.first_byte_timeout
        ):
            return f"it sent nothing within {limits.first_byte_timeout:g} s"
        place.has_spoken()
        try:
            await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            if speaks_plain_http(exc.__cause__):
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await below.send_all(PLAIN_HTTP_ANSWER)
            return explain_handshake(exc.__cause__ or exc)
        return None
    return f"no TLS handshake within {limits.handshake_timeout:g} s"


def _accepted(local: BareSocket, tls: ssl.SSLContext | None) -> PumpSocket:
    from tunnelmux.pump.pump_socket import PumpSocket

    if tls is None:
        return PumpSocket(local)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return PumpSocket(
        local, (tls.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
    )


def host_of(remote: str) -> str:
    """The address in `host:port`, without the brackets of IPv6."""
    return remote.rpartition(":")[0].strip("[]")
