"""TCP ports of the proxy, each leading to one service of one device."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from tunnelmux.descriptors import files_allowed
from tunnelmux.http import ConnectFailed, UpstreamGone, open_connect
from tunnelmux.http.connect import CONNECT_ANSWER, ConnectStream, connect_head
from tunnelmux.http.refusal import REASONS, Refusal, Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import frequent_line, get_logger
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.elsewhere import HandsOver
from tunnelmux.proxy.visitors.groups import FAILURES, Groups, Wish
from tunnelmux.proxy.visitors.names import Destination
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.proxy.visitors.visit import PATIENCE, Visit, VisitRegister
from tunnelmux.relay import RelayResult, abort, relay
from tunnelmux.sessions import DeviceStore
from tunnelmux.transports.admission import source_of
from tunnelmux.transports.tcp import python_socket

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing
    from tunnelmux.pump.relay import Relay
    from tunnelmux.pump.sockets import BareSocket

__all__ = ["TcpIngressServer"]

_log = get_logger("proxy.tcp")
_LEFT = "the visitor"
# The beginning of problems that the visitor caused.

_log_relay = frequent_line(
    "proxy.tcp",
    "relay",
    *("device", "service", "visitor", "stream", "bytes_in", "bytes_out", "seconds"),
)


class TcpIngressServer:
    """Serves the connections of all TCP ports.

    TCP has no way to send a refusal, so a visitor whose service cannot be reached gets a reset, and
    one log line says why. Half-closes are passed on in both directions.
    """

    def __init__(
        self,
        store: DeviceStore,
        devices: DeviceRegister,
        visits: VisitRegister | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.visits = visits if visits is not None else VisitRegister()
        self._router = Router(store, devices, groups)
        self._limits = IngressLimits()
        self._most_in_all = _in_all()
        self._visitors: Counter[tuple[str, str]] = Counter()
        self._on_device: Counter[tuple[str, str]] = Counter()
        self._hand_over: HandsOver | None = None
        self.tracing: Tracing | None = None
        """What makes spans of connections, if anything does."""

    def configure(self, limits: IngressLimits) -> None:
        """Use these limits for new connections."""
        self._limits = limits
        self._most_in_all = _in_all()
        self._router.reserved_streams = limits.reserved_streams

    def hand_over_by(self, hand_over: HandsOver) -> None:
        """Pass visitors to the workers that have their devices, from now on."""
        self._hand_over = hand_over

    def take_or_pass(
        self,
        slot: str,
        nursery: trio.Nursery,
        device: str,
        service: str,
        local: BareSocket,
        remote: str,
    ) -> bool:
        """Like `take`, for a visitor who came to the listener of that slot, and may be passed to
        the worker that has the device.
        """
        if self._hand_over is not None:
            way = self._hand_over.way_to(device)
            if way == "unknown":
                if self._hand_over.pass_later(nursery, device, slot, local, remote):
                    return True
            elif way != "here" and way.pass_on(slot, local, remote):
                return True
        return self.take(nursery, device, service, local, remote)

    def take(
        self, nursery: trio.Nursery, device: str, service: str, local: BareSocket, remote: str
    ) -> bool:
        """Serve one visitor without a task, if the device is connected, here or at another node
        that is known, and a pump carries the session with it. False if not, and for a group, of
        which several devices may have to be tried. `nursery` is for visitors whose service does not
        answer at once and plainly.
        """
        limits = self._limits
        session = self._router.session_now(device)
        way = None if session is None else (session, b"", b"")
        if way is None and self._router.reaches_others:
            there = self._router.there_now(device)
            way = there.way_now() if there is not None else None
        if (
            way is None
            or self._full(device, service, remote) is not None
            or self._on_device[device, service] >= limits.max_streams_per_port
            or self._is_crowded(device, remote)
        ):
            return False
        visit = _RelayedVisit(self, nursery, device, service, local, remote)
        if not visit.open(*way):
            return False
        self._enter(visit)
        visit.wait_for("connect", limits)
        return True

    async def handle(self, device: str, service: str, stream: trio.abc.Stream, remote: str) -> None:
        """Serve one visitor of the port for `service` on `device`, which may be a group, and close
        its connection.

        `remote` is the visitor's address as `host:port`.
        """
        log = _log.bind(device=device, service=service, visitor=remote)
        if (limit := self._full(device, service, remote)) is not None:
            self.visits.figures.relays["refused"] += 1
            if self.visits.lines.relay.may_write(source_of(remote)):
                log.warning("relay refused", reason="too-many-visitors", limit=limit)
            await abort(stream)
            return
        visit = Visit(self.visits, "tcp", device=device, service=service, visitor=remote)
        self._enter(visit)
        try:
            if self._router.groups.find(device) is None:
                target = await self._connect(visit)
            else:
                target = await self._connect_one_of(visit)
            await self._relay(stream, target, visit)
        except UpstreamGone as exc:
            self.write(visit, f"the tunnel broke: {exc}", "tunnel-lost")
            await abort(stream)
        except Refused as exc:
            self.visits.figures.relays["refused"] += 1
            reason, message = exc.refusal.reason, exc.refusal.message
            if self.visits.lines.relay.may_write(visit.source):
                log.warning("relay refused", reason=reason, problem=message)
            self._trace(visit, message, reason)
            await abort(stream)
        except BaseException:
            await abort(stream)
            raise
        finally:
            self.leave(visit)

    async def _connect_one_of(self, visit: Visit) -> trio.abc.HalfCloseableStream:
        """A stream to the service on a device of the group that the visit is for. Raises as
        `_connect` does, when no device of it serves.
        """
        groups, named = self._router.groups, Destination(visit.device, visit.service)
        wish, tried = Wish(visit.source), set[str]()
        place = await self._router.place(named, wish)
        assert place is not None  # with no device, the group itself
        while True:
            tried.add(place.device)
            self._count(visit, -1)
            visit.go_to(place.device, place.service, named.device)
            self._count(visit, 1)
            try:
                return await self._connect(visit)
            except (Refused, UpstreamGone) as exc:
                if not isinstance(exc, Refused) or exc.refusal.reason in FAILURES:
                    groups.failed(place.device, place.service)
                other = await self._router.place(named, wish, without=tried)
                if other is None:
                    raise
                place = other

    async def _connect(self, visit: Visit) -> trio.abc.HalfCloseableStream:
        """A stream to the service on the visit's device. Raises Refused; UpstreamGone when the
        tunnel broke meanwhile.
        """
        limits = self._limits
        if self._on_device[visit.device, visit.service or ""] > limits.max_streams_per_port:
            message = (
                f"{limits.max_streams_per_port} connections to this service of the device are open "
                "(limits.max_streams_per_port): its other services keep the rest."
            )
            raise Refused(Refusal(503, "too-many-visitors", message))
        tunnel = await self._router.open_stream(visit.device, limits, visit)
        try:
            target = await open_connect(
                tunnel, visit.service or "", limits, answer_timeout=PATIENCE["connect"](limits)
            )
        except UpstreamGone:
            raise
        except BaseException:
            self.write(visit, "cut by the proxy's end")
            await abort(tunnel)
            raise
        visit.waits_for = "connect"
        return await self._agreed(visit, target)

    async def _agreed(self, visit: Visit, target: ConnectStream) -> trio.abc.HalfCloseableStream:
        """The bare stream, when it goes to another node and the service has agreed: a pump can then
        relay it, which is worth the wait. The same for a group, which has other devices. Otherwise
        the stream unchanged. Raises Refused.
        """
        stream = target.stream
        is_own = not isinstance(stream, Stream) or self._router.is_own(visit.device, stream.session)
        if is_own and not visit.named:
            return target
        try:
            await target.wait_answer()
        except ConnectFailed as error:
            reason = error.reason if error.reason in REASONS else "tunnel-lost"
            raise Refused(Refusal(502, reason, f"The device refused: {error}")) from error
        return target if target.has_early else stream

    async def begin_anew(self, visit: _RelayedVisit) -> None:
        """Serve a visitor again, after the known way over another node was stale or refused him.
        Nothing was read from him yet."""
        visitor = trio.SocketStream(trio.socket.from_stdlib_socket(python_socket(visit.local)))
        try:
            await self.handle(visit.device, visit.service or "", visitor, visit.visitor)
        except Exception:  # noqa: BLE001  a bug in one connection is no reason to drop the others
            _log.exception("unhandled error in connection", visitor=visit.visitor)
            await abort(visitor)

    async def go_on(self, visit: _RelayedVisit, stream: Stream) -> None:
        """Continue to serve a visitor whose relay was handed back."""
        limits = self._limits
        visitor = trio.SocketStream(trio.socket.from_stdlib_socket(python_socket(visit.local)))
        try:
            target = ConnectStream(stream, limits, PATIENCE["connect"](limits))
            await self._relay(visitor, target, visit)
        except Exception:  # noqa: BLE001  a bug in one connection is no reason to drop the others
            _log.exception("unhandled error in connection", visitor=visit.visitor)
            await abort(visitor)
        except BaseException:
            await abort(visitor)
            raise
        finally:
            self.leave(visit)

    async def _relay(
        self, stream: trio.abc.Stream, target: trio.abc.HalfCloseableStream, visit: Visit
    ) -> None:
        result = RelayResult()
        bytes_in, bytes_out = visit.bytes  # only relays that were handed back

        def count() -> tuple[int, int]:
            more_in, more_out = result.bytes_now
            return bytes_in + more_in, bytes_out + more_out

        visit.count = count
        problem: str | None = "cut by the proxy's end"
        reason: str | None = None
        try:
            await relay(stream, target, result=result)
            problem, reason = _explain(result)
        finally:
            self.write(visit, problem, reason)

    def _full(self, device: str, service: str, remote: str) -> int | None:
        """The limit that keeps one more visitor of this address out, or None."""
        limits, visits = self._limits, self.visits
        if self._visitors[device, service] >= limits.max_visitors:
            return limits.max_visitors
        if visits.of_way("tcp") >= self._most_in_all:
            return self._most_in_all
        if visits.of_address("tcp", remote) >= limits.max_visitors_per_address:
            return limits.max_visitors_per_address
        return None

    def _is_crowded(self, device: str, remote: str) -> bool:
        most = self._limits.max_streams_per_visitor
        return self.visits.crowd(device, remote, most) >= most

    def _enter(self, visit: Visit) -> None:
        self.visits.add(visit)
        self._visitors[visit.asked_for, visit.service or ""] += 1
        self._count(visit, 1)

    def _count(self, visit: Visit, change: int) -> None:
        """Count the streams of a service on the device that serves the visit."""
        key = visit.device, visit.service or ""
        self._on_device[key] += change
        if not self._on_device[key]:
            del self._on_device[key]

    def write(self, visit: Visit, problem: str | None, reason: str | None = None) -> None:
        """Write the log's line about one visit at its end, with what went wrong in words and as a
        Tunnelmux-Reason, if anything did; and its span, where it is to have one."""
        bytes_in, bytes_out = visit.bytes
        seconds = trio.current_time() - visit.began
        who = (visit.device, visit.service, visit.visitor, visit.stream)
        if visit.cut_reason is not None:
            problem, reason = f"cut: {visit.cut_reason}", None
        self._trace(visit, problem, reason)
        visit.figures.relayed(bytes_in, bytes_out, is_whole=problem is None)
        if problem is None and not visit.feed.is_read:
            _log_relay(*who, bytes_in, bytes_out, round(seconds, 4))
            return
        what = {
            **dict(zip(("device", "service", "visitor", "stream"), who, strict=True)),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "seconds": round(seconds, 4),
            **({"reason": reason} if reason else {}),
            **({"problem": problem} if problem else {}),
        }
        # A visitor who breaks a connection is logged at level info: it is no fault of ours.
        write = _log.info if problem is None or problem.startswith(_LEFT) else _log.warning
        write("relay", **what)
        visit.feed.tell("tcp", what)

    def _trace(self, visit: Visit, problem: str | None, reason: str | None) -> None:
        """Make the span of a visit that is over, where it is to have one."""
        if self.tracing is None or not self.tracing.chooses():
            return
        bytes_in, bytes_out = visit.bytes
        self.tracing.tell(
            "TCP",
            trio.current_time() - visit.began,
            {
                "network.transport": "tcp",
                "client.address": visit.visitor,
                "tunnelmux.device": visit.device,
                "tunnelmux.service": visit.service,
                "tunnelmux.bytes_in": bytes_in,
                "tunnelmux.bytes_out": bytes_out,
                "error.type": reason,
            },
            steps={"stream open": visit.agreed_after} if visit.agreed_after is not None else None,
            problem=problem,
        )

    def leave(self, visit: Visit) -> None:
        """Remove a visit that has ended."""
        visit.end()
        self._count(visit, -1)
        port = visit.asked_for, visit.service or ""
        self._visitors[port] -= 1
        if not self._visitors[port]:
            del self._visitors[port]


def _in_all() -> int:
    """Connections on all TCP ports together: with any number of ports, visitors leave files for
    others."""
    return max(files_allowed() // 4, 1)


class _RelayedVisit(Visit):
    """A visit without a task: the pump relays it, and calls `on_news` at its end."""

    __slots__ = ("_is_elsewhere", "_nursery", "_relay", "_server", "_stream", "local")

    _relay: Relay
    """The relay, once it is open."""

    def __init__(
        self,
        server: TcpIngressServer,
        nursery: trio.Nursery,
        device: str,
        service: str,
        local: BareSocket,
        remote: str,
    ) -> None:
        super().__init__(server.visits, "tcp", device=device, service=service, visitor=remote)
        self.local = local
        self._server = server
        self._nursery = nursery
        self._stream: Stream | None = None
        self._is_elsewhere = False

    def open(self, session: Session, head: bytes, answer: bytes) -> bool:
        """Open the stream and start the relay; False when that would have to wait. The head and
        answer are those of the way to another node, before those of the service. On that way
        nothing is read of the visitor until both have agreed, for there may be another way."""
        self._is_elsewhere = bool(head)
        head, answer = head + connect_head(self.service or ""), answer + CONNECT_ANSWER
        relay = session.open_relay(self.local, head, answer, self, reads=not self._is_elsewhere)
        if relay is None:
            return False
        self._relay = relay
        self.session = session
        self.stream = relay.stream.id
        return True

    @property
    def bytes(self) -> tuple[int, int]:
        if self.count is not None:
            return self.count()
        return self._relay.bytes_in, self._relay.bytes_out

    @property
    def agreed_after(self) -> float | None:
        agreed = self._relay.agreed_at
        return agreed - self.began if agreed else None

    def stop(self) -> None:
        if self._stream is None:
            self._relay.abort()
        else:
            self._stream.reset()

    def late(self) -> None:
        if not self._relay.is_agreed:
            self._relay.hand_back()  # to a task, which handles the failure

    def on_news(self) -> None:
        """Called by the pump when the relay has ended or is handed back."""
        relay = self._relay
        if relay.outcome == "handed back":
            assert self.session is not None  # it is open
            self._stream = self.session.adopt(relay.stream)
            if self._is_elsewhere:
                self._stream.reset()
                self._server.leave(self)
                self._nursery.start_soon(self._server.begin_anew, self)
                return
            self._nursery.start_soon(self._server.go_on, self, self._stream)
            return
        self._server.leave(self)
        if relay.outcome == "finished":
            self.local.close()
            self._server.write(self, None)
            return
        self.local.reset()
        who = _LEFT if relay.outcome == "local broke" else "the device"
        self._server.write(self, f"{who} broke the connection: {relay.error}")


def _explain(result: RelayResult) -> tuple[str | None, str | None]:
    """The failure as a text, and its Tunnelmux-Reason; None without a failure."""
    if result.error is None:
        return None, None
    cause = result.error.__cause__
    if isinstance(cause, ConnectFailed):
        return f"the device refused: {cause}", cause.reason or "tunnel-lost"
    side = _LEFT if result.broken_side == "a" else "the device"
    return f"{side} broke the connection: {cause or result.error}", None
