"""Answers the pump's questions about requests: their destinations, their fields, their log lines.
The followers of `pump.followers` decide for each request whether the pump carries it. An agent says
which services take raw connections, when it connects or in an answer. All other requests go to h11.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn
from weakref import WeakKeyDictionary, ref

import trio

from tunnelmux.http.connect import CONNECT_ANSWER, connect_head
from tunnelmux.http.connection import DRAIN_BYTES
from tunnelmux.http.fields import (
    Visitor,
    client_address,
    forwarding_fields,
    reported_hosts,
    reported_scheme,
)
from tunnelmux.http.head import Field
from tunnelmux.http.judge import HeadJudge
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import get_logger
from tunnelmux.observability.lines import line_about, quoted
from tunnelmux.observability.logs import process_fields, wants_info
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.proofs import Pass, Sender
from tunnelmux.proxy.visitors.groups import Wish
from tunnelmux.proxy.visitors.names import Destination, SenderLines
from tunnelmux.proxy.visitors.routing import IngressSettings, Router, destination_of
from tunnelmux.pump.data_pump import DataPump, Owner
from tunnelmux.sessions import SessionHandle
from tunnelmux.wire import MOST_SERVICES

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing
    from tunnelmux.proxy.visitors.http_visit import HttpVisit
    from tunnelmux.pump.epoll import Member
    from tunnelmux.pump.http_relay import HttpRelay
    from tunnelmux.pump.legs import Route
    from tunnelmux.pump.tunnel import Tunnel
    from tunnelmux.yamux.streams import EngineStream

__all__ = [
    "Carrier",
    "PumpRoutes",
    "carry",
    "failure_of",
    "import_carriers",
    "sender_of",
    "without_fields",
]

_log = get_logger("proxy.http")

_LINES_KEPT = 4096
# Services whose part of a log line is cached: some hundred bytes each.

_MOST_ROUTES = 2 * MOST_SERVICES
# Names of a session's services that take raw connections, each as it is called and as visitors ask
# for it. An honest agent has no more; another one could confirm any name that it is asked for.

_LINE = line_about("proxy.http", "request")

_REASONS_OF_STATUS = {
    400: "bad-request",
    408: "body-stalled",
    502: "target-broke",
    504: "target-timeout",
}
# The Tunnelmux-Reason for each problem of an exchange in the pump.

_ACCEPT = re.compile(rb"\naccept:[ \t]*([^\r\n]*)", re.IGNORECASE)


def failure_of(relay: HttpRelay, head: bytes) -> tuple[Refusal, bytes] | None:
    """The refusal for the request in progress, and the value of Accept in its `head`; None where
    nothing is wrong with it.
    """
    if relay.problem is None:
        return None
    message = f"The request could not be served: {relay.problem}."
    found = _ACCEPT.search(head)
    accept = found[1] if found is not None else b""
    return Refusal(relay.status, _REASONS_OF_STATUS[relay.status], message), accept


_TRACEPARENT = re.compile(rb"\r\ntraceparent:([^\r\n]*)\r\n", re.IGNORECASE)


_RoutesOfHop = WeakKeyDictionary[Session, dict[str, "Route"]]
# By the session with the other node, and the service.


class PumpRoutes:
    """The sessions and services that a pump can carry requests to, known without waiting."""

    def __init__(self, router: Router) -> None:
        self.limits = IngressLimits()
        """The limits of idle connections."""
        self.tracing: Tracing | None = None
        """Makes spans of requests, if it is set. Requests that it samples are served with h11,
        where each step can be seen.
        """
        self._router = router
        self._services: WeakKeyDictionary[Session, dict[str | None, Route]] = WeakKeyDictionary()
        self._elsewhere: WeakKeyDictionary[SessionHandle, _RoutesOfHop] = WeakKeyDictionary()

    def learn_service(self, session: Session, device: str, asked: str | None, name: str) -> Route:
        """Record that this service takes raw connections, as its agent says."""
        known = self._services.setdefault(session, {})
        if asked in known:
            return known[asked]
        while len(known) > _MOST_ROUTES - 2:
            self._forget_oldest(known)
        named = known.get(name)
        if named is None:
            opener = _Opener(session, name)
            named = self._new_route(opener, CONNECT_ANSWER, Destination(device, name))
            known[name] = named
        known[asked] = named
        return named

    def _forget_oldest(self, known: dict[str | None, Route]) -> None:
        route = known.pop(next(iter(known)))
        if route not in known.values():  # under its other name
            route.max_idle = 0
            route.close_idle(math.inf)

    def now(self, destination: Destination) -> Route | None:
        """The way to the service, if it is known and available now."""
        handle = self._router.handle_now(destination.device)
        if handle is None:
            return self._there_now(destination) if self._router.reaches_others else None
        route = self._services.get(handle.session, {}).get(destination.service)
        if route is None and destination.service in handle.relayed:
            name = handle.relayed[destination.service]
            route = self.learn_service(
                handle.session, destination.device, destination.service, name
            )
        return route

    def place(
        self, named: Destination, address: str, member: bytes, present: str
    ) -> Destination | None:
        """The destination, with one of its devices in the place of a group (see
        `Router.place_now` and `Wish`).
        """
        if self._router.groups.find(named.device) is None:
            return named
        return self._router.place_now(named, Wish(address, member, present))

    def default_service(self, device: str) -> str:
        """The name of the device's default service, if its agent has named it."""
        handle = self._router.handle_now(device) or self._router.there_now(device)
        if handle is None:
            return ""
        return handle.default_service or handle.relayed.get(None, "")

    def _there_now(self, destination: Destination) -> Route | None:
        """The same for a device on another node."""
        handle = self._router.there_now(destination.device)
        name = handle.relayed.get(destination.service) if handle is not None else None
        if handle is None or name is None or (way := handle.way_now()) is None:
            return None
        session, head, answer = way
        known = self._elsewhere.setdefault(handle, WeakKeyDictionary()).setdefault(session, {})
        if name not in known:
            opener = _Opener(session, name, head)
            known[name] = self._new_route(
                opener, answer + CONNECT_ANSWER, Destination(destination.device, name)
            )
        return known[name]

    def _new_route(self, opener: _Opener, answer: bytes, named: Destination) -> Route:
        from tunnelmux.pump.legs import Route

        return Route(
            opener,
            answer,
            named,
            max_idle=self.limits.max_idle_targets,
            idle_time=self.limits.target_idle_time,
        )

    def find(
        self, said: tuple[bytes, bytes, bytes], settings: IngressSettings
    ) -> Destination | None:
        """The destination of a request that the scanner has accepted, from its Host,
        `Tunnelmux-Device` and `Tunnelmux-Service`; an absent field is empty. None when it is
        refused.
        """
        destination = settings.names.find(said)
        if destination is None:
            destination = destination_of(said, settings.domain, self._router.is_tenant)
            if destination is not None:
                settings.names.learn(said, destination)
        return destination

    async def tidy(self) -> NoReturn:
        """Close connections to targets that were idle for too long, until cancelled."""
        while True:
            await trio.sleep(self.limits.target_idle_time / 2)
            now = trio.current_time()
            for session, services in list(self._services.items()):
                for route in services.values():
                    route.close_idle(math.inf if session.is_draining else now - route.idle_time)
            for handle, hops in list(self._elsewhere.items()):
                for route in (route for known in hops.values() for route in known.values()):
                    route.close_idle(math.inf if handle.is_closed else now - route.idle_time)

    def drain(self) -> None:
        """Keep no idle connection from now on."""
        routes = [route for known in self._services.values() for route in known.values()]
        for hops in self._elsewhere.values():
            routes += [route for known in hops.values() for route in known.values()]
        for route in routes:
            route.max_idle = 0
            route.close_idle(math.inf)


class _Opener:
    """Opens streams to a service of one session, to which it holds only a weak reference."""

    def __init__(self, session: Session, service: str, head: bytes = b"") -> None:
        self._session = ref(session)
        self._head = head + connect_head(service)

    def adopt(self, stream: EngineStream) -> Stream | None:
        """A stream that was opened here, for a task."""
        session = self._session()
        return session.adopt(stream) if session is not None else None

    def __call__(self) -> tuple[Tunnel, EngineStream] | None:
        session = self._session()
        return session.open_leg(self._head) if session is not None else None


class Carrier:
    """Answers the pump's questions about the requests of one visitor's connection."""

    def __init__(
        self,
        settings: IngressSettings,
        routes: PumpRoutes,
        visitor: Visitor,
        visit: HttpVisit,
        gate: Gate,
    ) -> None:
        self.by: Pass | None = None
        """The pass of the last request."""
        self.takes_login = False
        """Whether its `Authorization` was for the proxy, and must not go to the service."""
        self.traces = routes.tracing is not None
        """Whether some requests get spans."""
        self._is_chosen: bool | None = None  # about the current request; None until asked
        self._gate = gate
        self._sender = Sender(visitor.address, visitor.scheme)
        self.client: str | None = None
        """Who made the last request, as trusted proxies report it."""
        self.judge = HeadJudge(settings.limits)
        self.source = visit.place.source
        """The address of the connection, as limits count it."""
        self.heeds = visitor.trusted
        """Whether the peer is a trusted proxy, whose fields about the sender count."""
        self.connection_is_shared = visitor.connection_is_shared
        """Whether requests that name their visitor may be those of several."""
        self.visitor = visitor
        """The sender of the requests, as the connection shows it."""
        self._tried: tuple[HttpRelay | None, int] | None = None  # the last request that was sent on
        self._settings = settings
        self._routes = routes
        self._visit = visit

    def route(
        self,
        host: bytes,
        device: bytes,
        service: bytes,
        said: bytes,
        cookies: tuple[bytes, bytes],
        login: bytes,
        token: bytes,
        crosses: bool,
    ) -> Route | None:
        """The route of a request with these fields and proofs, which may be empty; None when h11
        has to serve it. `cookies` are the one that lets visitors in and the one of a group.
        `crosses` says that another site's page may have caused it.
        """
        self._tried = None
        cookie, member = cookies
        destination = self._routes.find((host, device, service), self._settings)
        if destination is None:
            return None
        try:
            destination = self._gate.settled(destination)
        except Refused:
            return None
        sender = self._sender
        if self.heeds:
            made = self._made_for(host, said)
            sender, self.client = made.sender, made.client
        by = self._gate.find(destination.device, destination.service, sender, cookie, login, token)
        if by is None or not self._gate.may_pass(by, crosses=crosses):
            return None
        placed = self._routes.place(destination, sender.address, member, self._visit.device)
        if placed is None or self._visit.inspection(placed, self._routes) is not None:
            return None
        route = self._routes.now(placed)
        if route is None or self._visit.admit(placed, destination) is not None:
            return None
        self._is_chosen = None
        self.by = by
        self._visit.let_in(by)
        self.takes_login = by.takes_login
        relay = self._visit.relay
        self._tried = relay, relay.requests if relay is not None else 0
        return route

    def traces_this(self, head: bytes) -> bool:
        """Whether the request with this head, which the scanner has accepted, gets spans."""
        self._tried = None
        found = _TRACEPARENT.search(head)
        return self.is_chosen(found[1].strip(b" \t") if found is not None else b"")

    def is_chosen(self, traceparent: bytes) -> bool:
        """Whether the current request gets spans. The answer stays the same until `forget_choice`
        or until the request is carried, even if pump and h11 pass it to each other several
        times."""
        if self._is_chosen is None:
            tracing = self._routes.tracing
            self._is_chosen = tracing is not None and tracing.chooses(traceparent)
        return self._is_chosen

    def forget_choice(self) -> None:
        """Note that the next call of `is_chosen` is about another request."""
        self._is_chosen = None

    def has_tried(self, relay: HttpRelay) -> bool:
        """Whether the relay's last request had a route: it was sent on, or its leg was refused."""
        return self._tried == (relay, relay.requests)

    def fields(self, host: bytes, said: bytes) -> bytes:
        """The field lines to add to a request with this Host; *said* are its own fields about the
        sender.
        """
        made = self._made_for(host, said)
        self.client = made.client
        if self.by is None or self.by.identity.kind == "anonymous":
            return made.lines
        identity = self._gate.identity_fields(self.by, host)
        return _joined([*without_fields(_split(made.lines), identity), *identity])

    def _made_for(self, host: bytes, said: bytes) -> SenderLines:
        key = (self.visitor.address, self.visitor.scheme, host, said)
        return self._settings.names.made_for(key, lambda: self._make(host, said))

    def _make(self, host: bytes, said: bytes) -> SenderLines:
        fields = _split(said)
        lines = _joined(forwarding_fields(fields, self.visitor, host))
        hosts: tuple[bytes, ...] = ()
        if not self._settings.parent_cookies:
            hosts = host, *reported_hosts(fields)
        if not self.heeds:
            return SenderLines(lines, hosts, None, self._sender)
        client = client_address(fields, self._settings.trusted)
        return SenderLines(lines, hosts, client, sender_of(fields, self.visitor, client))

    def cookie_hosts(self, host: bytes, said: bytes) -> tuple[bytes, ...]:
        """The hosts that cookies of the answer to such a request are limited to."""
        return self._made_for(host, said).cookie_hosts

    def about(self, destination: Destination) -> bytes | None:
        """The first fields of a request's log line; None when it is not logged."""
        if not (wants_info() or self._visit.feed.is_read):
            return None
        return _line_about(
            self.client or self._visit.visitor, destination.device, destination.service or ""
        )

    def describe(self, destination: Destination, stream: int) -> dict[str, str | int]:
        """The fields of visitor, device and service for the log."""
        return {
            "visitor": self.client or self._visit.visitor,
            "device": destination.device,
            "service": destination.service or "",
            "stream": stream,
        }

    def take_bound(self, relay: HttpRelay) -> Stream | None:
        """Take the stream that a login of the visitor belongs to, if a relay left one."""
        bound = relay.take_bound()
        if bound is None or not isinstance(bound[1], _Opener):
            return None
        return bound[1].adopt(bound[0])

    def log_end(self, relay: HttpRelay) -> None:
        """Log the request that the end of the relay left without a complete answer."""
        unfinished, problem = relay.unfinished, relay.problem
        if unfinished is None or (problem is None and relay.outcome in {"handed back", None}):
            return  # no request is in progress, or h11 continues it
        method, path, status, bytes_in, bytes_out, seconds = unfinished
        reason = ended = None
        if problem is not None:
            status = relay.status
            reason = _REASONS_OF_STATUS[status]
        elif relay.outcome == "local broke":
            ended = "the visitor left"  # the visitor may leave at any time: no error
        elif relay.outcome == "aborted":
            reason_of_cut = self._visit.cut_reason
            problem = f"cut: {reason_of_cut}" if reason_of_cut else "cut by the proxy's end"
        else:
            problem = str(relay.error)
        figures = self._visit.figures
        figures.by_pump.add(status, bytes_in, bytes_out, seconds)
        figures.refused(reason)
        assert isinstance(relay.destination, Destination)
        what = {
            **self.describe(relay.destination, relay.stream_id),
            "method": method,
            "path": path,
            **({"status": status} if status else {}),
            **({"reason": reason} if reason else {}),
            **({"ended": ended} if ended else {"problem": problem}),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "seconds": round(seconds, 4),
        }
        _log.info("request", **what)
        self._visit.feed.tell("http", what)


def import_carriers() -> None:
    """Import what moves a visitor's bytes, which the first visitor would import: where descriptors
    have run out by then it cannot be."""
    from tunnelmux.pump import http_relay, legs, passing, relay, sockets

    del http_relay, legs, passing, relay, sockets


def carry(
    pump: DataPump,
    local: object,
    owner: Owner,
    carrier: Carrier,
    settings: IngressSettings,
    early: bytes,
    instead_of: Member | None = None,
) -> HttpRelay:
    """Give a visitor's connection to the pump, with the bytes that were read and not used, in the
    place of a member that has it there."""
    from tunnelmux.pump.http_relay import HttpRelay

    relay = HttpRelay(
        pump.core,
        local,
        owner,
        carrier=carrier,
        max_head_bytes=settings.limits.max_head_bytes,
        max_head_fields=settings.limits.max_head_fields,
        max_interim_heads=settings.limits.max_interim_heads,
        drain_bytes=DRAIN_BYTES,
        early=early,
    )
    relay.start(instead_of)
    return relay


def sender_of(fields: list[Field], visitor: Visitor, client: str | None) -> Sender:
    """The sender of a request from a trusted proxy: the address and scheme that the proxy
    reports.
    """
    said = reported_scheme(fields)
    scheme = said.decode("latin-1").lower() if said is not None else visitor.scheme
    return Sender(client or visitor.address, "https" if scheme in {"https", "wss"} else "http")


def without_fields(fields: list[Field], others: list[Field]) -> list[Field]:
    """The fields whose names do not occur in the others."""
    names = {name.lower() for name, _ in others}
    return [pair for pair in fields if pair[0].lower() not in names]


def _line_about(visitor: str, device: str, service: str) -> bytes:
    # Not cached by visitor: each connection has another port.
    text = f'{_LINE}, "visitor": {quoted(visitor)}, {_line_end(device, service)}'
    return text.encode("ascii")


@lru_cache(maxsize=_LINES_KEPT)
def _line_end(device: str, service: str) -> str:
    process = "".join(f"{quoted(k)}: {quoted(v)}, " for k, v in process_fields().items())
    return f'{process}"device": {quoted(device)}, "service": {quoted(service)}'


def _joined(fields: list[Field]) -> bytes:
    return b"".join([b"%s: %s\r\n" % pair for pair in fields])


def _split(said: bytes) -> list[Field]:
    """Split field lines that the scanner has accepted."""
    fields = []
    for line in said.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        fields.append((name, value.strip(b" \t")))
    return fields
