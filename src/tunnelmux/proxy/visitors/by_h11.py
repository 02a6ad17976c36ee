"""Serve the requests of a visitor's connection with h11: route, forward and log each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnelmux.http import (
    Exchange,
    KeptUpstream,
    RequestHead,
    ServerConnection,
    Upstream,
    serve_requests,
)
from tunnelmux.http.connect import CONNECT_ANSWER, connect_head
from tunnelmux.http.fields import (
    clearing_own,
    client_address,
    end_to_end,
    forwarding_fields,
    names_visitor,
    own_cookies,
    reported_hosts,
    without_own_cookies,
    without_own_fields,
    without_own_set_cookies,
)
from tunnelmux.http.head import Field, first_value
from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.mux import Stream
from tunnelmux.observability import get_logger
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.proofs import Asked, Sender
from tunnelmux.proxy.visitors.carrier import PumpRoutes, sender_of, without_fields
from tunnelmux.proxy.visitors.groups import FAILURES, Wish, member_cookie
from tunnelmux.proxy.visitors.inspector import TappedRequest
from tunnelmux.proxy.visitors.names import Destination
from tunnelmux.proxy.visitors.routing import Router, find_destination, is_name, stream_id
from tunnelmux.proxy.visitors.silence import ask_why
from tunnelmux.proxy.visitors.visit import PATIENCE
from tunnelmux.pump.head import read_request
from tunnelmux.relay import abort
from tunnelmux.transports.admission import source_of
from tunnelmux.wire import RELAY_FIELD, SERVICE_FIELD

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import RequestTrace
    from tunnelmux.proxy.visitors.http_visit import HttpVisit
    from tunnelmux.pump.legs import Route

__all__ = ["RequestsByH11"]

_log = get_logger("proxy.http")


class RequestsByH11:
    """Serves requests of one visit, in the task that calls `serve`; keeps the connection's state
    from one call to the next.
    """

    def __init__(
        self,
        visit: HttpVisit,
        server: ServerConnection,
        router: Router,
        routes: PumpRoutes,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._set_cookies: list[Field] = []
        self.server = server
        self.is_idle = True
        """Whether no request is in progress."""
        self.busy_since = 0.0
        """When h11 got the request in progress, on Trio's clock."""
        self.kept = KeptUpstream()
        """The stream that a login of the visitor belongs to."""
        self.raw = KeptUpstream()
        """The same for a stream that was opened in the pump: it leads directly to the target."""
        self._visit = visit
        self._settings = visit.settings
        self._visitor = visit.carrier.visitor
        self._router = router
        self._routes = routes
        self._insists = self._asks_agent = False
        self._trace: RequestTrace | None = None
        self._overdue: Refusal | None = None
        self._raw_name: object = None
        self._named: Destination | None = None  # as the visitor named it: perhaps a group
        self._destination: Destination | None = None
        self._stream: trio.abc.Stream | None = None
        self._upstream: Upstream | None = None
        self._tapped: TappedRequest | None = None  # while the service is inspected

    async def serve(self, *, insists: bool = False, overdue: Refusal | None = None) -> bool:
        """Serve requests until the connection is over, and close it; or until a request comes that
        the pump can carry. True in that case: the server then holds that request for the pump. With
        `insists`, the first request is served here in any case, and its agent is asked; with
        `overdue`, it is answered with that refusal.
        """
        self._insists, self._overdue = insists, overdue
        return await serve_requests(
            self.server,
            self.route,
            self._settings.limits,
            self.record,
            leave=self._can_be_carried,
        )

    async def drop_kept(self) -> None:
        """Close the streams that logins belong to."""
        try:
            await self.kept.drop()
        finally:
            await self.raw.drop()

    @property
    def stream_now(self) -> int | None:
        """The id of the stream that the request in progress uses."""
        return stream_id(self._stream)

    def _can_be_carried(self, request: RequestHead) -> bool:
        """Whether the pump can serve this request, and perhaps those after it."""
        self._visit.place.leave()
        self._asks_agent, self._insists = self._insists, False
        if self._is_chosen(request):
            return False
        if self._asks_agent or self._overdue is not None or not self._visit.may_be_carried:
            return False
        if self.kept.holds_any or self.raw.holds_any:
            return False
        if isinstance(read_request(self.server.raw_head), str):
            return False  # "declined": the pump would hand it back
        try:
            destination = self._find(request)
        except Refused:
            return False
        placed = self._router.place_now(destination, self._wish(request))
        if placed is None or self._visit.inspection(placed, self._routes) is not None:
            return False
        self._note_client(request)
        asked = Asked.of(request, self._sender_of(request))
        shown = asked.cookie, asked.login, asked.token
        by = self._gate.find(destination.device, destination.service, asked.sender, *shown)
        if by is None or not self._gate.may_pass(by, crosses=asked.crosses):
            return False
        # A refused request is answered here.
        found = self._routes.now(placed) is not None
        return found and self._visit.admit(placed, destination) is None

    async def route(self, request: RequestHead) -> Upstream:
        """A stream to the device that this request names; raises Refused."""
        self.is_idle = False
        self.busy_since = trio.current_time()
        self._note_client(request)
        self._begin_trace(request)
        with self._step("route"):
            headers = await self._admitted(request)
        with self._step("stream open"):
            return await self._open(request, headers)

    async def _admitted(self, request: RequestHead) -> list[Field]:
        """The request's fields for the service; raises Refused."""
        if self._router.reaches_others:
            await self._router.look_for(self._router.named(self._named_by(request).device))
        self._named = named = self._find(request)
        placed = await self._router.place(named, self._wish(request))
        assert placed is not None  # a group has at least one device
        self._destination = destination = placed
        refusal = self._visit.admit(destination, named) or self._overdue
        self._overdue = None
        inspection = self._visit.inspection(destination, self._routes)
        if inspection is not None:
            visitor, scheme = self._visitor_of(request), self._visitor.scheme
            self._tapped = inspection.tap(request, visitor, scheme)
        if refusal is not None:
            raise Refused(refusal)
        headers = await self._let_in(request, named)
        return self._trace.goes_on(headers) if self._trace is not None else headers

    async def _open(self, request: RequestHead, headers: list[Field]) -> Upstream:
        """A stream for the request: to its destination, or to another device of its group where
        this one does not serve. Raises Refused."""
        tried: set[str] = set()
        while True:
            destination, refusal, upstream = self._destination, None, None
            assert destination is not None
            try:
                upstream = await self._open_to(request, headers, destination)
            except Refused as exc:
                refusal = exc.refusal
            if upstream is None:
                if refusal is None or refusal.reason in FAILURES:
                    why = refusal.reason if refusal is not None else ""
                    self._router.groups.failed(destination.device, destination.service, why)
                if await self._go_elsewhere(request, destination, tried):
                    continue
            if refusal is not None:
                raise Refused(self._about_group(refusal))
            self._upstream = upstream or await self._to_agent(request, headers, destination)
            self._stream = self._upstream.stream
            self._upstream.tap = self._tapped
            return self._upstream

    async def _go_elsewhere(
        self, request: RequestHead, destination: Destination, tried: set[str]
    ) -> bool:
        """Choose another device of the group for the request; False where there is none."""
        named = self._named
        if named is None or named.device == destination.device:
            return False
        tried.add(destination.device)
        other = await self._router.place(named, self._wish(request), without=tried)
        if other is None:
            return False
        self._destination, self._asks_agent = other, False
        refusal = self._visit.admit(other, named)
        if refusal is not None:
            raise Refused(refusal)
        return True

    def _about_group(self, refusal: Refusal) -> Refusal:
        """The refusal of the last device of a group, which says that it was the last one."""
        named = self._named
        if named is None or self._router.groups.find(named.device) is None:
            return refusal
        message = f"No device of the group {named.device} serves this now. {refusal.message}"
        return replace(refusal, message=message, headline="No device serves this now")

    async def _open_to(
        self, request: RequestHead, headers: list[Field], destination: Destination
    ) -> Upstream | None:
        """A stream to this destination; None when the agent must be asked why there is none. Raises
        Refused."""
        if self._may_be_another(request):
            await self.drop_kept()
        found = self._routes.now(destination)
        raw_name = found.destination if found is not None else None
        self._raw_name = None
        raw = await self.raw.take(raw_name) if self.raw.is_kept(raw_name) else None
        if raw is not None:
            self._raw_name = raw_name
        elif (
            isinstance(raw_name, Destination)
            and raw_name.service is not None
            and not self._asks_agent
            and not self._keeps_login(request, destination)
        ):
            raw = await self._open_raw(raw_name.device, raw_name.service)
            if raw is None:
                return None
        if raw is not None and found is not None:
            return self._to_target(request, headers, raw, found)
        return None if self._asks_agent else await self._to_agent(request, headers, destination)

    def _keeps_login(self, request: RequestHead, destination: Destination) -> bool:
        wanted = self.kept.wanted(request, destination)
        return wanted and not self._may_be_another(request)

    def _may_be_another(self, request: RequestHead) -> bool:
        """Whether another person may have sent the request than those before it on the connection:
        a login of theirs is not for it."""
        return self._visitor.connection_is_shared and names_visitor(request.headers)

    def _begin_trace(self, request: RequestHead) -> None:
        tracing = self._routes.tracing
        is_chosen = self._is_chosen(request)
        self._visit.carrier.forget_choice()
        if tracing is None or not is_chosen:
            return
        ago = None if self._visit.has_asked else trio.current_time() - self._visit.began
        self._trace = tracing.begin(request.method, request.headers, arrived_ago=ago)

    def _is_chosen(self, request: RequestHead) -> bool:
        """Whether the request is to have spans: the pump may have asked before."""
        carrier = self._visit.carrier
        if not carrier.traces:
            return False
        return carrier.is_chosen(first_value(request.headers, b"traceparent") or b"")

    def _step(self, name: str) -> AbstractContextManager[None]:
        return self._trace.step(name) if self._trace is not None else nullcontext()

    def _end_trace(self, exchange: Exchange, destination: Destination | None) -> None:
        trace, self._trace = self._trace, None
        request = exchange.request
        if trace is None or request is None:
            return
        trace.end(
            {
                "http.request.method": request.method.decode("ascii"),
                "url.path": request.path,
                "url.scheme": self._visitor.scheme,
                "client.address": self._visitor_of(request),
                "http.response.status_code": exchange.status or None,
                "tunnelmux.device": destination.device if destination else None,
                "tunnelmux.service": destination.service if destination else None,
                "error.type": exchange.reason,
            },
            exchange.problem if exchange.status >= 500 or not exchange.status else None,
        )

    def _to_target(
        self, request: RequestHead, headers: list[Field], raw: trio.abc.Stream, route: Route
    ) -> Upstream:
        """A stream that leads directly to the target: the agent does not read the request."""
        destination = self._destination
        assert destination is not None

        def answer_fields(fields: list[Field]) -> list[Field]:
            route.has_answered = True
            return self._answer_fields(request, without_own_fields(fields))

        return Upstream(
            stream=raw,
            headers=headers,
            describe=f"the target of {destination}",
            response_timeout=self._settings.limits.response_timeout,
            response_headers=answer_fields,
            explain_silence=partial(self._why_silent, destination),
            keeps=self._raw_name is not None,
        )

    async def explained(self, refusal: Refusal) -> Refusal:
        """The refusal of a request that the pump carried, with the cause from its agent."""
        if refusal.reason != "target-broke":
            return refusal
        cause = await self._why_silent(Destination(self._visit.device, self._visit.service))
        if cause is None:
            return refusal
        message = f"The request could not be served: {cause}."
        return Refusal(refusal.status, refusal.reason, message)

    async def _why_silent(self, destination: Destination) -> str | None:
        """The agent's explanation for a target that has never answered; None for other targets."""
        found = self._routes.now(destination)
        if found is None or found.has_answered:
            return None
        limits = self._settings.limits
        try:
            stream = await self._router.open_stream(destination.device, limits)
        except Refused:
            return None
        return await ask_why(stream, destination.service, limits)

    async def _to_agent(
        self, request: RequestHead, headers: list[Field], destination: Destination
    ) -> Upstream:
        """A stream on which the agent reads the request, and answers with the reason where it
        cannot serve it.
        """
        keeps = self._keeps_login(request, destination)
        stream = await self.kept.take(destination)
        if stream is None:
            stream = await self._open_stream(destination.device)
        if destination.service is not None:
            headers.append((SERVICE_FIELD, destination.service.encode("ascii")))
        if self._is_own(stream, destination.device):
            headers.append((RELAY_FIELD, b"?"))
        return Upstream(
            stream=stream,
            headers=headers,
            describe=f"device {destination.device}",
            response_timeout=self._patience(destination),
            broken_reason="tunnel-lost",
            response_headers=partial(self._answer_fields, request),
            keeps=keeps,
        )

    async def _open_stream(self, device: str) -> trio.abc.HalfCloseableStream:
        stream = await self._router.open_stream(device, self._settings.limits, self._visit)
        self._visit.on_cut = None  # cut with the whole connection
        return stream

    def _is_own(self, stream: trio.abc.Stream, device: str) -> bool:
        """Whether the stream is in a pump and belongs to the device's own session, not to one with
        another node.
        """
        if not isinstance(stream, Stream) or stream.session.tunnel is None:
            return False
        return self._router.is_own(device, stream.session)

    async def _open_raw(self, device: str, service: str) -> trio.abc.Stream | None:
        """A stream to the target of a service that takes raw connections; None when the agent
        refuses, and must be asked for the reason. Raises Refused.
        """
        stream = await self._open_stream(device)
        seconds = PATIENCE["agreeing"](self._settings.limits)
        agreed = None
        try:
            with trio.move_on_after(seconds):
                seen = self._trace.traceparent if self._trace is not None else b""
                agreed = await _agrees(stream, connect_head(service, seen))
        finally:
            if not agreed:
                await abort(stream)
        if agreed is None:
            message = f"The target took no connection within {seconds:g} s."
            raise Refused(Refusal(504, "target-timeout", message))
        return stream if agreed else None

    def _patience(self, destination: Destination) -> float:
        """Seconds for the device to begin an answer: longer than its own timeout, because it knows
        the reason.
        """
        usual = PATIENCE["answer"](self._settings.limits)
        own = self._router.response_timeout(destination.device, destination.service)
        if own is None:
            return usual
        return usual + max(0.0, own - self._settings.limits.response_timeout)

    async def _let_in(self, request: RequestHead, named: Destination) -> list[Field]:
        """The request's fields for the service; raises Refused where the visitor may not use it."""
        self._visit.let_in(None)
        asked = Asked.of(request, self._sender_of(request))
        admitted = await self._gate.admit(named.device, named.service, asked)
        by = admitted.by
        self._visit.let_in(by)
        self._set_cookies = admitted.set_cookies
        headers = without_own_cookies(without_own_fields(end_to_end(request.headers)))
        if by.takes_login:
            headers = [pair for pair in headers if pair[0].lower() != b"authorization"]
        headers = forwarding_fields(headers, self._visitor, request.host)
        identity = self._gate.identity_fields(by, request.host)
        return [*without_fields(headers, identity), *identity]

    def _note_client(self, request: RequestHead) -> None:
        """Note the client that a trusted proxy names for the request."""
        if self._visitor.trusted:
            known = client_address(request.headers, self._settings.trusted)
            self._visit.carrier.client = known

    def _sender_of(self, request: RequestHead) -> Sender:
        visitor = self._visitor
        if not visitor.trusted:
            return Sender(visitor.address, visitor.scheme)
        client = client_address(request.headers, self._settings.trusted)
        return sender_of(request.headers, visitor, client)

    def _wish(self, request: RequestHead) -> Wish:
        address = self._sender_of(request).address
        return Wish(address, member_cookie(request), self._visit.device)

    def _find(self, request: RequestHead) -> Destination:
        """The destination that the request's head names; raises Refused."""
        return self._gate.settled(self._named_by(request))

    def _named_by(self, request: RequestHead) -> Destination:
        return find_destination(request, self._settings.domain, self._router.is_tenant)

    def _answer_fields(self, request: RequestHead, headers: list[Field]) -> list[Field]:
        if self._trace is not None:
            self._trace.answered()
        headers = without_own_set_cookies(self._take_relay_field(headers))
        if self._set_cookies:
            headers = _for_this_browser(headers) + self._set_cookies
        headers = [*headers, *self._member_cookie(request)]
        if self._settings.parent_cookies:
            return headers
        hosts = [request.host]
        if self._visitor.trusted:  # the service may see another host name than the browser
            hosts += reported_hosts(request.headers)
        for host in hosts:
            headers = own_cookies(headers, host)
        return clearing_own(headers)

    def _member_cookie(self, request: RequestHead) -> list[Field]:
        """The field that brings a browser back to the device of its group, where it needs one."""
        named, destination = self._named, self._destination
        group = self._router.groups.find(named.device) if named is not None else None
        if group is None or destination is None or not group.needs_cookie:
            return []
        if group.has_cookie_of(destination.device, member_cookie(request)):
            return []
        is_secure = self._sender_of(request).is_secure
        return [(b"Set-Cookie", group.cookie_for(destination.device, is_secure=is_secure))]

    def _take_relay_field(self, headers: list[Field]) -> list[Field]:
        service = first_value(headers, RELAY_FIELD.lower())
        if service is None:
            return headers
        name = service.decode("latin-1")  # from a device: it must fit into a CONNECT
        destination, stream = self._destination, self._stream
        if destination is None or not is_name(name):
            return [pair for pair in headers if pair[0].lower() != RELAY_FIELD.lower()]
        if isinstance(stream, Stream) and self._is_own(stream, destination.device):
            route = self._routes.learn_service(
                stream.session, destination.device, destination.service, name
            )
            route.has_answered = True
        return [pair for pair in headers if pair[0].lower() != RELAY_FIELD.lower()]

    def record(self, exchange: Exchange) -> None:
        """Log one request."""
        destination, stream, request = self._destination, self._stream, exchange.request
        if self._upstream is not None and self._raw_name is not None:
            self.raw.put_back(self._raw_name, self._upstream)
        elif self._upstream is not None:
            self.kept.put_back(destination, self._upstream)
        self._named = self._destination = self._stream = self._upstream = None
        if destination is not None and exchange.reason in FAILURES:
            why = exchange.reason
            self._router.groups.failed(destination.device, destination.service, why)
        self._end_trace(exchange, destination)
        self.is_idle = True
        self._visit.count_more(exchange.bytes_in, exchange.bytes_out)
        seconds = trio.current_time() - exchange.started
        figures = self._visit.figures
        figures.by_h11.add(exchange.status, exchange.bytes_in, exchange.bytes_out, seconds)
        figures.refused(exchange.reason)
        cut, problem = self._visit.cut_reason, exchange.problem
        left = exchange.visitor_left and cut is None
        what: dict[str, object] = {
            "visitor": self._visitor_of(request),
            "device": destination.device if destination else None,
            "service": destination.service if destination else None,
            "stream": stream_id(stream),
            "method": request.method.decode("ascii") if request is not None else None,
            "path": request.path if request is not None else None,
            "status": exchange.status or None,
            "reason": exchange.reason,
            "upgraded": exchange.upgraded or None,
            # A visitor may close a tab at any time: this is no error.
            "ended": "the visitor left" if left else None,
            "problem": (None if left else problem) if cut is None else f"cut: {cut}",
        }
        what = {key: value for key, value in what.items() if value is not None}
        what |= {"bytes_in": exchange.bytes_in, "bytes_out": exchange.bytes_out}
        what["seconds"] = round(seconds, 4)
        is_refused = stream is None and exchange.reason is not None
        if not is_refused or self._visit.lines.request.may_write(source_of(str(what["visitor"]))):
            _log.info("request", **what)
        self._visit.feed.tell("http", what)
        if self._tapped is not None:
            self._tapped.end(exchange, problem if cut is None else f"cut: {cut}")
            self._tapped = None

    def _visitor_of(self, request: RequestHead | None) -> str:
        """The visitor's address: from trusted proxies, else the peer's."""
        client = None
        if self._visitor.trusted and request is not None:
            client = client_address(request.headers, self._settings.trusted)
        return client or self._visit.visitor


async def _agrees(stream: trio.abc.Stream, head: bytes) -> bool:
    """Whether the agent connects the stream to the target that this CONNECT names. False when the
    stream ended, broke, or had another answer.
    """
    answer = b""
    try:
        await stream.send_all(head)
        while len(answer) < len(CONNECT_ANSWER) and CONNECT_ANSWER.startswith(answer):
            data = await stream.receive_some(len(CONNECT_ANSWER) - len(answer))
            if not data:
                return False
            answer += data
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return answer == CONNECT_ANSWER


def _for_this_browser(headers: list[Field]) -> list[Field]:
    """An answer's fields, so that no cache keeps it for others: a person's cookie is added to it,
    which does not keep caches from it (RFC 9111 section 7.3)."""
    kept = [pair for pair in headers if pair[0].lower() not in _FOR_CACHES]
    return [*kept, (b"Cache-Control", b"private, no-cache")]


_FOR_CACHES = frozenset({b"cache-control", b"cdn-cache-control", b"surrogate-control"})
