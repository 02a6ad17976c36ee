"""Sessions to other nodes: one long-lived session with each, and the devices' sessions behind
it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime

import trio

from tunnelmux.directory import Node, Place
from tunnelmux.directory.membership import Membership
from tunnelmux.errors import ConnectError, SessionClosed, SessionDraining, SessionError
from tunnelmux.http import ConnectFailed, Field, UpstreamGone, open_connect
from tunnelmux.http.body import BadBody
from tunnelmux.http.connect import CONNECT_ANSWER, connect_head
from tunnelmux.http.connection import ClientConnection
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import get_logger
from tunnelmux.proxy.cluster.words import (
    DEVICE_PATH,
    SESSION_PATH,
    SESSION_TOKEN_FIELD,
    DeviceThere,
)
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.relay import abort
from tunnelmux.sessions import OwnHandle, SessionHandle, SessionSummary
from tunnelmux.wire import GENERATION_FIELD, RESERVED_FIELD

__all__ = ["DIAL_TIMEOUT", "Hops", "ThereHandle"]

_log = get_logger("proxy.cluster")

DIAL_TIMEOUT = 2.0
"""Seconds for connecting to another node and for TLS with it: visitors wait."""

_ASK_TIMEOUT = 2.0
# Seconds for another node to answer about a device.

_REDIAL = 0.25
# Seconds after a node could not be reached until it is dialled again.

_BELIEVED = 2.0
# Seconds for which a node that is not in the directory is believed about a device. The device may
# have connected elsewhere, which that node is not told: as long as a superseded session may last.

_MOST_BYTES = 65_536
# Bytes of a node's answer about one device.


class Hop:
    """The session to one start of another node. It is dialled when first used, and again after it
    broke.
    """

    def __init__(self, owner: Hops, node: Node) -> None:
        self.node = node
        self._owner = owner
        self._session: Session | None = None
        self._dialling = trio.Lock()
        self._not_before = -math.inf
        self.has_failed = False
        """Whether the node could not be reached when it was dialled last."""

    @property
    def is_there(self) -> bool:
        """Whether this start of the node is still a member of the cluster."""
        known = self._owner.membership.nodes.get(self.node.name)
        return known is not None and known.incarnation == self.node.incarnation

    @property
    def is_silent(self) -> bool:
        """Whether the node has left the directory and is here all the same, as one that has lost
        its way to Redis."""
        return self.session is not None and self.node.name not in self._owner.membership.nodes

    @property
    def session(self) -> Session | None:
        """The session with the node, or None where it is over or can open no more streams."""
        if self._session is None or self._session.is_closed or self._session.is_used_up:
            return None
        return self._session

    def end(self) -> None:
        """Close the session, if it has no streams."""
        if self._session is not None and not self._session.stream_count:
            self._session.end()

    async def open_stream(self) -> Stream:
        """A new stream to the node. Raises SessionError, and ConnectError where the node cannot be
        reached. The caller sets a deadline.
        """
        return await (self.session or await self._dial()).open_stream()

    async def ask(self, method: bytes, path: bytes, *more: Field) -> bytes | None:
        """The node's answer; None where it does not have what is asked about. Raises ConnectError,
        also when it gives none in time.
        """
        with trio.move_on_after(DIAL_TIMEOUT + _ASK_TIMEOUT):
            try:
                return await self._ask(method, path, list(more))
            except (SessionError, UpstreamGone, BadBody) as error:
                raise ConnectError(f"node {self.node.name} did not answer: {error}") from error
        raise ConnectError(f"node {self.node.name} gave no answer in time")

    async def end_session(self, device: str, generation: int) -> bool:
        """Have the node end that session. Whether it has none of that generation now."""
        field = GENERATION_FIELD, b"%d" % generation
        try:
            await self.ask(b"DELETE", f"{DEVICE_PATH}{device}".encode("ascii"), field)
        except ConnectError as error:
            _log.warning("session not ended", device=device, node=self.node.name, cause=str(error))
            return False
        return True

    async def _ask(self, method: bytes, path: bytes, more: list[Field]) -> bytes | None:
        stream = await self.open_stream()
        try:
            client = ClientConnection(stream, self._owner.http_limits)
            headers = [(b"Host", self.node.name.encode("ascii")), (b"Connection", b"close")]
            await client.send_request(method, path, headers + more)
            while (head := await client.read_head()).is_interim:
                pass
            body = await client.read_whole_body(_MOST_BYTES)
        finally:
            await abort(stream)
        return body if head.status == 200 else None

    async def _dial(self) -> Session:
        async with self._dialling:
            if self.session is not None:
                return self.session
            if trio.current_time() < self._not_before:
                raise ConnectError(f"node {self.node.name} was not reached a moment ago")
            try:
                self._session = await self._owner.dial(self.node)
            except ConnectError as error:
                self.has_failed = True
                self._not_before = trio.current_time() + _REDIAL
                _log.warning(
                    "node not reached",
                    node=self.node.name,
                    address=self.node.address,
                    cause=str(error),
                )
                raise
            self.has_failed = False
            return self._session


class ThereHandle(SessionHandle):
    """A device's session on another node, as that node described it."""

    def __init__(
        self, hop: Hop, device: str, there: DeviceThere, limits: IngressLimits, token: str = ""
    ) -> None:
        self.generation = there.generation
        self.default_service = there.default_service
        self.relayed = {name or None: service for name, service in there.relayed.items()}
        self.timeouts = {name or None: seconds for name, seconds in there.timeouts.items()}
        self._hop = hop
        self._device = device
        self._token = token
        self._there = there
        self._limits = limits
        self._has_moved = False
        self._until = trio.current_time() + _BELIEVED if hop.is_silent else math.inf
        generation = b"%s: %d\r\n\r\n" % (GENERATION_FIELD, there.generation)
        self._head = connect_head(device).removesuffix(b"\r\n") + generation

    def __repr__(self) -> str:
        return f"<ThereHandle {self._device!r} on {self._hop.node.name!r}>"

    @property
    def token(self) -> str:
        """Empty where the session was found by its device: other nodes tell no tokens."""
        return self._token

    @property
    def device(self) -> str:
        return self._device

    @property
    def node(self) -> str:
        """The name of the node that has it."""
        return self._hop.node.name

    @property
    def elsewhere(self) -> str:
        return self.node

    @property
    def there(self) -> DeviceThere:
        """What the node said of the device."""
        return self._there

    @property
    def credential(self) -> bytes:
        return bytes.fromhex(self._there.credential)

    async def open_stream(self) -> Stream:
        return await self._open_stream([])

    async def open_reserved_stream(self) -> Stream:
        return await self._open_stream([(RESERVED_FIELD, b"1")])

    async def _open_stream(self, more: list[Field]) -> Stream:
        if self.is_closed:
            raise SessionClosed(f"device {self._device!r} is not on node {self.node!r} any more")
        try:
            stream = await self._hop.open_stream()
        except (ConnectError, SessionClosed, SessionDraining) as error:
            self._has_moved = True
            raise SessionClosed(f"node {self.node} cannot be reached: {error}") from error
        is_joined = False
        try:
            timeout = self._limits.connect_timeout
            generation = (GENERATION_FIELD, b"%d" % self.generation)
            connect = await open_connect(
                stream,
                self._device,
                self._limits,
                answer_timeout=timeout,
                headers=[generation, *more],
            )
            await connect.wait_answer()
            is_joined = True
        except UpstreamGone as error:
            self._has_moved = True
            raise SessionClosed(f"the way to node {self.node} broke: {error}") from error
        except ConnectFailed as error:
            self._refused(error)
        finally:
            if not is_joined:
                await abort(stream)
        # Nothing follows the answer: a device sends nothing before it is asked.
        return stream

    def way_now(self) -> tuple[Session, bytes, bytes] | None:
        session = self._hop.session
        if session is None or self.is_closed:
            return None
        return session, self._head, CONNECT_ANSWER

    def _refused(self, error: ConnectFailed) -> None:
        if error.reason == "device-draining":
            raise SessionDraining(str(error)) from error
        if error.reason == "device-busy":
            raise SessionError(str(error)) from error
        self._has_moved = True
        raise SessionClosed(str(error)) from error

    async def close(self, reason: str = "closed by the proxy") -> None:  # noqa: ARG002
        """Have the node end it, which says in its own words why. Without effect where the node does
        not answer in time: its session may go on."""
        if not self.is_closed:
            self._has_moved = await self._hop.end_session(self._device, self.generation)

    @property
    def is_closed(self) -> bool:
        if self._until < math.inf:
            return self._has_moved or not self._hop.session or trio.current_time() >= self._until
        return self._has_moved or not self._hop.is_there

    def summary(self) -> SessionSummary:
        there = self._there
        return SessionSummary(
            token=self._token,
            user_id=there.user_id,
            device_id=self._device,
            connected_at=there.connected_at,
            last_heartbeat=there.last_heartbeat,
            remote_addr=there.remote_addr,
            proxy_node_id=self.node,
            proxy_internal_url=self._hop.node.internal_url,
        )

    @property
    def hop_streams(self) -> int:
        """Live streams to that node, for all its devices."""
        session = self._hop.session
        return session.stream_count if session is not None else 0

    @property
    def last_seen(self) -> datetime:
        """When the node last heard from the device, as it reported."""
        return self._there.last_heartbeat


class Hops:
    """The ways to all other nodes, each over what `dial` connects. `nursery` owns their
    sessions."""

    def __init__(
        self,
        membership: Membership[OwnHandle],
        dial: Callable[[Node], Awaitable[trio.abc.Stream]],
        limits: Limits,
        http_limits: IngressLimits,
        pump: Callable[[], DataPump | None],
        nursery: trio.Nursery,
    ) -> None:
        self.membership = membership
        self._dial = dial
        self._limits = limits
        self.http_limits = http_limits
        self._pump = pump
        self._nursery = nursery
        self._by_start: dict[tuple[str, str], Hop] = {}

    async def reach(self, device: str, place: Place) -> ThereHandle | None:
        """The device's session at that place, if the node confirms it; else None. Raises
        ConnectError where the node cannot be asked.
        """
        hop = self._hop_to(place)
        if hop is None:
            return None
        body = await hop.ask(b"GET", f"{DEVICE_PATH}{device}".encode("ascii"))
        if body is None:
            return None
        return ThereHandle(hop, device, _there_in(body, place.node), self.http_limits)

    async def reach_session(self, token: str, nodes: Iterable[Node]) -> ThereHandle | None:
        """The session of this token, if one of these nodes says that it has it; all are asked at
        once.
        """
        found: ThereHandle | None = None

        async def ask(hop: Hop) -> None:
            nonlocal found
            field = SESSION_TOKEN_FIELD, token.encode("ascii")
            try:
                body = await hop.ask(b"GET", SESSION_PATH.encode("ascii"), field)
                there = _there_in(body, hop.node.name) if body is not None else None
            except ConnectError as error:
                _log.info("node not asked for a session", node=hop.node.name, cause=str(error))
                return
            if there is not None and there.device:
                found = ThereHandle(hop, there.device, there, self.http_limits, token)
                nursery.cancel_scope.cancel(reason="the session is found")

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(ask, self._hop_with(node))
        return found

    def nearest_first(self, places: Sequence[Place]) -> list[Place]:
        """Places of one device, newest first, in the order in which to try them: nodes that could
        not be reached come last, those in the failure domain of this one first."""
        own = self.membership.me.domain

        def rank(place: Place) -> tuple[bool, bool]:
            node = self.membership.nodes.get(place.node)
            hop = self._by_start.get((place.node, place.incarnation))
            is_far = not own or node is None or node.domain != own
            return hop is not None and hop.has_failed, is_far

        return sorted(places, key=rank)

    async def reach_silent(self, device: str) -> ThereHandle | None:
        """The device's session at a node that is connected and not in the directory."""
        for hop in [hop for hop in self._by_start.values() if hop.is_silent]:
            try:
                body = await hop.ask(b"GET", f"{DEVICE_PATH}{device}".encode("ascii"))
                if body is not None:
                    there = _there_in(body, hop.node.name)
                    return ThereHandle(hop, device, there, self.http_limits)
            except ConnectError as error:
                _log.info("device not reached", device=device, node=hop.node.name, cause=str(error))
        return None

    def tidy(self) -> None:
        """Close sessions to starts of nodes that others have followed, and forget what is over."""
        for key, hop in list(self._by_start.items()):
            if not hop.is_there and not hop.is_silent:
                hop.end()
                if hop.session is None:
                    del self._by_start[key]

    def _hop_to(self, place: Place) -> Hop | None:
        node = self.membership.nodes.get(place.node)
        if node is None or node.incarnation != place.incarnation:
            return None
        return self._hop_with(node)

    def _hop_with(self, node: Node) -> Hop:
        key = node.name, node.incarnation
        if key not in self._by_start:
            self._by_start[key] = Hop(self, node)
        return self._by_start[key]

    async def dial(self, node: Node) -> Session:
        """A new session with the node. Raises ConnectError."""
        stream = await self._dial(node)
        session = Session(
            stream, is_client=True, limits=self._limits, pump=self._pump(), takes_streams=False
        )
        # Without an exchange there is no telling whether the node took us.
        self._nursery.start_soon(session.run)
        _log.info("hop made", node=node.name, address=node.address)
        return session


def _there_in(body: bytes, node: str) -> DeviceThere:
    """Raises ConnectError."""
    try:
        return read_json(body, DeviceThere)
    except BadJson as error:
        raise ConnectError(f"node {node} answered something else: {error}") from error
