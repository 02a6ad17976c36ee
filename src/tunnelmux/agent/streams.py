"""Serve streams from the proxy: connect them to a service, answer for the agent itself, or
refuse.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import trio

import tunnelmux
from tunnelmux.agent.assist.desk import AssistDesk, LeaseVisit
from tunnelmux.agent.assist.requests import ASSIST_PATHS, serve_assist
from tunnelmux.agent.commands import CommandExecutor
from tunnelmux.agent.exec_api import serve_exec
from tunnelmux.agent.figures import AgentFigures
from tunnelmux.agent.health import HealthChecks
from tunnelmux.agent.log_api import serve_logs
from tunnelmux.agent.own_shell import OwnShell
from tunnelmux.agent.room import Room
from tunnelmux.agent.rotation import Rotation
from tunnelmux.agent.services import ServiceTable, may_be_relayed
from tunnelmux.agent.short_body import read_short_body
from tunnelmux.agent.sites import SiteTranslation, translation_for
from tunnelmux.agent.stream_lines import StreamLines
from tunnelmux.agent.targets import OpenTarget, TargetConnector
from tunnelmux.config import AgentConfig, ServiceConfig
from tunnelmux.config.agent import OWN_SHELL
from tunnelmux.descriptors import files_allowed
from tunnelmux.http import (
    Exchange,
    KeptUpstream,
    Refusal,
    Refused,
    RequestHead,
    ServerConnection,
    UnfinishedHeads,
    Upstream,
    VisitorGone,
    accept_connect,
    forward,
    requested_service,
)
from tunnelmux.http.fields import end_to_end, replace_host, without_own_fields
from tunnelmux.http.head import Field, first_value
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import get_logger
from tunnelmux.relay import RelayResult, abort, relay
from tunnelmux.wire import (
    AGENT_AUTHORITY,
    CREDENTIAL_PATH,
    EXEC_PATH,
    IDENTITY_FIELDS,
    LEASE_FIELD,
    LOGS_PATH,
    MOVE_PATH,
    NODES_PATH,
    RELAY_FIELD,
    SERVICE_FIELD,
    SILENCE_PATH,
)

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing

__all__ = ["StreamServer"]

_log = get_logger("agent")

_CREDENTIAL = CREDENTIAL_PATH.decode("ascii")
_LOGS = LOGS_PATH.decode("ascii")
_MOVE = MOVE_PATH.decode("ascii")
_NODES = NODES_PATH.decode("ascii")
_SILENCE = SILENCE_PATH.decode("ascii")

_LONGEST_NODES = 16_384
# Bytes of what a proxy tells of its nodes: as much as the head of its answer may have.

_LOGGED_PATH = 512
# Characters of a path in a line about its request: a visitor may send 64 KB of it each time.

_SIDES: dict[str | None, Literal["proxy", "target"] | None] = {
    None: None,
    "a": "proxy",
    "b": "target",
}
# Names of the two sides of a relay in the log.


class _Visit(NamedTuple):
    """A connection to a target, from its beginning to its end."""

    service: str
    lease: LeaseVisit | None


class StreamServer:
    """Serves the streams of this agent's sessions, one task each."""

    def __init__(
        self,
        config: AgentConfig,
        commands: CommandExecutor,
        figures: AgentFigures | None = None,
        open_target: OpenTarget | None = None,
    ) -> None:
        self._open_target = open_target
        self.shell: OwnShell | None = None
        """The agent's own shell."""
        self._started = trio.current_time()
        self.figures = figures or AgentFigures()
        """Counts streams, requests and failures of targets."""
        self.rotation: Rotation | None = None
        """Takes new tokens for this device, where that is possible."""
        self.move: Callable[[Session], Awaitable[bool]] | None = None
        """Makes the session that follows this one, before it ends; whether that is there."""
        self.learn_nodes: Callable[[Session, str], None] | None = None
        """Is told of the nodes of the proxy's cluster."""
        self.desk: AssistDesk | None = None
        """Decides about leases."""
        self.is_ending = False
        """Whether followers of the log must be ended."""
        self._served: Counter[Session] = Counter()
        self._unfinished: dict[Session, UnfinishedHeads] = {}
        self.room = Room()
        """Places for connections to targets."""
        self.lines = StreamLines()
        """Writes what the log says of streams."""
        self.tracing: Tracing | None = None
        """What makes spans of streams, if anything does."""
        self.health = HealthChecks(config.limits.ingress)
        """The results of health checks."""
        self.configure(config, commands)

    def configure(self, config: AgentConfig, commands: CommandExecutor) -> None:
        """Use this configuration for new streams; live ones go on.

        Raises ConfigError, with nothing changed, when a file of a service cannot be used.
        """
        services = ServiceTable(config)
        self._targets = {
            service.name: TargetConnector(service, self._opener_of(service), self.health.down)
            for service in services
        }
        self.health.configure((service, self._targets[service.name]) for service in services)
        self._services = services
        self._commands = commands
        self._name = config.device.name
        self._limits = config.limits.ingress
        self._max_streams = config.limits.session.max_streams
        files = files_allowed() if self._open_target is None else None
        self.room.configure(files, len(self._targets), self._max_streams)
        self.figures.keep_services(self._targets)

    def _opener_of(self, service: ServiceConfig) -> OpenTarget | None:
        return self._open_shell if service.target == OWN_SHELL else self._open_target

    async def _open_shell(self, service: ServiceConfig) -> trio.abc.HalfCloseableStream:
        assert self.shell is not None  # set by the agent, which alone offers it
        return await self.shell.open(service)

    @property
    def services(self) -> ServiceTable:
        """The declared services."""
        return self._services

    @property
    def active(self) -> int:
        """Streams being served now."""
        return self._served.total()

    def has_room(self, session: Session) -> bool:
        """Whether another stream of this session may be served. Each has its own streams, so that
        one that is flooded takes none from another."""
        return self._served[session] < self._max_streams

    def begin(self, session: Session) -> None:
        """A stream of this session is served from now on."""
        self._served[session] += 1

    def end(self, session: Session) -> None:
        """It is over."""
        self._served[session] -= 1
        if not self._served[session]:
            del self._served[session]
            self._unfinished.pop(session, None)

    async def serve(self, stream: Stream) -> None:
        """Serve one stream to its end. Failures are logged and end this stream only."""
        # The engine limits live streams; this limit includes handlers that still unwind.
        session = stream.session
        if not self.has_room(session):
            stream.reset()
            cause = "limits.max_streams are in use"
            if self.lines.reset.may_write(cause):
                _log.warning("stream reset", stream=stream.id, cause=cause)
            return
        self.begin(session)
        self.figures.streams += 1
        try:
            await self._serve_requests(stream)
        except VisitorGone as exc:
            stream.reset()
            if self.lines.lost.may_write("visitors"):
                _log.info("stream lost", stream=stream.id, cause=str(exc))
        except Exception as exc:  # noqa: BLE001  a bug met by one stream must not end the others
            stream.reset()
            if self.lines.failed.may_write(type(exc).__name__):
                _log.exception("stream failed", stream=stream.id, effect="other streams go on")
        except BaseException:
            stream.reset()
            raise
        finally:
            self.end(session)

    async def _serve_requests(self, stream: Stream) -> None:
        unfinished = self._unfinished.setdefault(
            stream.session, UnfinishedHeads(self._limits.max_unfinished_heads)
        )
        server = ServerConnection(stream, self._limits, unfinished)
        kept = KeptUpstream()
        try:
            await self._serve_each(server, stream, kept)
        finally:
            await kept.drop()

    async def _serve_each(
        self, server: ServerConnection, stream: Stream, kept: KeptUpstream
    ) -> None:
        while True:
            request = refusal = None
            try:
                request = await server.read_request()
            except Refused as exc:
                refusal = exc.refusal
            if refusal is not None:  # outside of the block above, where `exc` keeps the head
                self._log_refusal(refusal, stream)
                await server.refuse(refusal)
                return
            if request is None:
                await server.close()
                return
            if request.method == b"CONNECT":
                await self._connect(server, request, stream)
                return
            await self._answer(server, request, stream, kept)
            if not server.reusable:
                await server.close()
                return

    # -- HTTP -------------------------------------------------------------------------------

    async def _answer(
        self,
        server: ServerConnection,
        request: RequestHead,
        stream: Stream,
        kept: KeptUpstream,
    ) -> None:
        service: ServiceConfig | None = None
        visit: _Visit | None = None
        try:
            if request.authority is not None and request.authority.lower() == AGENT_AUTHORITY:
                await self._answer_itself(server, request, stream)
                return
            wanted = first_value(request.headers, SERVICE_FIELD.lower())
            service = self._services.for_http(wanted.decode("latin-1") if wanted else None)
            visit = self._enter(service, request, stream)
            connector = self._targets[service.name]
            keeps = kept.wanted(request, service.name)
            target = await kept.take(service.name)
            if target is None:
                target = await connector.open_http(self._limits.connect_timeout)
            connected = trio.current_time()
        except Refused as exc:
            self._leave(visit)
            self._note_refusal(exc.refusal, stream, service)
            await server.send_refusal(exc.refusal)
            return
        except BaseException:
            self._leave(visit)
            raise
        exchange = Exchange(request=request)
        sites = translation_for(service, request)
        upstream = Upstream(
            stream=target,
            headers=_fields_for(service, request, sites),
            describe=f'the target of service "{service.name}"',
            response_timeout=service.response_timeout or self._limits.response_timeout,
            response_headers=_answer_fields(service, request, sites),
            explain_silence=connector.explain_silence,
            keeps=keeps,
        )
        try:
            await forward(server, request, upstream, self._limits, exchange)
            kept.put_back(service.name, upstream)
        finally:
            self._leave(visit, exchange.bytes_in, exchange.bytes_out)
            self._note_exchange(stream, service, request, exchange, connected)

    def _note_exchange(
        self,
        stream: Stream,
        service: ServiceConfig,
        request: RequestHead,
        exchange: Exchange,
        connected: float,
    ) -> None:
        self.figures.request_served(exchange.status)
        if exchange.reason is not None:
            self.figures.target_failed(service.name, exchange.reason)
        if exchange.problem is None or self.lines.cut.may_write(service.name):
            _log_exchange(stream, service, request, exchange)
        fine = exchange.visitor_left or exchange.problem is None
        self.tell_span(
            request.method.decode("ascii"),
            (exchange.started, connected),
            first_value(request.headers, b"traceparent"),
            {
                "tunnelmux.service": service.name,
                "url.path": request.path,
                "http.response.status_code": exchange.status or None,
                "error.type": exchange.reason,
            },
            None if fine else exchange.problem,
        )

    async def _answer_itself(
        self, server: ServerConnection, request: RequestHead, stream: Stream
    ) -> None:
        if request.path == EXEC_PATH:
            await serve_exec(server, request, self._commands, self._limits.response_timeout)
            return
        if request.path == _CREDENTIAL and self.rotation is not None:
            await self.rotation.serve(server, request, self._limits.response_timeout)
            return
        if request.path == _MOVE and self.move is not None:
            await self._move(server, request, partial(self.move, stream.session))
            return
        if request.path == _NODES and self.learn_nodes is not None:
            await self._take_nodes(server, request, partial(self.learn_nodes, stream.session))
            return
        if request.path == _LOGS:
            await serve_logs(server, request, lambda: self.is_ending)
            return
        if request.path == _SILENCE:
            await self._explain_silence(server, request)
            return
        if request.path in ASSIST_PATHS and self.desk is not None:
            await serve_assist(self.desk, server, request, self._limits.response_timeout)
            return
        if request.path != "/v1/info":
            known = f"there are /v1/info, {_LOGS} and {EXEC_PATH}"
            message = f"The agent has no {_cut(request.path)}; {known}."
            raise Refused(Refusal(404, "bad-request", message))
        if request.method not in {b"GET", b"HEAD"}:
            allow = [(b"Allow", b"GET, HEAD")]
            raise Refused(
                Refusal(405, "bad-request", "/v1/info allows GET and HEAD only.", headers=allow)
            )
        body = json.dumps(self._info()).encode() + b"\n"
        await server.send_response(
            200,
            b"OK",
            [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")],
            length=len(body),
            first=b"" if request.method == b"HEAD" else body,
            end=True,
        )

    async def _move(
        self, server: ServerConnection, request: RequestHead, move: Callable[[], Awaitable[bool]]
    ) -> None:
        if request.method != b"POST":
            allow = [(b"Allow", b"POST")]
            raise Refused(Refusal(405, "bad-request", f"{_MOVE} takes POST only.", headers=allow))
        if not await move():
            message = "The next session could not be made: the log of this agent says why."
            raise Refused(Refusal(502, "device-offline", message))
        await server.send_response(204, b"No Content", [], end=True)

    async def _take_nodes(
        self, server: ServerConnection, request: RequestHead, learn: Callable[[str], None]
    ) -> None:
        if request.method != b"POST":
            allow = [(b"Allow", b"POST")]
            raise Refused(Refusal(405, "bad-request", f"{_NODES} takes POST only.", headers=allow))
        body = await read_short_body(server, _LONGEST_NODES, self._limits.response_timeout)
        learn(body.decode("latin-1"))
        await server.send_response(204, b"No Content", [], end=True)

    async def _explain_silence(self, server: ServerConnection, request: RequestHead) -> None:
        wanted = first_value(request.headers, SERVICE_FIELD.lower())
        service = self._services.for_http(wanted.decode("latin-1") if wanted else None)
        cause = await self._targets[service.name].explain_silence()
        if cause is None:
            await server.send_response(204, b"No Content", [], end=True)
            return
        body = cause.encode("utf-8")
        headers = [(b"Content-Type", b"text/plain; charset=utf-8")]
        await server.send_response(200, b"OK", headers, length=len(body), first=body, end=True)

    def _info(self) -> dict[str, object]:
        return {
            "name": self._name,
            "version": tunnelmux.__version__,
            "uptime": round(trio.current_time() - self._started, 3),
            "services": [
                {
                    "name": service.name,
                    "scheme": service.scheme,
                    "default": service is self._services.default,
                    "down": self.health.down(service.name),
                }
                for service in self._services
            ],
            "exec": self._commands.figures(),
        }

    # -- CONNECT ----------------------------------------------------------------------------

    async def _connect(
        self, server: ServerConnection, request: RequestHead, stream: Stream
    ) -> None:
        service: ServiceConfig | None = None
        visit: _Visit | None = None
        result = RelayResult()
        began = trio.current_time()
        try:
            service = self._services.for_connect(requested_service(request))
            visit = self._enter(service, request, stream)
            connector = self._targets[service.name]
            target = await connector.open(self._limits.connect_timeout)
        except Refused as exc:
            self._leave(visit)
            self._note_refusal(exc.refusal, stream, service)
            await server.refuse(exc.refusal)
            return
        except BaseException:
            self._leave(visit)
            raise
        started = trio.current_time()
        try:
            early = await accept_connect(server)
            await relay(stream, target, from_a=early, result=result)
        except BaseException:
            await abort(target)  # relay() has done so already; without it no task would
            raise
        finally:
            self._leave(visit, result.bytes_a_to_b, result.bytes_b_to_a)
            self.figures.relays["finished" if result.ended == "finished" else "broken"] += 1
            self.lines.relay_ended(
                stream.id,
                service.name,
                result.bytes_a_to_b,
                result.bytes_b_to_a,
                trio.current_time() - started,
                "not begun" if result.ended == "running" else result.ended,
                _SIDES[result.broken_side],
                result.error,
            )
            self.tell_span(
                "CONNECT",
                (began, started),
                first_value(request.headers, b"traceparent"),
                {
                    "tunnelmux.service": service.name,
                    "tunnelmux.bytes_to_target": result.bytes_a_to_b,
                    "tunnelmux.bytes_from_target": result.bytes_b_to_a,
                },
                str(result.error) if result.error is not None else None,
            )

    def tell_span(
        self,
        name: str,
        times: tuple[float, float | None],
        traceparent: bytes | None,
        attributes: dict[str, str | int | None],
        problem: str | None,
    ) -> None:
        """Make the span of something that is over, where it is to have one; *times* are when it
        began, and when its target was connected."""
        tracing, parent = self.tracing, traceparent or b""
        if tracing is None or not tracing.chooses(parent):
            return
        began, connected = times
        steps = {"target connect": connected - began} if connected is not None else {}
        seconds = trio.current_time() - began
        tracing.tell(name, seconds, attributes, steps=steps, parent=parent, problem=problem)

    def _note_refusal(
        self, refusal: Refusal, stream: Stream, service: ServiceConfig | None
    ) -> None:
        self._log_refusal(refusal, stream, service)
        if service is not None:
            self.figures.target_failed(service.name, refusal.reason)

    def _log_refusal(
        self, refusal: Refusal, stream: Stream, service: ServiceConfig | None = None
    ) -> None:
        source = refusal.reason if service is None else f"{service.name} {refusal.reason}"
        if self.lines.refused.may_write(source):
            _log_refusal(refusal, stream)

    # -- leases -----------------------------------------------------------------------------

    def _enter(self, service: ServiceConfig, request: RequestHead, stream: Stream) -> _Visit:
        """Register a stream that ends with its lease, and give its connection a place. Raises
        Refused where there is no such lease, or no place."""
        if not self.room.has(service.name):
            raise Refused(self.room.refusal(service.name))
        named = first_value(request.headers, LEASE_FIELD.lower())
        lease_id = named.decode("latin-1") if named else None
        lease: LeaseVisit | None = None
        if self.desk is not None and (lease_id is not None or service.lease_only):
            objection = self.desk.objection(service.name, lease_id)
            if objection is not None:
                message = f"{objection[:1].upper()}{objection[1:]}."
                raise Refused(Refusal(403, "lease-over", message))
            lease = self.desk.enter(service.name, lease_id, stream.reset)
        self.room.enter(service.name)
        return _Visit(service.name, lease)

    def _leave(self, visit: _Visit | None, bytes_in: int = 0, bytes_out: int = 0) -> None:
        if visit is None:
            return
        self.room.leave(visit.service)
        if self.desk is not None:
            self.desk.leave(visit.lease, bytes_in, bytes_out)


def _log_refusal(refusal: Refusal, stream: Stream) -> None:
    _log.warning(
        "stream refused",
        stream=stream.id,
        status=refusal.status,
        reason=refusal.reason,
        cause=refusal.message,
        **({"target": refusal.detail} if refusal.detail else {}),
    )


def _fields_for(
    service: ServiceConfig, request: RequestHead, sites: SiteTranslation | None
) -> list[Field]:
    passing = end_to_end(request.headers)
    fields = without_own_fields(passing)
    # The visitor's identity: only the proxy may state it.
    fields += [pair for pair in passing if pair[0].lower() in IDENTITY_FIELDS]
    if sites is not None:
        return sites.of_request(fields)
    if service.host is not None:
        return replace_host(fields, service.host.encode("ascii"))
    return fields


def _answer_fields(
    service: ServiceConfig, request: RequestHead, sites: SiteTranslation | None
) -> Callable[[list[Field]], list[Field]]:
    """A function that rewrites the fields of a target's answer. Fields of this system are removed
    from it. A proxy that asked is told that it may relay further requests raw, unless the agent
    rewrites them or adds TLS.
    """
    if sites is not None:
        return lambda headers: sites.of_answer(without_own_fields(headers))
    if not may_be_relayed(service) or first_value(request.headers, RELAY_FIELD.lower()) is None:
        return without_own_fields
    offer = (RELAY_FIELD, service.name.encode("ascii"))
    return lambda headers: [*without_own_fields(headers), offer]


def _log_exchange(
    stream: Stream, service: ServiceConfig, request: RequestHead, exchange: Exchange
) -> None:
    # A visitor may close a page with live events at any time: this is no error.
    fine = exchange.problem is None or exchange.visitor_left
    write: Callable[..., object] = _log.info if fine else _log.warning
    extra = {} if exchange.problem is None else {"cause": exchange.problem}
    write(
        "request served",
        stream=stream.id,
        service=service.name,
        method=request.method.decode("ascii"),
        path=_cut(request.path),
        status=exchange.status,
        bytes_to_target=exchange.bytes_in,
        bytes_from_target=exchange.bytes_out,
        duration=round(trio.current_time() - exchange.started, 3),
        **extra,
    )


def _cut(path: str) -> str:
    """The path as the log has it: its beginning, and how much there was of it."""
    if len(path) <= _LOGGED_PATH:
        return path
    return f"{path[:_LOGGED_PATH]}… ({len(path)} characters)"
