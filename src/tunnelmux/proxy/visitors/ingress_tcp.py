"""TCP ports of the proxy, each leading to one service of one device."""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

import trio

from tunnelmux.http import ConnectFailed, UpstreamGone, open_connect
from tunnelmux.http.connect import CONNECT_ANSWER, ConnectStream, connect_head
from tunnelmux.http.refusal import Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import frequent_line, get_logger
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.routing import Router, stream_id
from tunnelmux.relay import RelayResult, abort, relay, reset_socket
from tunnelmux.relay.timeouts import Timeouts
from tunnelmux.sessions import DeviceStore

if TYPE_CHECKING:
    from tunnelmux.pump.relay import Relay

__all__ = ["TcpIngressServer"]

_log = get_logger("proxy.tcp")
_log_relay = frequent_line(
    "proxy.tcp",
    "relay",
    *("device", "service", "visitor", "stream", "bytes_in", "bytes_out", "seconds"),
)

_AGENT_SLACK = 5.0
# Seconds on top of the agent's own limit for its target: its answer says more than our silence.


class TcpIngressServer:
    """Serves the connections of all TCP ports.

    TCP has no words for a refusal, so a visitor whose service cannot be reached gets a reset, and
    one log line says why. A half-close goes through in both directions.
    """

    def __init__(self, store: DeviceStore, devices: DeviceRegister) -> None:
        self._router = Router(store, devices)
        self._limits = IngressLimits()
        self._visitors: Counter[tuple[str, str]] = Counter()
        self._unanswered = Timeouts(_Visit.give_up_waiting)

    def configure(self, limits: IngressLimits) -> None:
        """Hold connections that come from now on to these limits."""
        self._limits = limits

    def take(
        self, nursery: trio.Nursery, device: str, service: str, local: socket.socket, remote: str
    ) -> bool:
        """Serve one visitor without a task of its own, if the device is here and a pump carries
        its session; whether that was so. `nursery` is for visitors whose service answers in
        another way than at once and plainly.
        """
        limits, port = self._limits, (device, service)
        session = self._router.session_now(device)
        if session is None or self._visitors[port] >= limits.max_visitors:
            return False
        visit = _Visit(self, nursery, session, port, local, remote)
        if not visit.begin():
            return False
        self._visitors[port] += 1
        patience = limits.connect_timeout + _AGENT_SLACK
        self._unanswered.set(visit, trio.current_time() + patience)
        return True

    async def run_direct(self) -> NoReturn:
        """Hand to a task, which knows what to say, who waits for an answer too long; until
        cancelled."""
        await self._unanswered.run()

    async def handle(self, device: str, service: str, stream: trio.abc.Stream, remote: str) -> None:
        """Serve one visitor of the port for `service` on `device`, and close its connection.

        `remote` is the visitor's address as `host:port`.
        """
        limits, port = self._limits, (device, service)
        log = _log.bind(device=device, service=service, visitor=remote)
        if self._visitors[port] >= limits.max_visitors:
            log.warning("relay refused", reason="too-many-visitors", limit=limits.max_visitors)
            await abort(stream)
            return
        self._visitors[port] += 1
        try:
            tunnel = await self._router.open_stream(device, limits)
            report = _Report(port, remote, stream_id(tunnel))
            try:
                target = await open_connect(
                    tunnel, service, limits, answer_timeout=limits.connect_timeout + _AGENT_SLACK
                )
            except UpstreamGone as exc:
                report.write(f"the tunnel broke: {exc}", "tunnel-lost")
                await abort(stream)
            except BaseException:
                report.write("cut by the proxy's end")
                await abort(tunnel)
                raise
            else:
                await self._relay(stream, target, report)
        except Refused as exc:
            log.warning("relay refused", reason=exc.refusal.reason, problem=exc.refusal.message)
            await abort(stream)
        except BaseException:
            await abort(stream)
            raise
        finally:
            self._leave(port)

    async def go_on(self, visit: _Visit, stream: Stream) -> None:
        """Serve a visitor whose relay was handed back, from where that stopped."""
        limits = self._limits
        visitor = trio.SocketStream(trio.socket.from_stdlib_socket(visit.local))
        try:
            target = ConnectStream(stream, limits, limits.connect_timeout + _AGENT_SLACK)
            await self._relay(visitor, target, visit.report)
        except BaseException:
            await abort(visitor)
            raise
        finally:
            self._leave(visit.port)

    async def _relay(
        self, stream: trio.abc.Stream, target: trio.abc.HalfCloseableStream, report: _Report
    ) -> None:
        result = RelayResult()
        problem: str | None = "cut by the proxy's end"
        reason: str | None = None
        try:
            await relay(stream, target, result=result)
            problem, reason = _explain(result)
        finally:
            report.write(problem, reason, result.bytes_a_to_b, result.bytes_b_to_a)

    def leave(self, visit: _Visit) -> None:
        """The visit is over."""
        self.stop_waiting(visit)
        self._leave(visit.port)

    def stop_waiting(self, visit: _Visit) -> None:
        """No answer is awaited any more."""
        self._unanswered.clear(visit)

    def _leave(self, port: tuple[str, str]) -> None:
        self._visitors[port] -= 1
        if not self._visitors[port]:
            del self._visitors[port]


class _Report:
    """The line that the log gets about one visitor, at the end."""

    __slots__ = ("_device", "_remote", "_service", "_started", "_stream", "bytes_in", "bytes_out")

    def __init__(self, port: tuple[str, str], remote: str, stream: int | None) -> None:
        self._device, self._service = port
        self._remote = remote
        self._stream = stream
        self._started = trio.current_time()
        self.bytes_in = 0
        """Bytes from the visitor that went another way than those given to `write`."""
        self.bytes_out = 0

    def write(
        self,
        problem: str | None,
        reason: str | None = None,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        """Write it, with what went wrong in words and as a Tunnelmux-Reason, if anything did."""
        bytes_in += self.bytes_in
        bytes_out += self.bytes_out
        seconds = round(trio.current_time() - self._started, 4)
        who = (self._device, self._service, self._remote, self._stream)
        if problem is None:
            _log_relay(*who, bytes_in, bytes_out, seconds)
            return
        _log.warning(
            "relay",
            **dict(zip(("device", "service", "visitor", "stream"), who, strict=True)),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            seconds=seconds,
            **({"reason": reason} if reason else {}),
            problem=problem,
        )


class _Visit:
    """A visitor in the pump: no task, one call at the end."""

    __slots__ = ("_nursery", "_relay", "_remote", "_server", "_session", "local", "port", "report")

    def __init__(
        self,
        server: TcpIngressServer,
        nursery: trio.Nursery,
        session: Session,
        port: tuple[str, str],
        local: socket.socket,
        remote: str,
    ) -> None:
        self.local = local
        self.port = port
        self._server = server
        self._nursery = nursery
        self._session = session
        self._remote = remote
        self._relay: Relay | None = None

    def begin(self) -> bool:
        """Open the stream and start the relay; False when that takes waiting."""
        head = connect_head(self.port[1])
        self._relay = self._session.open_relay(self.local, head, CONNECT_ANSWER, self)
        if self._relay is None:
            return False
        self.report = _Report(self.port, self._remote, self._relay.stream.id)
        return True

    def give_up_waiting(self) -> None:
        """Called when the answer is overdue."""
        assert self._relay is not None  # it began, or nobody would wait
        if not self._relay.is_agreed:
            self._relay.hand_back()

    def on_news(self) -> None:
        """Called by the pump when the relay is over, or not what it can carry."""
        relay = self._relay
        assert relay is not None
        self.report.bytes_in, self.report.bytes_out = relay.bytes_in, relay.bytes_out
        if relay.outcome == "handed back":
            self._server.stop_waiting(self)
            stream = self._session.adopt(relay.stream)
            self._nursery.start_soon(self._server.go_on, self, stream)
            return
        self._server.leave(self)
        if relay.outcome == "finished":
            self.local.close()
            self.report.write(None)
            return
        reset_socket(self.local)
        who = "the visitor" if relay.outcome == "local broke" else "the device"
        self.report.write(f"{who} broke the connection: {relay.error}")


def _explain(result: RelayResult) -> tuple[str | None, str | None]:
    """What went wrong in words, and the Tunnelmux-Reason; None where nothing did."""
    if result.error is None:
        return None, None
    cause = result.error.__cause__
    if isinstance(cause, ConnectFailed):
        return f"the device refused: {cause}", cause.reason or "tunnel-lost"
    side = "the visitor" if result.broken_side == "a" else "the device"
    return f"{side} broke the connection: {cause or result.error}", None
