"""Where visitors with a browser come in: each request goes to the device its own head names."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import trio

from tunnelmux.config.proxy import HttpIngress
from tunnelmux.http import (
    Exchange,
    KeptUpstream,
    RequestHead,
    ServerConnection,
    Upstream,
    serve_requests,
)
from tunnelmux.http.fields import (
    TrustedProxies,
    end_to_end,
    forwarding_fields,
    own_cookies,
    without_own_fields,
)
from tunnelmux.http.head import Field, field_values, first_value
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Stream
from tunnelmux.observability import get_logger
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.carrier import Carrier, PumpRoutes, carry
from tunnelmux.proxy.visitors.direct_visitor import DirectVisitor, DirectVisitors
from tunnelmux.proxy.visitors.http_visit import HttpVisit, ServedInTask
from tunnelmux.proxy.visitors.kept_visitor import KeptVisitor
from tunnelmux.proxy.visitors.names import Destination
from tunnelmux.proxy.visitors.routing import (
    IngressSettings,
    Router,
    find_destination,
    is_name,
    stream_id,
)
from tunnelmux.proxy.visitors.visit import PATIENCE, VisitRegister
from tunnelmux.pump.data_pump import DataPump, Lent, lend_socket, tls_stream
from tunnelmux.pump.head import read_request
from tunnelmux.relay import abort, reset_socket
from tunnelmux.sessions import DeviceStore
from tunnelmux.transports.admission import Admission, source_of
from tunnelmux.wire import DEVICE_FIELD, RELAY_FIELD, SERVICE_FIELD

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay
    from tunnelmux.pump.pump_socket import PumpSocket

__all__ = ["HttpIngressServer", "host_of"]

_log = get_logger("proxy.http")

_GRACE = 1.0
# Seconds for which a connection may be silent before its address' share matters: hundreds that
# come at once from one address, with their requests, are no attack.

_IDLE_INTERVAL = 1.0
# Seconds between two looks at all visitors for those that are idle, so that looking costs little
# however many come.

_REFUSING_AT_ONCE = 64
# Visitors over the limit that are being told so; the ones over this are reset, so that telling
# them does not become what fills the memory.

_REFUSAL_TIMEOUT = 1.0
# Seconds one of them gets to read it.


class HttpIngressServer:
    """Serves the connections of visitors. `configure` it before the first."""

    def __init__(
        self, store: DeviceStore, devices: DeviceRegister, visits: VisitRegister | None = None
    ) -> None:
        self.visits = visits if visits is not None else VisitRegister()
        self.admission = Admission("ingress.http", grace=_GRACE)
        """The places of connections that have not sent the head of a request yet."""
        self._router = Router(store, devices)
        self._settings = IngressSettings()
        self._routes = PumpRoutes(self._router)
        self._direct = DirectVisitors(self._routes, self._go_on)
        self._refusing = 0
        self._looked_for_idle = float("-inf")
        self._is_draining = False

    def configure(
        self, ingress: HttpIngress, limits: IngressLimits, tls: ssl.SSLContext | None = None
    ) -> None:
        """Serve connections that come from now on like this."""
        trusted = TrustedProxies.parse(ingress.trusted_proxies, ingress.trusted_fields)
        self._routes.limits = limits
        self._settings = IngressSettings(
            ingress.domain, trusted, limits, tls, parent_cookies=ingress.parent_cookies
        )
        self._router.reserved_streams = limits.reserved_streams
        self.admission.configure(
            limit=limits.max_visitors,
            per_address=limits.max_arrivals_per_address,
            exempt=trusted,
        )

    @property
    def visitor_count(self) -> int:
        """Connections of visitors that are being served."""
        return self.visits.of_way("http")

    async def run_direct(self, pump: DataPump) -> NoReturn:
        """Let `take` give connections to this pump, until cancelled; then those it has are cut."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._routes.tidy)
            await self._direct.run(pump)

    def drain(self) -> None:
        """Close idle connections now and the others after their current request."""
        self._is_draining = True
        for visit in self.visits:
            visit.finish_soon()
        self._routes.drain()

    def take(self, nursery: trio.Nursery, local: socket.socket, remote: str) -> bool:
        """Serve one visitor without a task, as long as that is possible; whether it is now.

        `nursery` is for visitors who turn out to need one.
        """
        settings = self._settings
        if self._is_draining or self._direct.pump is None or not self._has_room(remote):
            return False
        visit = self._admit(remote)
        if visit is None:
            reset_socket(local)
            return True
        visitor = settings.trusted.visitor(host_of(remote), settings.scheme)
        self._direct.take(nursery, local, visit, visitor, settings)
        return True

    def _has_room(self, remote: str) -> bool:
        """Whether one more visitor can be let in, a silent or an idle one giving way where that is
        needed."""
        limits = self._settings.limits
        if host_of(remote) not in self._settings.trusted:
            most = limits.max_visitors_per_address
            if self.visits.of_address("http", remote) >= most:
                return self._end_idle(source_of(remote))
        if self.visitor_count < limits.max_visitors or self.admission.make_room():
            return True
        return self._end_idle()

    def _end_idle(self, address: str | None = None) -> bool:
        """End half of the idle connections of this address, by default of that which has most of
        them; whether there were any."""
        now = trio.current_time()
        if now < self._looked_for_idle + _IDLE_INTERVAL:
            return False
        self._looked_for_idle = now
        idle = self.visits.idle_of("http", address)
        if not idle:
            return False
        for visit in idle[: (len(idle) + 1) // 2]:
            visit.stop()
        _log.warning("idle visitors gave way", address=idle[0].source, count=(len(idle) + 1) // 2)
        return True

    def _admit(self, remote: str) -> HttpVisit | None:
        """A visit for the connection; None when its address has no place for one more."""
        place = self.admission.enter(remote)
        if place is None:
            return None
        settings = self._settings
        is_exempt = host_of(remote) in settings.trusted
        return HttpVisit(self.visits, remote, place, scheme=settings.scheme, is_exempt=is_exempt)

    async def handle(self, stream: trio.abc.Stream, remote: str) -> None:
        """Serve one visitor until its connection is over, and close it.

        `remote` is the visitor's address as `host:port`.
        """
        settings = self._settings
        if not self._has_room(remote):
            await self._turn_away(stream, remote, settings)
            return
        visit = self._admit(remote)
        if visit is None:
            await abort(stream)
            return
        served: trio.abc.Stream = stream
        if settings.tls is not None:
            served = trio.SSLStream(stream, settings.tls, server_side=True, https_compatible=True)
        server = ServerConnection(served, settings.limits)
        with visit:
            await self._serve(server, visit, settings, shakes_hands=settings.tls is not None)

    async def _serve(
        self,
        server: ServerConnection,
        visit: HttpVisit,
        settings: IngressSettings,
        *,
        shakes_hands: bool = False,
        arrived: DirectVisitor | None = None,
    ) -> None:
        if self._is_draining:
            server.finish_soon()
        task = ServedInTask(server.finish_soon)
        visit.connection = task
        visit.place.on_give_way = task.cut
        with task.scope:
            if shakes_hands and not await _shake_hands(server.stream, visit, settings.limits):
                return
            pump = self._direct.pump
            connection = _Connection(self._router, settings, visit, task, self._routes, pump)
            connection.local = lend_socket(server.stream)
            begun = None
            if arrived is not None and arrived.relay is not None:
                begun = partial(connection.go_on, server, arrived.relay, arrived.carrier)
                if self._is_draining:
                    arrived.relay.finish_soon()
            try:
                await serve_requests(
                    server,
                    connection.route,
                    settings.limits,
                    connection.record,
                    carry=connection.carry,
                    begun=begun,
                )
            finally:
                await connection.kept.drop()
                await connection.raw.drop()
        if task.scope.cancelled_caught:
            await server.abort()

    async def _go_on(self, arrived: DirectVisitor, data: bytes) -> None:
        """Serve a visitor that needs a task now, from where the pump stopped. *data* was read."""
        if arrived.is_gone:  # it was cut while it waited for this task
            return
        below = trio.SocketStream(trio.socket.from_stdlib_socket(arrived.local))
        try:
            with arrived.visit as visit:
                tls = arrived.wire.release()
                stream = below if tls is None else await tls_stream(below, tls)
                server = ServerConnection(stream, arrived.settings.limits)
                server.put_back(data)
                await self._serve(server, visit, arrived.settings, arrived=arrived)
        except Exception:  # noqa: BLE001  a bug in one connection is no reason to drop the others
            _log.exception("unhandled error in connection", visitor=arrived.visit.visitor)
        finally:
            await trio.aclose_forcefully(below)

    async def _turn_away(
        self, stream: trio.abc.Stream, remote: str, settings: IngressSettings
    ) -> None:
        limit = settings.limits.max_visitors
        _log.warning("visitor refused", visitor=remote, reason="too-many-visitors", limit=limit)
        if settings.tls is not None or self._refusing >= _REFUSING_AT_ONCE:
            await abort(stream)
            return
        self._refusing += 1
        try:
            with trio.move_on_after(_REFUSAL_TIMEOUT):
                server = ServerConnection(stream, settings.limits)
                message = f"More than {limit} visitors are connected. Try again in a moment."
                refusal = Refusal(503, "too-many-visitors", message, retry_after=1)
                await server.refuse(refusal)
        finally:
            self._refusing -= 1


async def _shake_hands(stream: trio.abc.Stream, visit: HttpVisit, limits: IngressLimits) -> bool:
    """Whether TLS was agreed on; if not, the connection is cut and a line says why."""
    assert isinstance(stream, trio.SSLStream)
    below = stream.transport_stream
    problem = f"no TLS handshake within {limits.handshake_timeout:g} s"
    with trio.move_on_after(limits.handshake_timeout):
        if isinstance(below, trio.SocketStream) and not await visit.place.hear(
            below, limits.first_byte_timeout
        ):
            problem = f"it said nothing within {limits.first_byte_timeout:g} s"
        else:
            visit.place.has_spoken()
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                problem = f"the TLS handshake failed: {exc.__cause__ or exc}"
            else:
                return True
    _log.info("visitor lost", visitor=visit.visitor, problem=problem)
    await abort(stream)
    return False


class _Connection:
    """One visitor's connection in a task: routes its requests and writes the access log."""

    def __init__(
        self,
        router: Router,
        settings: IngressSettings,
        visit: HttpVisit,
        task: ServedInTask,
        routes: PumpRoutes,
        pump: DataPump | None,
    ) -> None:
        self._router = router
        self._routes = routes
        self._pump = pump
        self.settings = settings
        self._visit = visit
        self._task = task
        self._visitor = settings.trusted.visitor(host_of(visit.visitor), settings.scheme)
        self._destination: Destination | None = None
        self._stream: trio.abc.Stream | None = None
        self.local: Lent | None = None
        """The visitor's connection, if a pump could carry it."""
        self.kept = KeptUpstream()
        """The stream that a login of the visitor belongs to."""
        self.raw = KeptUpstream()
        """The same for one that was made in the pump: it leads straight to the target."""
        self._raw_name: object = None
        self._upstream: Upstream | None = None

    async def route(self, request: RequestHead) -> Upstream:
        """A stream to the device that this request names; raises Refused."""
        limits = self.settings.limits
        self._task.is_idle = False
        self._destination = destination = self._find(request)
        self._visit.ask(destination.device, destination.service)
        headers = without_own_fields(end_to_end(request.headers))
        headers = forwarding_fields(headers, self._visitor, request.host)
        found = self._routes.now(destination)
        self._raw_name = found.destination if found is not None else None
        raw = await self.raw.take(self._raw_name) if self.raw.is_kept(self._raw_name) else None
        if raw is not None:
            self._stream = raw
            self._upstream = Upstream(
                stream=raw,
                headers=headers,
                describe=f"the target of {destination}",
                response_timeout=limits.response_timeout + limits.connect_timeout,
                response_headers=lambda fields: self._answer_fields(
                    request, without_own_fields(fields)
                ),
                keeps=True,
            )
            return self._upstream
        self._raw_name = None
        keeps = self.kept.wanted(request, destination)
        self._stream = await self.kept.take(destination)
        if self._stream is None:
            self._stream = await self._router.open_stream(destination.device, limits, self._visit)
            self._visit.on_cut = None  # it is cut with the whole connection
        if destination.service is not None:
            headers.append((SERVICE_FIELD, destination.service.encode("ascii")))
        if isinstance(self._stream, Stream) and self._stream.session.tunnel is not None:
            headers.append((RELAY_FIELD, b"?"))
        self._upstream = Upstream(
            stream=self._stream,
            headers=headers,
            describe=f"device {destination.device}",
            response_timeout=PATIENCE["answer"](limits),
            broken_reason="tunnel-lost",
            response_headers=partial(self._answer_fields, request),
            keeps=keeps,
        )
        return self._upstream

    def _find(self, request: RequestHead) -> Destination:
        """Where the request's own head sends it; raises Refused. The pump knows it from now on."""
        destination = find_destination(request, self.settings.domain, self._router.is_tenant)
        device = first_value(request.headers, DEVICE_FIELD.lower()) or b""
        service = first_value(request.headers, SERVICE_FIELD.lower()) or b""
        self.settings.names.learn((request.host, device, service), destination)
        return destination

    def _answer_fields(self, request: RequestHead, headers: list[Field]) -> list[Field]:
        headers = self._take_relay_field(headers)
        if self.settings.parent_cookies:
            return headers
        hosts = [request.host]
        if self._visitor.trusted:  # it may know the host by another name than the browser does
            hosts += field_values(request.headers, b"x-forwarded-host")
        for host in hosts:
            headers = own_cookies(headers, host)
        return headers

    def _take_relay_field(self, headers: list[Field]) -> list[Field]:
        service = first_value(headers, RELAY_FIELD.lower())
        if service is None:
            return headers
        name = service.decode("latin-1")  # a device's word, which must fit into a CONNECT
        if isinstance(self._stream, Stream) and self._destination is not None and is_name(name):
            self._routes.learn_service(
                self._stream.session, self._destination.device, self._destination.service, name
            )
        return [pair for pair in headers if pair[0].lower() != RELAY_FIELD.lower()]

    async def carry(self, server: ServerConnection, request: RequestHead) -> bool | None:
        """Let the pump serve this request and those after it, if it can."""
        self._visit.place.leave()
        if self.local is None or self._pump is None:
            return None
        if isinstance(read_request(server.raw_head), str):
            return None  # "declined": the relay would leave it to us
        try:
            destination = self._find(request)
        except Refused:
            return None
        found = self._routes.now(destination)
        if found is None or self.kept.is_kept(destination):
            return None
        if self.raw.is_kept(found.destination):
            return None
        kept = KeptVisitor(server, self.settings.limits)
        carrier = Carrier(self.settings, self._routes, self._visitor, self._visit)
        early = server.raw_head + server.take_buffer()
        relay = carry(self._pump, _wire(self.local), kept, carrier, self.settings, early)
        return await self._wait_for(kept, relay, carrier)

    async def go_on(self, server: ServerConnection, relay: HttpRelay, carrier: Carrier) -> bool:
        """Wait for a relay that began without a task: whether there can be more requests then."""
        kept = KeptVisitor(server, self.settings.limits)
        kept.adopt(relay)
        goes_on = await self._wait_for(kept, relay, carrier)
        server.is_new = relay.requests == 0
        return goes_on is not False

    async def _wait_for(self, kept: KeptVisitor, relay: HttpRelay, carrier: Carrier) -> bool | None:
        self._task.relay = relay
        self._visit.count = lambda: (relay.bytes_in, relay.bytes_out)
        try:
            return await kept.run(relay)
        finally:
            self._task.relay = None
            carrier.log_end(relay)
            if (stream := carrier.take_bound(relay)) is not None:
                self.raw.hold(relay.destination, stream)

    def record(self, exchange: Exchange) -> None:
        """One line for one request."""
        destination, stream, request = self._destination, self._stream, exchange.request
        if self._upstream is not None and self._raw_name is not None:
            self.raw.put_back(self._raw_name, self._upstream)
        elif self._upstream is not None:
            self.kept.put_back(destination, self._upstream)
        self._destination = self._stream = self._upstream = None
        self._task.is_idle = True
        cut, problem = self._visit.cut_reason, exchange.problem
        what: dict[str, object] = {
            "visitor": self._visit.visitor,
            "device": destination.device if destination else None,
            "service": destination.service if destination else None,
            "stream": stream_id(stream),
            "method": request.method.decode("ascii") if request is not None else None,
            "path": request.path if request is not None else None,
            "status": exchange.status or None,
            "reason": exchange.reason,
            "upgraded": exchange.upgraded or None,
            "problem": problem if cut is None else f"cut: {cut}",
        }
        _log.info(
            "request",
            **{key: value for key, value in what.items() if value is not None},
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            seconds=round(trio.current_time() - exchange.started, 4),
        )


def _wire(local: Lent) -> PumpSocket:
    from tunnelmux.pump.pump_socket import PumpSocket

    return PumpSocket(local.socket, local.tls)


def host_of(remote: str) -> str:
    """The address in `host:port`, without the brackets of IPv6."""
    return remote.rpartition(":")[0].strip("[]")
