"""One client's Engine.IO session at the server, over any transport, and what carries it."""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import trio

from tunnelmux.http import ServerConnection, VisitorGone
from tunnelmux.http.body import BadBody, BodyTooLong
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.limits import IngressLimits
from tunnelmux.socketio.engine import Engine, EngineOver, EngineSettings
from tunnelmux.socketio.engine_packets import (
    NOOP,
    OPEN,
    PING,
    PONG,
    UPGRADE,
    BadPacket,
    Codec,
    EnginePacket,
    Version3,
    Version4,
)
from tunnelmux.socketio.websocket import WebSocket, WebSocketOver
from tunnelmux.transports.admission import Place

__all__ = ["Arrival", "BadRequest", "Caller", "ServerSettings", "Session", "answer"]

_NOOP_INTERVAL = 0.1
# Seconds between two empty answers to the polls of a client that is upgrading, as in engine.io: the
# client goes on when its last poll was answered.

_POLL_BUDGET = 262_144
# Bytes in the answer to one poll, unless a single packet is larger. The rest waits for the next
# poll: if an answer is lost, the rest is not.

_MOST_CONNECTIONS = 8
# Connections that one client's requests may have come by and that are still open: a client that
# polls has two, and more while those that it has dropped are not closed here yet. With one more,
# the oldest idle one is cut: their number is limited for all clients together.


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The settings of a server. A reload replaces them; live sessions keep those they had."""

    path: str = "/socket.io/"
    trusted: TrustedProxies = field(default_factory=TrustedProxies)
    """The proxies whose `X-Forwarded-For` is believed."""
    allow_eio3: bool = False
    """Whether clients of Socket.IO 2 are accepted too."""
    settle: float = 2.0
    """Seconds that a client of Socket.IO 2, which is in "/" from the start, has to join another
    namespace; after that it stays in "/". python-socketio 4 needs two round trips."""
    goodbye: float = 1.0
    """Seconds that sending a session's last packets may take: a client that polls asks again within
    a round trip."""
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    engine: EngineSettings = field(default_factory=EngineSettings)
    http: IngressLimits = field(default_factory=IngressLimits)


class BadRequest(Exception):
    """A request that is answered with an error of engine.io."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.body = json.dumps({"code": code, "message": message}).encode("ascii")


class Arrival:
    """A TCP connection that was admitted: its peer, its place, and the function that ends it."""

    def __init__(self, remote: str, place: Place, cut: Callable[[], object]) -> None:
        self.remote = remote
        self.place = place
        self.cut = cut
        self.client: Session | None = None
        """The client whose request came by it last, if it is not a trusted proxy's."""

    def is_left(self) -> None:
        """It is closed, or another client's."""
        if self.client is not None:
            self.client.forget(self)
            self.client = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: an address, its place, and the connection, if that is the client's."""

    remote: str
    place: Place
    arrival: Arrival | None


class Session:
    """One client, from its handshake to its end, over any transport."""

    def __init__(
        self, settings: ServerSettings, remote: str, query: Mapping[str, str], place: Place
    ) -> None:
        self.codec: Codec = Version4()
        if query.get("EIO") == "3":
            self.codec = Version3(text_only=bool(query.get("b64")))
        self.engine = Engine(settings.engine, self.codec, is_client=False)
        self.engine.sid = secrets.token_urlsafe(15)
        self.engine.peer_max_payload = settings.engine.socketio.socketio_max_payload
        self.remote = remote
        self.query = query
        """The query of the handshake's request. It holds the client's credentials."""
        self.is_known = False
        """Whether the client has authenticated: until then it may send little."""
        self.transport = "polling"
        self.ended = trio.Event()
        """Set when the session's task has ended."""
        self._settings = settings
        self._place = place
        self._places: set[Place] = set()
        self._arrivals: dict[Arrival, bool] = {}  # whether a request of it is under way
        place.on_give_way = partial(self.engine.end, "others needed its place")
        self._socket: WebSocket | None = None
        self._has_upgrade = False
        self._is_upgrading = False
        self._polling = False
        self._posting = False

    def __repr__(self) -> str:
        return f"<Session from {self.remote}>"

    @property
    def max_payload(self) -> int:
        """Bytes the client may send in one message or body now."""
        if self.is_known:
            return self._settings.engine.socketio.socketio_max_payload
        return self._settings.http.max_head_bytes

    def trust(self) -> None:
        """The client has authenticated: give back its place among the unknown clients, and the
        places of the connections that carry it."""
        self.is_known = True
        for place in (self._place, *self._places):
            place.leave()
        if self._socket is not None:
            self._socket.max_message = self.max_payload

    def leave(self) -> None:
        """Give back the place among the unknown clients, if the session still has it."""
        self._place.leave()

    @contextlib.contextmanager
    def carried_by(self, caller: Caller) -> Iterator[None]:
        """Within the block, a request of this client is served that comes from there."""
        place, arrival = caller.place, caller.arrival
        self._places.add(place)
        if arrival is not None:
            arrival.is_left()
            arrival.client = self
            self._arrivals[arrival] = True  # the newest
            self._cut_idle()
        if self.is_known:
            place.leave()
        try:
            yield
        finally:
            self._places.discard(place)
            if arrival is not None and arrival in self._arrivals:
                self._arrivals[arrival] = False  # it is idle

    def _cut_idle(self) -> None:
        """Cut the oldest idle connection where the client has too many."""
        if len(self._arrivals) > _MOST_CONNECTIONS:
            idle = (arrival for arrival, is_busy in self._arrivals.items() if not is_busy)
            # At most three are busy: a poll, a post and an upgrade.
            if (oldest := next(idle, None)) is not None:
                del self._arrivals[oldest]
                oldest.cut()

    def forget(self, arrival: Arrival) -> None:
        """That connection is closed, or another client's."""
        self._arrivals.pop(arrival, None)

    def handshake(self, *, upgrades: list[str]) -> EnginePacket:
        """The packet that opens the connection."""
        limits = self._settings.engine
        content: dict[str, object] = {
            "sid": self.engine.sid,
            "upgrades": upgrades,
            "pingInterval": int(limits.session.keepalive_interval * 1000),
            "pingTimeout": int(limits.session.keepalive_timeout * 1000),
        }
        if self.codec.version == 4:
            content["maxPayload"] = limits.socketio.socketio_max_payload
        return EnginePacket(OPEN, content)

    async def heartbeat(self) -> None:
        """Send pings, or wait for the client's, and end the session when nothing comes."""
        engine, limits = self.engine, self._settings.engine.session
        if self.codec.client_pings:
            patience = limits.keepalive_interval + limits.keepalive_timeout
            while (left := engine.heard + patience - trio.current_time()) > 0:  # noqa: ASYNC110
                await trio.sleep(left)
            engine.end(f"nothing came for {patience:g} s")
            return
        while True:
            await trio.sleep(limits.keepalive_interval)
            asked = trio.current_time()
            engine.ping()
            await trio.sleep(limits.keepalive_timeout)
            if engine.heard < asked:
                engine.end(f"nothing came for {trio.current_time() - engine.heard:.0f} s")

    # -- polling ----------------------------------------------------------------------------

    async def poll(self, server: ServerConnection) -> None:
        """Answer one long poll with the packets that wait for the client, or the next that come."""
        if self._polling or self.transport != "polling":
            self.engine.end("the client polled twice at once")
            raise BadRequest(3, "Bad request")
        self._polling = True
        try:
            packets = await self._next_packets(server)
            if not packets:
                raise BadRequest(1, "Session ID unknown")
            body = self.codec.encode_payload(packets)
            # Before the answer is sent: the client's next poll may come before this task goes on.
            self._polling = False
            self.engine.sent(packets)
            await answer(server, 200, b"text/plain; charset=UTF-8", body)
        except (VisitorGone, trio.Cancelled):
            # It is unknown whether the packets arrived: going on could lose them silently.
            self.engine.end("the client left within a poll")
            raise

    async def _next_packets(self, server: ServerConnection) -> list[EnginePacket]:
        """The packets of the next answer; none when the session is over."""
        packets: list[EnginePacket] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_leaving, server, nursery.cancel_scope)
            if self._is_upgrading:
                nursery.cancel_scope.deadline = trio.current_time() + _NOOP_INTERVAL
            # Bounded by the next ping or pong, which is one of these packets.
            packets = await self.engine.outgoing.take(_POLL_BUDGET, polling=True)
            nursery.cancel_scope.cancel()
        if not packets and self._is_upgrading:
            packets = [EnginePacket(NOOP)]
        return packets

    async def _notice_leaving(self, server: ServerConnection, poll: trio.CancelScope) -> None:
        """End the session of a client whose connection ends within a poll: the answer to that poll
        would be lost."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await server.stream.receive_some(1)
        self.engine.end("the client left within a poll")
        poll.cancel()

    async def post(self, server: ServerConnection) -> None:
        """Handle the packets of one request."""
        if self._posting or self.transport != "polling":
            self.engine.end("the client posted twice at once")
            raise BadRequest(3, "Bad request")
        self._posting = True
        try:
            # A body in pieces must come within the time that a pong has.
            body = await _read_body(
                server, self.max_payload, self._settings.engine.session.keepalive_timeout
            )
            try:
                most = self._settings.engine.socketio.socketio_max_packets
                for packet in self.codec.decode_payload(body, most):
                    await self.engine.take_in(packet)
            except BadPacket as error:
                self.engine.end(f"the client broke the protocol: {error}")
                raise BadRequest(3, "Bad request") from None
            except EngineOver:
                pass  # the body held a CLOSE packet
        finally:
            self._posting = False
        await answer(server, 200, b"text/html", b"ok")

    # -- WebSocket --------------------------------------------------------------------------

    @contextlib.contextmanager
    def upgrading(self) -> Iterator[None]:
        """The block is the one upgrade that a client may make at a time, as in engine.io."""
        if self._has_upgrade or self.transport != "polling":
            raise BadRequest(3, "Bad request")
        self._has_upgrade = True
        try:
            yield
        finally:
            self._has_upgrade = False

    async def upgrade(self, socket: WebSocket) -> None:
        """Move from polling to a WebSocket, and carry the session there to its end."""
        try:
            with trio.fail_after(self._settings.engine.handshake_timeout):
                await self._expect(socket, EnginePacket(PING, "probe"))
                await socket.send(self.codec.encode_packet(EnginePacket(PONG, "probe")))
                self._is_upgrading = True
                if self._polling:
                    # The client goes on once the poll that waits now is answered.
                    self.engine.outgoing.put_soon(EnginePacket(NOOP))
                await self._expect(socket, EnginePacket(UPGRADE))
        except (trio.TooSlowError, WebSocketOver, BadPacket):
            self._is_upgrading = False  # polling goes on
            return
        await self.carry(socket)

    async def _expect(self, socket: WebSocket, packet: EnginePacket) -> None:
        if self.codec.decode_packet(await socket.receive()) != packet:
            raise BadPacket("another packet came than the upgrade needs")

    async def carry(self, socket: WebSocket) -> None:
        """Carry the session over a WebSocket to its end."""
        self.transport = "websocket"
        self._socket = socket
        socket.max_message = self.max_payload
        engine, reading = self.engine, trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, socket)
                nursery.start_soon(self._stop_when_over, reading)
                with reading:
                    await self._read(socket)
                # What was queued before the end still goes out.
                nursery.cancel_scope.deadline = trio.current_time() + self._settings.goodbye
        finally:
            engine.end("the connection was cut")

    async def _read(self, socket: WebSocket) -> None:
        engine = self.engine
        try:
            while True:
                await engine.take_in(self.codec.decode_packet(await socket.receive()))
        except (EngineOver, WebSocketOver) as over:
            engine.end(str(over))
        except BadPacket as error:
            engine.end(f"the client broke the protocol: {error}")

    async def _write(self, socket: WebSocket) -> None:
        engine = self.engine
        try:
            while packets := await engine.outgoing.take(1, polling=False):
                for packet in packets:
                    await socket.send(self.codec.encode_packet(packet))
                engine.sent(packets)
        except WebSocketOver as over:
            engine.end(str(over))

    async def _stop_when_over(self, reading: trio.CancelScope) -> None:
        await self.engine.wait_over()
        reading.cancel()


async def answer(server: ServerConnection, status: int, kind: bytes, body: bytes) -> None:
    """Send a whole answer."""
    headers = [(b"Content-Type", kind), (b"Cache-Control", b"no-store")]
    phrase = HTTPStatus(status).phrase.encode("ascii")
    await server.send_response(status, phrase, headers, length=len(body), first=body, end=True)


async def _read_body(server: ServerConnection, most: int, timeout: float) -> bytes:
    with trio.move_on_after(timeout):
        try:
            return await server.read_whole_body(most)
        except BodyTooLong:
            raise BadRequest(3, "Payload too large", 413) from None
        except BadBody:
            raise BadRequest(3, "Bad request") from None
    raise BadRequest(3, "The body did not come in time", 408)
