"""Serve the connections of callers: read a request, authenticate it, find its route, answer."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import trio
from prometheus_client.registry import Collector

from tunnelmux.errors import ConnectError, SessionExpired, SessionNotFound
from tunnelmux.http import Refusal, Refused, RequestHead, VisitorGone
from tunnelmux.http.head import first_value
from tunnelmux.limits import IngressLimits, InternalLimits
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.proxy.internal import gathering
from tunnelmux.proxy.internal.access import Access
from tunnelmux.proxy.internal.answers import Answer, ApiConnection, ApiError
from tunnelmux.proxy.internal.bodies import Closed, Session, SessionList, Status
from tunnelmux.proxy.internal.body import read_whole_body
from tunnelmux.proxy.internal.decisions import DecisionCalls
from tunnelmux.proxy.internal.device_traffic import TrafficCalls
from tunnelmux.proxy.internal.events import EventStreamer
from tunnelmux.proxy.internal.exec import CommandCalls
from tunnelmux.proxy.internal.forward_http import (
    HttpForwarder,
    base64_length,
    decode_forward_request,
    too_large,
)
from tunnelmux.proxy.internal.forward_stream import LeaseRuns, StreamForwarder, no_leases
from tunnelmux.proxy.internal.gathering import holder
from tunnelmux.proxy.internal.inspections import InspectionCalls
from tunnelmux.proxy.internal.metrics import Gauges, Metrics
from tunnelmux.proxy.internal.openapi import describe
from tunnelmux.proxy.internal.queries import SessionsQuery, read_query
from tunnelmux.proxy.internal.request_feed import RequestFeedCalls
from tunnelmux.proxy.internal.routes import Call, Others, Route, RouteTable
from tunnelmux.proxy.internal.sessions import ForwardGate
from tunnelmux.proxy.internal.visits import VisitCalls
from tunnelmux.relay import abort
from tunnelmux.sessions import (
    CLOSED_BY_CALL,
    DeviceStore,
    EventLog,
    SessionHandle,
    shorten_token,
)
from tunnelmux.transports import start_server_tls
from tunnelmux.transports.admission import Admission, Place, source_of
from tunnelmux.wire import CALLER_FIELD

__all__ = ["InternalServer", "InternalSettings"]

_log = get_logger("proxy.internal")

_JSON_SLACK = 1_048_576
# Bytes of a forward/http call that are not its body: method, path, fields and the keys of JSON.

_GRACE = 1.0
# Seconds before an unauthenticated connection counts against its address' share: a back end that
# makes a thousand calls at once is no attack.

_REFUSING_AT_ONCE = 64
# Concurrent 503 answers to callers over the limit; further ones are reset.

_REFUSAL_TIMEOUT = 1.0
# Seconds to send one of these.

_ANSWER_TIMEOUT = 60.0
# Seconds in which a caller must read a whole answer. On a back end's network 16 MiB take two; a
# caller that takes a minute does not read.


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalSettings:
    """The settings of a connection from its start; a reload makes new ones."""

    access: Access = field(default_factory=Access)
    limits: InternalLimits = field(default_factory=InternalLimits)
    http_limits: IngressLimits = field(default_factory=IngressLimits)


class InternalServer:
    """Serves the connections of callers.

    `events` are sent to readers, `counts` are those of this process. `gauges` and the collectors
    `more` return the metrics of the rest of the proxy; `dispatcher` runs commands.
    """

    def __init__(
        self,
        store: DeviceStore,
        events: EventLog,
        gauges: Gauges = dict,
        *,
        dispatcher: Dispatcher,
        settings: InternalSettings | None = None,
        more: Iterable[Collector] = (),
        lease_runs: LeaseRuns = no_leases,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.decisions = DecisionCalls()
        """Answers questions about visitors' access, once it has the gate of visitors."""
        self.others: Others | None = None
        """The other workers, which are asked for their part of an answer."""
        self._lease_runs = lease_runs
        self._settings = settings or InternalSettings()
        self.is_draining = False
        self.in_progress = 0
        """Calls in progress; streams that only a caller ends do not count."""
        self._store = store
        self._visits = dispatcher.visits
        self._callers: set[ApiConnection] = set()
        self._strangers = Admission("internal", grace=_GRACE, by_share=True)
        """The places for callers that are not authenticated yet."""
        self._known: set[Place] = set()  # the former places of authenticated callers
        self._refusing = 0
        self._turned_away = RepeatedLines("internal call refused")
        self._gate = ForwardGate()
        self._http = HttpForwarder(store, self._gate, dispatcher.visits.feed)
        self._events = EventStreamer(events)
        self._gauges = gauges
        self._dispatcher = dispatcher
        self._commands = CommandCalls(dispatcher)
        collectors = (*dispatcher.figures.collectors, *more)
        self.metrics = Metrics(
            self._gauges_now, events.counts if counts is None else counts, collectors
        )
        self.table = RouteTable(self._routes())
        self._description = msgspec.json.encode(describe(self.table.routes))
        self.configure(self._settings)

    def _routes(self) -> list[Route]:
        visits = VisitCalls(self._visits)
        traffic = TrafficCalls(self._store, self._visits)
        inspections = InspectionCalls(self._visits.inspector, self._http, self._store)
        feed = RequestFeedCalls(self._visits.feed, self._events.draining)
        streams = StreamForwarder(self._store, self._gate, self._visits, self._lease_runs)
        return [
            Route("POST", "/internal/forward/http", answer=self._forward_http),
            Route("POST", "/internal/forward/raw", stream=streams.raw),
            Route("GET", "/internal/forward/ws", stream=streams.websocket),
            Route("POST", "/internal/exec", stream=self._commands.serve, is_work=True),
            Route("GET", "/internal/session/{token}", answer=self._get_session),
            Route("POST", "/internal/session/{token}/close", answer=self._close_session),
            Route(
                "GET",
                "/internal/sessions",
                answer=self._list_sessions,
                gather=gathering.sessions,
            ),
            Route("GET", "/internal/traffic", answer=traffic.list, gather=gathering.traffic),
            Route(
                "GET",
                "/internal/access",
                answer=self.decisions.decide,
                gather=gathering.decision,
            ),
            Route("GET", "/internal/visits", answer=visits.list, gather=gathering.visits),
            Route("POST", "/internal/visits/{id}/close", answer=visits.close, gather=holder),
            Route("GET", "/internal/events", stream=self._events.serve),
            Route("GET", "/internal/requests", stream=feed.serve),
            *self._inspection_routes(inspections),
            Route("GET", "/healthz", answer=self._health),
            Route("GET", "/readyz", answer=self._readiness),
            Route("GET", "/metrics", answer=self._metrics, gather=gathering.figures),
            Route("GET", "/openapi.json", answer=self._openapi),
        ]

    def _inspection_routes(self, calls: InspectionCalls) -> list[Route]:
        path = "/internal/inspections"
        one = f"{path}/{{id}}"
        request = f"{one}/requests/{{request}}"
        return [
            Route("GET", path, answer=calls.list, gather=gathering.all_inspections),
            Route("POST", path, answer=calls.begin, gather=gathering.everywhere),
            Route("GET", one, answer=calls.show, gather=gathering.all_of_one),
            Route("POST", f"{one}/close", answer=calls.end, gather=gathering.everywhere),
            Route("GET", request, answer=calls.request, gather=holder),
            Route("POST", f"{request}/replay", answer=calls.replay, gather=holder),
        ]

    # -- from outside -----------------------------------------------------------------------

    def configure(self, settings: InternalSettings) -> None:
        """Use these settings from now on. When the credentials change, the old ones are void at
        once: connections end after their current call. Open streams stay open.
        """
        if settings.access != self._settings.access:
            for server in self._callers:
                server.finish_soon()
        self._settings = settings
        self._strangers.configure(
            limit=settings.limits.max_callers,
            per_address=settings.http_limits.max_arrivals_per_address,
        )

    def drain(self) -> None:
        """End event streams, and every connection after its current call."""
        self.is_draining = True
        self._events.draining.set()
        for server in self._callers:
            server.finish_soon()

    @property
    def open_connections(self) -> int:
        """How many connections are open, authenticated or not."""
        return len(self._known) + len(self._strangers)

    def enter(self, remote: str) -> Place | None:
        """A place for a connection that was accepted just now; None when there is none."""
        if (
            self.open_connections >= self._settings.limits.max_callers
            and not self._strangers.make_room_for(remote)
        ):
            return None
        return self._strangers.enter(remote)

    def enter_or_wait(
        self, _connection: socket.socket, remote: str, seated: Callable[[Place], object]
    ) -> bool:
        """Call `seated` with that place; False when there is none."""
        place = self.enter(remote)
        if place is not None:
            seated(place)
        return place is not None

    def turn_out_waiting(self) -> None:
        """Callers do not wait: there is nothing to do."""

    async def handle(
        self, stream: trio.abc.Stream, remote: str, place: Place | None = None
    ) -> None:
        """Serve one caller until its connection is over, and close it. `remote` is `host:port`. A
        caller without a `place` is refused."""
        settings = self._settings
        if place is None:
            await self._turn_away(stream, remote, settings)
            return
        if not place.is_held:  # others got it before this began
            await abort(stream)
            return
        scope = trio.CancelScope()
        place.on_give_way = scope.cancel
        try:
            with scope, place:
                await self._shake_hands_and_serve(stream, remote, settings, place)
            if scope.cancelled_caught:
                await abort(stream)
        except ConnectError as error:
            if self._turned_away.may_write(source_of(remote)):
                _log.info("internal call refused", caller=remote, cause=str(error))
            await abort(stream)
        finally:
            self._known.discard(place)

    def _know(self, place: Place) -> None:
        """Note that the caller has authenticated: it keeps its connection when places run out."""
        if place.is_held:
            place.leave()
            self._known.add(place)

    async def _shake_hands_and_serve(
        self, stream: trio.abc.Stream, remote: str, settings: InternalSettings, place: Place
    ) -> None:
        if settings.access.tls is not None and isinstance(stream, trio.SocketStream):
            stream = await start_server_tls(
                stream, settings.access.tls, timeout=settings.http_limits.handshake_timeout
            )
            if settings.access.asks_for_certificate:
                self._know(place)
        await self._serve(ApiConnection(stream, settings.http_limits), remote, settings, place)

    async def _serve(
        self, server: ApiConnection, remote: str, settings: InternalSettings, place: Place
    ) -> None:
        if settings.access != self._settings.access:
            await server.abort()  # changed during the handshake
            return
        self._callers.add(server)
        try:
            while await self._serve_one(server, remote, settings, place):
                pass
        except VisitorGone:
            await server.abort()
        except BaseException:
            await server.abort()
            raise
        finally:
            self._callers.discard(server)

    async def serve_sibling(self, stream: trio.abc.Stream, name: str) -> None:
        """Serve one call of another worker, which has authenticated the caller. The answer is about
        this process only."""
        server = ApiConnection(stream, self._settings.http_limits)
        self._callers.add(server)
        try:
            while await self._serve_one(server, name, self._settings, None):
                pass
        except VisitorGone:
            await server.abort()
        except Exception:  # noqa: BLE001  a bug met by one call must not end the worker
            _log.exception("unhandled error in connection", sibling=name)
            await server.abort()
        except BaseException:
            await server.abort()
            raise
        finally:
            self._callers.discard(server)

    async def _turn_away(
        self, stream: trio.abc.Stream, remote: str, settings: InternalSettings
    ) -> None:
        limit = settings.limits.max_callers
        if self._turned_away.may_write(source_of(remote)):
            what = {"caller": remote, "code": "TOO_MANY_CALLERS", "limit": limit}
            _log.warning("internal call refused", **what)
        if settings.access.tls is not None or self._refusing >= _REFUSING_AT_ONCE:
            await abort(stream)
            return
        self._refusing += 1
        try:
            with trio.move_on_after(_REFUSAL_TIMEOUT):
                message = f"{limit} connections are open: close some, or raise limits.max_callers"
                refusal = Refusal(503, "too-many-visitors", message, retry_after=1)
                await ApiConnection(stream, settings.http_limits).refuse(refusal)
        finally:
            self._refusing -= 1

    # -- one request --------------------------------------------------------------------------

    async def _serve_one(
        self,
        server: ApiConnection,
        remote: str,
        settings: InternalSettings,
        place: Place | None,
    ) -> bool:
        """Serve one request; returns whether the connection can go on. A connection without a place
        is another worker's."""
        try:
            request = await server.read_request()
        except Refused as refused:
            await server.refuse(refused.refusal)
            return False
        if request is None:
            await server.close()
            return False
        self.in_progress += 1
        try:
            return await self._respond(server, request, remote, settings, place)
        finally:
            self.in_progress -= 1

    async def _respond(
        self,
        server: ApiConnection,
        request: RequestHead,
        remote: str,
        settings: InternalSettings,
        place: Place | None,
    ) -> bool:
        others = self.others if place is not None else None
        if place is None and (caller := first_value(request.headers, CALLER_FIELD.lower())):
            remote = caller.decode("latin-1")
        route: Route | None = None
        code = "ok"
        started = trio.current_time()
        try:
            if place is not None:
                settings.access.check(request)
                self._know(place)
            route, parameters, query = self.table.find(request)
            call = Call(
                request,
                server,
                settings.limits,
                settings.http_limits,
                parameters,
                query,
                remote,
                others,
            )
            if route.answer is None:
                await self._stream(route, call)
                return False
            if others is not None and route.gather is not None:
                answer = await route.gather(route.answer, call)
            else:
                answer = await route.answer(call)
        except ApiError as error:
            code, answer = error.code, Answer(error.body(), error.status, headers=error.headers)
            if not error.forwarded:  # logged already, with its session
                self._log_refusal(request, route, error, remote)
        except VisitorGone:
            raise
        except Exception:
            if server.response_started:
                raise  # the listener logs it
            _log.exception("unhandled error in a call", path=_logged_path(route))
            code = "INTERNAL_ERROR"
            failure = ApiError(code, "the proxy failed here: its log says where")
            answer = Answer(failure.body(), failure.status)
        await self._send(server, answer)
        if place is not None:
            self._count(route, code, trio.current_time() - started)
        if not server.reusable:
            await server.close()
        return server.reusable

    async def _stream(self, route: Route, call: Call) -> None:
        assert route.stream is not None
        if call.others is self.others:
            self._count(route, "started", None)
        if route.is_work:
            await route.stream(call)
            return
        self.in_progress -= 1  # a drain waits for streams to agents, not for event streams
        try:
            await route.stream(call)
        finally:
            self.in_progress += 1

    async def _send(self, server: ApiConnection, answer: Answer) -> None:
        try:
            with trio.fail_after(_ANSWER_TIMEOUT):
                await server.send_answer(answer)
        except trio.TooSlowError:
            raise VisitorGone(f"it took no answer within {_ANSWER_TIMEOUT:g} s") from None

    def _count(self, route: Route | None, code: str, seconds: float | None) -> None:
        if route is None:  # a path that the caller made up must not become a time series
            self.metrics.count("other", "other", code)
        else:
            self.metrics.count(route.method, route.path, code, seconds)

    def _log_refusal(
        self, request: RequestHead, route: Route | None, error: ApiError, remote: str
    ) -> None:
        if error.status == 401 and not self._turned_away.may_write(source_of(remote)):
            return  # a stranger's; what our own back end does wrong is always said
        _log.warning(
            "internal call refused",
            caller=remote,
            method=request.method.decode("ascii"),
            path=_logged_path(route),
            status=error.status,
            code=error.code,
            cause=error.message,
        )

    # -- the plain routes ---------------------------------------------------------------------

    async def _forward_http(self, call: Call) -> Answer:
        body = await read_whole_body(
            call,
            most=base64_length(call.limits.max_forward_body) + _JSON_SLACK,
            over=too_large(call.limits.max_forward_body),
        )
        wanted = decode_forward_request(body)
        wanted.session_token = wanted.session_token or call.query_token
        try:
            response = await self._http.forward(wanted, call.limits, call.http_limits, call.remote)
        except ApiError as error:
            error.forwarded = bool(wanted.session_token)
            _log.warning(
                "internal forward failed",
                token=shorten_token(wanted.session_token),
                code=error.code,
                cause=error.message,
            )
            raise
        return Answer.of(response)

    async def _get_session(self, call: Call) -> Answer:
        handle = await self._find(call)
        summary = handle.summary()
        return Answer.of(
            Session(
                token=summary.token,
                connected=not handle.is_closed,
                connected_at=summary.connected_at,
                last_heartbeat=summary.last_heartbeat,
                remote_addr=summary.remote_addr,
                user_id=summary.user_id,
                device_id=summary.device_id,
            )
        )

    async def _close_session(self, call: Call) -> Answer:
        handle = await self._find(call)
        await handle.close(CLOSED_BY_CALL)
        if not handle.is_closed:
            raise ApiError("TUNNEL_ERROR", f"{handle.elsewhere}, which has it, did not answer")
        await self._store.unregister(handle.token, handle)
        return Answer.of(Closed())

    async def _find(self, call: Call) -> SessionHandle:
        try:
            return await self._store.reach(call.parameters["token"])
        except (SessionNotFound, SessionExpired):
            raise ApiError("NOT_FOUND", "session not found") from None

    async def _list_sessions(self, call: Call) -> Answer:
        wanted = read_query(call.query, SessionsQuery)
        sessions = [
            summary if wanted.agents else summary.without_agent()
            for summary in await self._store.list()
            if summary.device_id == (wanted.device or summary.device_id)
        ]
        return Answer.of(SessionList(sessions, len(sessions)))

    async def _health(self, _: Call) -> Answer:
        return Answer.of(Status("ok"))

    async def _readiness(self, _: Call) -> Answer:
        if self.is_draining:
            raise ApiError("DRAINING", "the proxy is shutting down")
        return Answer.of(Status("ready"))

    async def _metrics(self, _: Call) -> Answer:
        answer = self.metrics.render()
        if self.others is not None:
            # Counters must not fall when this process ends: the parent keeps them.
            self.others.tell_figures(answer.body)
        return answer

    async def _openapi(self, _: Call) -> Answer:
        return Answer(self._description)

    def _gauges_now(self) -> dict[str, tuple[str, float]]:
        return {
            **self._gauges(),
            **self._dispatcher.gauges(),
            "tunnelmux_internal_callers": ("Open connections.", self.open_connections),
            "tunnelmux_internal_forwards": ("Forwards in progress.", self._gate.total),
            "tunnelmux_internal_event_readers": ("Event streams.", self._events.readers),
            "tunnelmux_internal_request_readers": (
                "Callers that watch requests.",
                self._visits.feed.reader_count,
            ),
        }


def _logged_path(route: Route | None) -> str:
    # The path may hold a token, and that of an unauthenticated caller may hold anything.
    return route.path if route is not None else "unknown"
