"""How nodes on different machines let each other in: mutual TLS, by what the directory says."""

from __future__ import annotations

import ssl
from collections import Counter

import trio

from tunnelmux.config.rules import InvalidSetting, parse_address
from tunnelmux.directory import Node
from tunnelmux.errors import ConnectError
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.proxy.cluster.hops import DIAL_TIMEOUT
from tunnelmux.proxy.cluster.identity import NodeIdentity, shown_certificate
from tunnelmux.proxy.cluster.server import HopServer
from tunnelmux.relay import abort
from tunnelmux.transports import start_server_tls
from tunnelmux.transports.admission import Admission, Place, source_of
from tunnelmux.transports.tcp import configure_socket
from tunnelmux.transports.tls import explain_tls_error

__all__ = ["HopDoors"]

_log = get_logger("proxy.cluster")


class _NodeAddresses:
    """Where other nodes come from, as `source_of` names it, if the directory has addresses."""

    def __init__(self, server: HopServer) -> None:
        self._server = server
        self._nodes: dict[str, Node] = {}
        self._sources: set[str] = set()

    def __contains__(self, address: str) -> bool:
        members = self._server.membership
        if members is None:
            return False
        if members.nodes is not self._nodes:
            self._nodes = members.nodes
            others = [node for node in self._nodes.values() if node.name != members.me.name]
            self._sources = {source_of(node.address) for node in others if node.address}
        return address in self._sources


class HopDoors:
    """Connects to other nodes, and lets those in that the directory names."""

    def __init__(
        self, identity: NodeIdentity | None, server: HopServer, limits: IngressLimits
    ) -> None:
        self.identity = identity
        """What this node shows to others. It can be set later; until then none is let in."""
        self._server = server
        self._handshake_timeout = limits.handshake_timeout
        self.admission = Admission(
            "cluster",
            limit=limits.max_handshakes,
            per_address=limits.max_arrivals_per_address,
            known=_NodeAddresses(server),
        )
        """The places of connections that have not proved yet that they are a node's."""
        self._refusals = RepeatedLines("hop refused")
        self._most_hops = limits.max_hops_per_node
        self._hops: Counter[str] = Counter()
        self._nodes: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None

    async def handle(self, stream: trio.SocketStream, remote: str, place: Place) -> None:
        """Serve one connection of another node until it ends."""
        scope = trio.CancelScope()
        place.on_give_way = scope.cancel
        if not place.is_held:  # others got it before this began
            scope.cancel()
        try:
            with scope:
                await self._serve(stream, remote, place)
            if scope.cancelled_caught:
                await abort(stream)
        except ConnectError as error:
            if self._refusals.may_write(source_of(remote)):
                _log.warning("hop refused", remote=remote, cause=str(error))
            await abort(stream)

    async def _serve(self, stream: trio.SocketStream, remote: str, place: Place) -> None:
        configure_socket(stream)
        tls = await start_server_tls(stream, self._context(), timeout=self._handshake_timeout)
        shown = shown_certificate(tls)  # type: ignore[arg-type]  # Trio passes it on
        name = self._nodes.get(shown)
        if name is None:
            raise ConnectError("its certificate is that of no node of this cluster")
        if self._hops[name] >= self._most_hops:
            raise ConnectError(
                f"node {name} has {self._most_hops} connections to this one already "
                "(limits.max_hops_per_node)"
            )
        place.leave()
        self._hops[name] += 1
        try:
            await self._server.serve(tls, name, remote)
        finally:
            self._hops[name] -= 1
            if not self._hops[name]:
                del self._hops[name]

    def _context(self) -> ssl.SSLContext:
        """What trusts the nodes of now."""
        members = self._server.membership
        if members is None or self.identity is None:
            raise ConnectError("this node is no member of its cluster yet")
        nodes = {
            node.certificate: node.name
            for node in members.nodes.values()
            if node.certificate and node.name != members.me.name
        }
        if self._tls is None or nodes != self._nodes:
            self._tls = self.identity.server_context(nodes)
            self._nodes = nodes
        return self._tls

    async def dial(self, node: Node) -> trio.abc.Stream:
        """A connection to the node. Raises ConnectError."""
        if self.identity is None:
            raise ConnectError("this node is no member of its cluster yet")
        try:
            address = parse_address("address", node.address)
        except InvalidSetting as error:
            raise ConnectError(f"it gives an address that is none: {error}") from error
        with trio.move_on_after(DIAL_TIMEOUT):
            try:
                stream = await trio.open_tcp_stream(address.host, address.port)
            except OSError as error:
                cause = error.strerror or str(error)
                raise ConnectError(f"{node.address} cannot be connected to: {cause}") from error
            configure_socket(stream)
            context = self.identity.client_context(node.certificate)
            # Without a name: the certificate is pinned, and not every node's name is a host's.
            tls = trio.SSLStream(stream, context)
            is_ready = False
            try:
                await tls.do_handshake()
                # Believed is what the directory says of this very start of the node.
                is_ready = shown_certificate(tls) == node.certificate  # type: ignore[arg-type]
            except trio.BrokenResourceError as error:
                cause = explain_tls_error(error.__cause__)
                raise ConnectError(f"TLS failed: {cause}") from error
            finally:
                if not is_ready:
                    await abort(tls)
            if not is_ready:
                raise ConnectError("it shows another certificate than the directory has")
            return tls
        raise ConnectError(f"{node.address} did not answer within {DIAL_TIMEOUT:g} s")
