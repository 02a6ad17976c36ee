"""Connections to the services of devices, through their tunnels.

Each is a socket of the proxy's internal API, which asyncio reads and writes from then on. Trio, the
guest in this process, would need a thread of its own and two switches of it for each read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from tunnelmux.backend.proxies import Proxies
from tunnelmux.errors import DeviceUnreachable
from tunnelmux.gateway.guest import Bridge
from tunnelmux.http import ConnectFailed, PeerGone, open_connect
from tunnelmux.limits import IngressLimits
from tunnelmux.printable import said
from tunnelmux.relay import relay
from tunnelmux.transports.tcp import reset_socket, take_socket
from tunnelmux.wire import LEASE_FIELD

__all__ = ["DeviceAway", "DeviceSocket", "Devices"]

_PROXY_BEHIND = 10.0
# Seconds to wait for a proxy to learn of a new lease. It takes 2 at most, on a busy machine longer.

_AGAIN = 0.25
# Seconds between two attempts.


class DeviceAway(Exception):
    """No connection to the service; the message says why."""


@dataclass(frozen=True, slots=True)
class DeviceSocket:
    """A raw connection to a service. It is to be closed by the caller, who may do so by making it a
    connection of asyncio."""

    socket: socket.socket
    early: bytes
    """What the service has sent already."""

    async def create_connection(self, factory: Callable[[], Any], *_: object) -> Any:
        """The transport and the protocol that `factory` makes. Awaited in asyncio; asyncssh calls
        this of its `tunnel`."""

        def made() -> Any:
            protocol = factory()
            connection_made = protocol.connection_made

            def take(transport: Any) -> None:
                connection_made(transport)
                if self.early:
                    protocol.data_received(self.early)

            protocol.connection_made = take
            return protocol

        return await asyncio.get_running_loop().create_connection(made, sock=self.socket)

    def reset(self) -> None:
        """Cut it, unless it is a connection of asyncio."""
        reset_socket(self.socket)


class Devices:
    """Opens connections to services of devices, through the proxies that hold their tunnels."""

    def __init__(self, bridge: Bridge, proxies: Proxies, timeout: float) -> None:
        self._bridge = bridge
        self._proxies = proxies
        self._timeout = timeout
        self._limits = IngressLimits()

    async def connect(self, label: str, service: str, lease: str) -> DeviceSocket:
        """A raw connection to a service; raises DeviceAway. Awaited in Trio.

        `lease` is the id of the lease that allows it, or empty. Proxy and agent end it with the
        lease too.
        """
        headers = [(LEASE_FIELD, lease.encode("ascii"))] if lease else []
        try:
            with trio.fail_after(self._timeout):
                stream = await self._open(label, lease)
                try:
                    connection = await open_connect(
                        stream,
                        service,
                        self._limits,
                        answer_timeout=self._timeout,
                        headers=headers,
                    )
                    await connection.wait_answer()
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
                    raise
                return self._socket(connection)
        except (DeviceUnreachable, ConnectFailed, PeerGone) as exc:
            raise DeviceAway(said(str(exc))) from exc
        except trio.TooSlowError as exc:
            raise DeviceAway(f"no connection within {self._timeout:g} s") from exc

    def _socket(self, connection: trio.abc.HalfCloseableStream) -> DeviceSocket:
        taken = take_socket(connection)
        if taken is not None:
            return DeviceSocket(*taken)
        # Trio has the TLS of this one, so a task carries its bytes. The relay ends both with it.
        near, far = socket.socketpair()
        far.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        self._bridge.spawn(relay, stream, connection)
        return DeviceSocket(far, b"")

    async def _open(self, label: str, lease: str) -> trio.abc.HalfCloseableStream:
        """Open a stream; try again while the proxy does not know of the lease yet."""
        until = trio.current_time() + _PROXY_BEHIND
        while True:
            try:
                return await self._proxies.open_stream(label, lease=lease)
            except DeviceUnreachable as exc:
                if exc.code != "lease_over" or trio.current_time() >= until:
                    raise
            await trio.sleep(_AGAIN)
