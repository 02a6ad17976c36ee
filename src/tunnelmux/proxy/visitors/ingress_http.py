"""The HTTP ingress: each request goes to the device that its head names."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NoReturn

import trio

from tunnelmux.config.proxy import HttpIngress
from tunnelmux.http import ServerConnection
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.http.refusal import Refusal
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.carrier import PumpRoutes
from tunnelmux.proxy.visitors.elsewhere import HandsOver, WayThere
from tunnelmux.proxy.visitors.groups import Groups
from tunnelmux.proxy.visitors.http_visit import SLOT, HttpVisit, IngressParts, Said, host_of
from tunnelmux.proxy.visitors.idle_visitors import IdleVisitors
from tunnelmux.proxy.visitors.routing import IngressSettings, Router
from tunnelmux.proxy.visitors.visit import VisitRegister
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.relay import abort
from tunnelmux.sessions import DeviceStore
from tunnelmux.transports.admission import Admission, source_of

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing
    from tunnelmux.pump.passing import FirstLook
    from tunnelmux.pump.sockets import BareSocket

__all__ = ["HttpIngressServer"]

_log = get_logger("proxy.http")

_GRACE = 1.0
# Seconds of silence before a connection counts against its address' share: hundreds at once from
# one address that send their requests are no attack.

_REFUSING_AT_ONCE = 64
# Concurrent 503 answers to visitors over the limit; further ones are reset, so that these answers
# cannot fill the memory.

_REFUSAL_TIMEOUT = 1.0
# Seconds to send one of these.


class HttpIngressServer:
    """Serves the connections of visitors. `configure` it before the first."""

    def __init__(
        self,
        store: DeviceStore,
        devices: DeviceRegister,
        visits: VisitRegister | None = None,
        groups: Groups | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.visits = visits if visits is not None else VisitRegister()
        self.gate = gate if gate is not None else Gate(devices, store)
        """The access gate."""
        self.admission = Admission("ingress.http", grace=_GRACE)
        """The places of connections that have not sent the head of a request yet."""
        router = Router(store, devices, groups)
        self._parts = IngressParts(router, PumpRoutes(router), self.gate)
        self._settings = IngressSettings()
        self._first_look: type[FirstLook] | None = None
        self._first_words: Callable[..., Said | None] | None = None
        self._ways: dict[Said, WayThere | Literal["here", "unknown"]] = {}  # of the present batch
        self._refusing = 0
        self._idle = IdleVisitors(self.visits)

    def configure(
        self, ingress: HttpIngress, limits: IngressLimits, tls: ssl.SSLContext | None = None
    ) -> None:
        """Use these settings for new connections."""
        trusted = TrustedProxies.parse(
            ingress.trusted_proxies,
            ingress.trusted_fields,
            keep_logins=ingress.proxies_keep_logins,
        )
        self._parts.routes.limits = limits
        self._settings = IngressSettings(
            ingress.domain, trusted, limits, tls, parent_cookies=ingress.parent_cookies
        )
        self._parts.router.reserved_streams = limits.reserved_streams
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
        """Use this pump for connections until cancelled; then its connections are cut."""
        self._parts.pump = pump
        try:
            await self._parts.routes.tidy()
        finally:
            self._parts.pump = None
            for visit in self.visits:
                if isinstance(visit, HttpVisit):
                    visit.leave_pump()

    def trace(self, tracing: Tracing | None) -> None:
        """Make spans of the requests from now on; with None, of none."""
        self._parts.routes.tracing = tracing

    def drain(self) -> None:
        """Close idle connections now and the others after their current request."""
        self._parts.is_draining = True
        for visit in self.visits:
            visit.finish_soon()
        self._parts.routes.drain()

    def hand_over_by(self, hand_over: HandsOver) -> None:
        """Pass visitors to the workers that have their devices, from now on."""
        # Not at the top: a proxy that is alone needs none of it.
        from tunnelmux.pump.passing import FirstLook, first_words

        self._parts.hand_over = hand_over
        self._first_words = first_words
        self._first_look = FirstLook

    def pass_visitors(self, pass_visitor: Callable[[str, int, str], bool]) -> None:
        """Give visitors who are between two requests away when their connections are to end."""
        self._parts.pass_visitor = pass_visitor

    def take(
        self, nursery: trio.Nursery, local: BareSocket, remote: str, *, is_passed: bool = False
    ) -> bool:
        """Serve one visitor in the pump. False if that is not possible now. Call `after_batch`
        when all are taken that came together.

        `nursery` owns the tasks for requests that need one. With `is_passed`, another worker has
        passed it on to this one.
        """
        parts = self._parts
        if parts.is_draining or parts.pump is None:
            return False
        look = None
        if self._first_look is not None and not is_passed:
            way = self._way_of(parts.pump, local)
            if not isinstance(way, str) and way.pass_soon(SLOT, local, remote):
                return True  # it counts where it is taken
            if way == "unknown":
                is_secure = self._settings.tls is not None
                look = self._first_look(parts.pump.core, local, is_secure=is_secure)
        if not self._has_room(remote):
            return False
        visit = self._admit(remote)
        if visit is None:
            local.reset()
        elif look is None:
            visit.arrive(nursery, local)
        else:
            visit.arrive_to_be_passed(nursery, local, look)
        return True

    def _way_of(self, pump: DataPump, local: BareSocket) -> WayThere | Literal["here", "unknown"]:
        """The way for a connection, by what it has said so far. The same words are looked up once
        in a batch."""
        assert self._first_words is not None
        said = self._first_words(pump.core, local, is_secure=self._settings.tls is not None)
        if said is None:
            return "unknown"
        way = self._ways.get(said)
        if way is None:
            way = self._ways[said] = self._parts.way_for(said, self._settings)
        return way

    def after_batch(self) -> None:
        """Pass on the visitors who are to be passed together."""
        ways, self._ways = self._ways, {}
        for way in ways.values():
            if not isinstance(way, str):
                way.pass_waiting()

    def _has_room(self, remote: str) -> bool:
        """Whether there is room for another visitor. If needed, ends one that is silent or idle, or
        that has not sent its first head yet."""
        limits = self._settings.limits
        crowd = 0  # each connection of a trusted proxy stands for an address of its own
        if host_of(remote) not in self._settings.trusted:
            crowd = self.visits.of_address("http", remote)
            if crowd >= limits.max_visitors_per_address:
                return self._idle.end_one_of(source_of(remote))
        return (
            self.visitor_count < limits.max_visitors
            or self.admission.make_room_for(remote)
            or self._idle.end_one_for(source_of(remote), crowd)
        )

    def _admit(self, remote: str) -> HttpVisit | None:
        """A visit for the connection; None when its address has no place for one more."""
        place = self.admission.enter(remote)
        if place is None:
            return None
        return HttpVisit(self.visits, remote, place, self._parts, self._settings)

    async def handle(self, stream: trio.abc.Stream, remote: str) -> None:
        """Serve one visitor with h11 until its connection is over, and close it.

        `remote` is the visitor's address as `host:port`.
        """
        if not self._has_room(remote):
            await self._turn_away(stream, remote, self._settings)
        elif (visit := self._admit(remote)) is None:
            await abort(stream)
        else:
            await visit.serve(stream)

    async def _turn_away(
        self, stream: trio.abc.Stream, remote: str, settings: IngressSettings
    ) -> None:
        limit = settings.limits.max_visitors
        if self.visits.lines.refused.may_write(source_of(remote)):
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
