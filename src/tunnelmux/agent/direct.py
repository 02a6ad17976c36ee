"""Connect streams to services without a Trio task: read the head, dial the target, let the pump
relay. Only for a CONNECT to a declared service whose target is an IP address or Unix socket. Every
other stream, and every failure, goes to `StreamServer` with the stream untouched.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NoReturn

import trio

from tunnelmux.agent.assist.desk import LeaseVisit
from tunnelmux.agent.services import ServiceTable
from tunnelmux.agent.stream_lines import StreamLines
from tunnelmux.agent.streams import StreamServer
from tunnelmux.config import ServiceConfig
from tunnelmux.http.connect import CONNECT_ANSWER, plain_connect
from tunnelmux.mux import Session
from tunnelmux.relay.timeouts import Timeouts
from tunnelmux.transports.tcp import NO_DELAY, OPTIONS

if TYPE_CHECKING:
    from tunnelmux.pump.relay import Relay
    from tunnelmux.pump.sockets import BareSocket, Dialler
    from tunnelmux.yamux.streams import EngineStream

__all__ = ["DirectConnector"]

_LONGEST_HEAD = 256  # bytes that are examined: a CONNECT with the longest name is shorter


class DirectConnector:
    """Serves the streams of one session that need no task."""

    def __init__(
        self,
        session: Session,
        streams: StreamServer,
        services: ServiceTable,
        nursery: trio.Nursery,
        connect_timeout: float,
    ) -> None:
        self._session = session
        self._streams = streams
        self._nursery = nursery
        self._connecting = Timeouts(_Connection.give_up)
        self.configure(services, connect_timeout)

    def configure(self, services: ServiceTable, connect_timeout: float) -> None:
        """Serve new streams with these services; a target gets `connect_timeout` seconds."""
        self._timeout = connect_timeout
        self._targets = {service.name: (service, _dialler(service)) for service in services}

    def take(self, offered: EngineStream) -> bool:
        """Serve this stream, if possible without a task. True if so. The session calls it for each
        stream.
        """
        wanted = plain_connect(offered.peek(_LONGEST_HEAD))
        if wanted is None:
            return False
        name, head_size = wanted
        service, dialler = self._targets.get(name, (None, None))
        if service is None or dialler is None or not self._streams.has_room(self._session):
            return False
        if self._streams.health.down(name) or not self._streams.room.has(name):
            return False
        desk = self._streams.desk
        if desk is not None and service.lease_only and desk.objection(name, None) is not None:
            return False
        local = _begin_connect(dialler)
        if local is None:
            return False
        connection = _Connection(self, service, local)
        connection.relay = self._session.relay_offer(
            offered, local, connection, head_size=head_size, answer=CONNECT_ANSWER
        )
        self._streams.begin(self._session)
        self._streams.room.enter(name)
        self._streams.figures.streams += 1
        if desk is not None:
            connection.lease_visit = desk.enter(name, None, connection.relay.abort)
        self._connecting.set(connection, trio.current_time() + self._timeout)
        return True

    async def run(self) -> NoReturn:
        """Hand streams whose target does not answer in time to a task; until cancelled."""
        await self._connecting.run()

    @property
    def lines(self) -> StreamLines:
        """Writes what the log says of streams."""
        return self._streams.lines

    def finished(self, connection: _Connection) -> None:
        """The connection has ended or failed."""
        self._connecting.clear(connection)
        self._streams.end(self._session)
        self._streams.room.leave(connection.service)
        if self._streams.desk is not None:
            self._streams.desk.leave(connection.lease_visit)
        figures = self._streams.figures
        if connection.relay.outcome != "handed back":
            whole = connection.relay.outcome == "finished"
            figures.relays["finished" if whole else "broken"] += 1
        else:
            figures.streams -= 1  # StreamServer counts it
            stream = self._session.adopt(connection.relay.stream)
            self._nursery.start_soon(self._streams.serve, stream)

    def trace(self, service: str, began: float, relay: Relay) -> None:
        """Make the span of a connection that is over, if it gets one."""
        if self._streams.tracing is None:
            return
        self._streams.tell_span(
            "CONNECT",
            (began, relay.agreed_at or None),
            None,
            {
                "tunnelmux.service": service,
                "tunnelmux.bytes_to_target": relay.bytes_out,
                "tunnelmux.bytes_from_target": relay.bytes_in,
            },
            None if relay.outcome == "finished" else str(relay.error or relay.outcome),
        )


class _Connection:
    """One stream joined to one target."""

    __slots__ = ("_connector", "_local", "_service", "_started", "lease_visit", "relay")

    relay: Relay

    def __init__(
        self, connector: DirectConnector, service: ServiceConfig, local: BareSocket
    ) -> None:
        self._connector = connector
        self._service = service
        self._local = local
        self.lease_visit: LeaseVisit | None = None
        self._started = trio.current_time()

    @property
    def service(self) -> str:
        """The name of the service."""
        return self._service.name

    def give_up(self) -> None:
        """Called when connecting took too long."""
        if not self.relay.is_agreed:
            self.relay.hand_back()

    def on_news(self) -> None:
        """Called by the pump at the end."""
        relay = self.relay
        if relay.outcome in {"finished", "handed back"}:
            self._local.close()
        else:
            self._local.reset()
        self._connector.finished(self)
        if relay.outcome == "handed back":
            return
        whole = relay.outcome == "finished"
        self._connector.trace(self._service.name, self._started, relay)
        self._connector.lines.relay_ended(
            relay.stream.id,
            self._service.name,
            relay.bytes_out,
            relay.bytes_in,
            trio.current_time() - self._started,
            "finished" if whole else "broken",
            None if whole else "target" if relay.outcome == "local broke" else "proxy",
            relay.error,
        )


def _dialler(service: ServiceConfig) -> Dialler | None:
    """A function that connects to the target, if no name has to be resolved; else None."""
    from tunnelmux.pump.sockets import Dialler

    if service.address is None:
        return None
    host, port = service.address
    try:
        # No keepalive on loopback: nothing in between can lose the end of a connection.
        is_near = ipaddress.ip_address(host).is_loopback
        return Dialler(host, port, [NO_DELAY] if is_near else OPTIONS)
    except ValueError:
        return None


def _begin_connect(dialler: Dialler) -> BareSocket | None:
    """A socket that is being connected; None when the system refuses to begin."""
    try:
        return dialler.dial()
    except OSError:
        return None
