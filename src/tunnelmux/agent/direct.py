"""Connections to services that need no task: the head read, the target dialled, the rest pumped.

Only the plain case: a CONNECT for a declared service whose target is an address. All else, and
every failure, is left to `StreamServer`, which finds the stream untouched.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

import trio

from tunnelmux.agent.services import ServiceTable
from tunnelmux.agent.streams import StreamServer
from tunnelmux.config import ServiceConfig
from tunnelmux.http.connect import CONNECT_ANSWER, plain_connect
from tunnelmux.mux import Session
from tunnelmux.observability import get_logger
from tunnelmux.relay import reset_socket
from tunnelmux.transports.tcp import set_socket_options

if TYPE_CHECKING:
    from tunnelmux._relay import Relay
    from tunnelmux._streams import EngineStream

__all__ = ["DirectConnector"]

_log = get_logger("agent")

_LONGEST_HEAD = 256  # bytes of a stream looked at: a CONNECT with the longest name is shorter

SocketAddress = tuple[socket.AddressFamily, tuple[str, int]]


class DirectConnector:
    """Takes the streams of one session that it can serve without a task."""

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
        self._timeout = connect_timeout
        self._targets = {service.name: (service, _literal_address(service)) for service in services}
        self._connecting: dict[_Connection, float] = {}  # and when each has had its time

    def take(self, offered: EngineStream) -> bool:
        """Whether this stream is served from now on; called by the session for each."""
        wanted = plain_connect(offered.peek(_LONGEST_HEAD))
        if wanted is None:
            return False
        name, head_size = wanted
        service, address = self._targets.get(name, (None, None))
        if service is None or address is None or not self._streams.has_room:
            return False
        local = _begin_connect(address)
        if local is None:
            return False
        connection = _Connection(self, service, local)
        connection.relay = self._session.relay_offer(
            offered, local, connection, head_size=head_size, answer=CONNECT_ANSWER
        )
        self._streams.active += 1
        if not self._connecting:
            self._nursery.start_soon(self._watch_connecting)
        self._connecting[connection] = trio.current_time() + self._timeout
        return True

    async def _watch_connecting(self) -> None:
        while self._connecting:
            connection, due = next(iter(self._connecting.items()))
            await trio.sleep_until(due)
            overdue = self._connecting.pop(connection, None) is not None
            if overdue and not connection.relay.is_agreed:
                connection.relay.hand_back()

    def finished(self, connection: _Connection) -> None:
        """The connection is over, or never came about."""
        self._connecting.pop(connection, None)
        self._streams.active -= 1
        if connection.relay.outcome == "handed back":
            stream = self._session.adopt(connection.relay.stream)
            self._nursery.start_soon(self._streams.serve, stream)


class _Connection:
    """One stream joined to one target."""

    __slots__ = ("_connector", "_local", "_service", "_started", "relay")

    relay: Relay

    def __init__(
        self, connector: DirectConnector, service: ServiceConfig, local: socket.socket
    ) -> None:
        self._connector = connector
        self._service = service
        self._local = local
        self._started = trio.current_time()

    def on_news(self) -> None:
        """Called by the pump at the end."""
        relay = self.relay
        if relay.outcome in {"finished", "handed back"}:
            self._local.close()
        else:
            reset_socket(self._local)
        self._connector.finished(self)
        if relay.outcome == "handed back":
            return
        broken = {}
        if relay.outcome != "finished":
            side = "target" if relay.outcome == "local broke" else "proxy"
            broken = {"broken_side": side, "cause": str(relay.error)}
        _log.info(
            "relay ended",
            stream=relay.stream.id,
            service=self._service.name,
            bytes_to_target=relay.bytes_out,
            bytes_from_target=relay.bytes_in,
            duration=round(trio.current_time() - self._started, 3),
            outcome="broken" if broken else "finished",
            **broken,
        )


def _literal_address(service: ServiceConfig) -> SocketAddress | None:
    """Where to connect to, when that is known without asking for a name."""
    host, port = service.address.host, service.address.port
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if "%" in host:  # a scope is a name as well
        return None
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return family, (str(address), port)


def _begin_connect(address: SocketAddress) -> socket.socket | None:
    """A socket that is being connected; None when the system would not even begin."""
    family, where = address
    try:
        local = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    set_socket_options(local, user_timeout=None)
    if local.connect_ex(where) in {0, errno.EINPROGRESS}:
        return local
    local.close()
    return None
