"""The server's side of Engine.IO: one listener for polling, upgrades and WebSockets.

A polling session is many HTTP requests, which may come over any number of TCP connections; the sid
in each names the session. Each session has a task of its own, and ends when its pings stay
unanswered.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qsl

import trio

from tunnelmux.errors import ConnectError
from tunnelmux.http import Refused, RequestHead, ServerConnection, VisitorGone
from tunnelmux.http.body import BadBody
from tunnelmux.http.fields import TrustedProxies, client_address
from tunnelmux.http.head import has_member
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.socketio.engine import Engine, EngineOver, EngineSettings
from tunnelmux.socketio.engine_packets import (
    CLOSE,
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
from tunnelmux.transports import start_server_tls
from tunnelmux.transports.admission import Admission, Place

__all__ = ["EngineServer", "ServerSettings", "Session"]

_log = get_logger("socketio")

_NOOP_INTERVAL = 0.1
# Seconds between two empty answers to the polls of a client that is upgrading, as in engine.io: the
# client goes on when its last poll was answered.

_POLL_BUDGET = 262_144
# Bytes in the answer to one poll, unless a single packet is larger. The rest waits for the next
# poll: if an answer is lost, the rest is not.

_CLOSING = 0.25
# Seconds that all sessions together get to end when the server closes: a client that polls asks
# again within a round trip.

_LOG_INTERVAL = 10.0
# Seconds between two log lines about the same limit: a flood must not fill the log as well.

_WRONG_VERSION = (
    "Unsupported protocol version: this server speaks Engine.IO 4, "
    "as clients of Socket.IO 3 and 4 do"
)

_ALLOW = "use a client of Socket.IO 3 or 4 there, or set allow_eio3 = true under [socketio] here"


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


class _BadRequest(Exception):
    """A request that is answered with an error of engine.io."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.body = json.dumps({"code": code, "message": message}).encode("ascii")


class _Arrival:
    """A TCP connection that was admitted: its peer, its place, and the function that ends it."""

    def __init__(self, remote: str, place: Place) -> None:
        self.remote = remote
        self.place = place
        self.cut = place.on_give_way


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
        self._arrivals: set[Place] = set()
        place.on_give_way = partial(self.engine.end, "others needed its place")
        self._socket: WebSocket | None = None
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
        for place in (self._place, *self._arrivals):
            place.leave()
        if self._socket is not None:
            self._socket.max_message = self.max_payload

    def leave(self) -> None:
        """Give back the place among the unknown clients, if the session still has it."""
        self._place.leave()

    @contextlib.contextmanager
    def carried_by(self, place: Place) -> Iterator[None]:
        """Within the block, a connection with that place carries a request of this client."""
        self._arrivals.add(place)
        if self.is_known:
            place.leave()
        try:
            yield
        finally:
            self._arrivals.discard(place)

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
            engine.outgoing.put_soon(EnginePacket(PING))
            await trio.sleep(limits.keepalive_timeout)
            if engine.heard < asked:
                engine.end(f"nothing came for {trio.current_time() - engine.heard:.0f} s")

    # -- polling ----------------------------------------------------------------------------

    async def poll(self, server: ServerConnection) -> None:
        """Answer one long poll with the packets that wait for the client, or the next that come."""
        if self._polling or self.transport != "polling":
            self.engine.end("the client polled twice at once")
            raise _BadRequest(3, "Bad request")
        self._polling = True
        try:
            packets = await self._next_packets(server)
            if not packets:
                raise _BadRequest(1, "Session ID unknown")
            body = self.codec.encode_payload(packets)
            # Before the answer is sent: the client's next poll may come before this task goes on.
            self._polling = False
            self.engine.sent(packets)
            await _answer(server, 200, b"text/plain; charset=UTF-8", body)
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
            raise _BadRequest(3, "Bad request")
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
                raise _BadRequest(3, "Bad request") from None
            except EngineOver:
                pass  # the body held a CLOSE packet
        finally:
            self._posting = False
        await _answer(server, 200, b"text/html", b"ok")

    # -- WebSocket --------------------------------------------------------------------------

    async def upgrade(self, socket: WebSocket) -> None:
        """Move from polling to a WebSocket, and carry the session there to its end."""
        try:
            with trio.fail_after(self._settings.engine.handshake_timeout):
                await self._expect(socket, EnginePacket(PING, "probe"))
                await socket.send(self.codec.encode_packet(EnginePacket(PONG, "probe")))
                self._is_upgrading = True
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


OnSession = Callable[[Session], Awaitable[None]]
"""Serves one client to its end. Returning ends the session."""


class EngineServer:
    """Sessions, and the HTTP connections that carry them. `run` owns the sessions' tasks.

    `handle` serves one connection. The listener first gets a place for it from `admission`; the
    connection holds that until it carries an authenticated client.
    """

    def __init__(self, on_session: OnSession, settings: ServerSettings) -> None:
        self.admission = Admission("socketio")
        self._strangers = Admission("socketio: clients that have not joined yet")
        self.settings = settings
        self._on_session = on_session
        self._said_full: dict[str, float] = {}
        self._sessions: dict[str, Session] = {}
        self._connections: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None

    @property
    def settings(self) -> ServerSettings:
        """The settings for new connections; they may be replaced at any time."""
        return self._settings

    @settings.setter
    def settings(self, settings: ServerSettings) -> None:
        self._settings = settings
        limits = settings.http
        # A client on polling has two connections.
        self.admission.configure(
            limit=2 * limits.max_handshakes,
            per_address=2 * limits.max_arrivals_per_address,
            exempt=settings.trusted,
        )
        self._strangers.configure(
            limit=limits.max_handshakes,
            per_address=limits.max_arrivals_per_address,
            exempt=settings.trusted,
        )

    @property
    def is_running(self) -> bool:
        """Whether `run` is running."""
        return self._nursery is not None

    @property
    def session_count(self) -> int:
        """How many clients are connected, counting those that have not authenticated yet."""
        return len(self._sessions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the sessions' tasks until cancelled. Reports started when `handle` may be called."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()  # no deadline: a server runs until cancelled
        finally:
            self._nursery = None

    async def aclose(self) -> None:
        """End every session, after a moment for the queued packets, and then `run`."""
        for session in self._sessions.values():
            session.engine.outgoing.put_soon(EnginePacket(CLOSE))
            session.engine.end("the server is closing")
        with trio.move_on_after(_CLOSING):
            for session in list(self._sessions.values()):
                await session.ended.wait()
        for scope in self._connections:
            scope.cancel(reason="the server is closing")
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason="the server is closing")

    async def handle(self, stream: trio.abc.Stream, remote: str, place: Place) -> None:
        """Serve one TCP connection to its end; then close it, and give its place back."""
        settings = self.settings
        scope = trio.CancelScope()
        place.on_give_way = scope.cancel
        most = self._most_connections(settings)
        if len(self._connections) >= most:
            self._say_full("connections", most)
        if len(self._connections) >= most or not place.is_held:
            place.leave()
            await trio.aclose_forcefully(stream)
            return
        self._connections.add(scope)
        try:
            with scope:
                await self._serve_connection(stream, remote, settings, place)
        except ConnectError as error:
            _log.debug("a TLS handshake failed", remote=remote, cause=str(error))
        except VisitorGone:
            pass
        finally:
            self._connections.remove(scope)
            place.leave()
            await trio.aclose_forcefully(stream)

    async def _serve_connection(
        self, stream: trio.abc.Stream, remote: str, settings: ServerSettings, place: Place
    ) -> None:
        tls: trio.abc.Stream | None = None
        patience = settings.http.first_byte_timeout
        if isinstance(stream, trio.SocketStream) and not await place.hear(stream, patience):
            return
        try:
            if settings.tls is not None:
                assert isinstance(stream, trio.SocketStream)
                timeout = settings.engine.handshake_timeout
                tls = await start_server_tls(stream, settings.tls, timeout=timeout)
            await self._serve(ServerConnection(tls or stream, settings.http), remote, place)
        finally:
            if tls is not None:
                await trio.aclose_forcefully(tls)

    def _most_connections(self, settings: ServerSettings) -> int:
        # A polling client has two connections, a client on a WebSocket has one.
        return 2 * (settings.engine.socketio.socketio_max_sessions + settings.http.max_handshakes)

    def _say_full(self, what: str, limit: int) -> None:
        now = trio.current_time()
        if now >= self._said_full.get(what, float("-inf")) + _LOG_INTERVAL:
            self._said_full[what] = now
            _log.warning(f"too many {what}", limit=limit, fix="raise socketio_max_sessions")

    async def _serve(self, server: ServerConnection, remote: str, place: Place) -> None:
        arrival = _Arrival(remote, place)
        try:
            while (request := await server.read_request()) is not None:
                is_websocket = has_member(request.headers, b"upgrade", b"websocket")
                try:
                    with self._asked_by(request, arrival) as (client, its_place):
                        if is_websocket:
                            await self._serve_websocket(server, request, client, its_place)
                            return
                        await self._serve_polling(server, request, client, its_place)
                except _BadRequest as error:
                    await _answer(server, error.status, b"application/json", error.body)
                if is_websocket or not server.reusable:
                    break
        except Refused as refused:
            await server.refuse(refused.refusal)
            return
        await server.close()

    @contextlib.contextmanager
    def _asked_by(self, request: RequestHead, arrival: _Arrival) -> Iterator[tuple[str, Place]]:
        """The address that a request comes from, and its place: those of the connection. Behind a
        trusted proxy it is the client's address, with a place of its own for this request."""
        client = None
        if self.admission.exempts(arrival.remote):
            client = client_address(request.headers, self.settings.trusted)
        if client is None or self.admission.exempts(client):
            yield arrival.remote, arrival.place
            return
        arrival.place.leave()
        place = self.admission.enter(client)
        if place is None:
            raise _full()
        with place:
            place.has_spoken()
            place.on_give_way = arrival.cut
            yield client, place

    # -- one request ------------------------------------------------------------------------

    async def _serve_polling(
        self, server: ServerConnection, request: RequestHead, remote: str, place: Place
    ) -> None:
        query = self._checked_query(request, "polling", remote)
        if "sid" not in query:
            if request.method != b"GET":
                raise _BadRequest(2, "Bad handshake method")
            session = self._open(remote, query)
            opening = session.handshake(upgrades=["websocket"])
            body = session.codec.encode_payload([opening])
            await _answer(server, 200, b"text/plain; charset=UTF-8", body)
            return
        session = self._find(query["sid"])
        with session.carried_by(place):
            if request.method == b"GET":
                await session.poll(server)
            elif request.method == b"POST":
                await session.post(server)
            else:
                raise _BadRequest(2, "Bad handshake method")

    async def _serve_websocket(
        self, server: ServerConnection, request: RequestHead, remote: str, place: Place
    ) -> None:
        query = self._checked_query(request, "websocket", remote)
        known = self._find_polling(query["sid"]) if "sid" in query else None
        if known is None:
            self._check_room()
        socket = await self._accept(server, request)
        try:
            if known is not None:
                with known.carried_by(place):
                    await known.upgrade(socket)
            else:
                with contextlib.suppress(_BadRequest):  # the last place was given away meanwhile
                    session = self._open(remote, query)
                    session.engine.outgoing.put_soon(session.handshake(upgrades=[]))
                    with session.carried_by(place):
                        await session.carry(socket)
        finally:
            with trio.CancelScope(shield=True):  # bounded: aclose() gives its goodbye a second
                await socket.aclose()

    async def _accept(self, server: ServerConnection, request: RequestHead) -> WebSocket:
        # Taken for HTTP/1.1, whatever its version is; wsproto refuses an invalid upgrade.
        limits = self.settings.http
        try:
            with trio.fail_after(self.settings.engine.handshake_timeout):
                return await WebSocket.accept(
                    server.stream,
                    request.target,
                    [(name.lower(), value) for name, value in request.headers],
                    rest=server.take_buffer(),
                    max_message=limits.max_head_bytes,
                )
        except (WebSocketOver, trio.TooSlowError):
            raise _BadRequest(3, "Bad request") from None

    def _checked_query(self, request: RequestHead, transport: str, remote: str) -> dict[str, str]:
        target = request.target.decode("ascii", "replace")
        path, _, encoded = target.partition("?")
        if path.rstrip("/") != self.settings.path.rstrip("/"):
            raise _BadRequest(3, f"Socket.IO is at {self.settings.path}", 404)
        try:
            query = dict(parse_qsl(encoded, max_num_fields=64))
        except ValueError:
            raise _BadRequest(3, "Bad request") from None
        version = query.get("EIO")
        if version != "4" and not (version == "3" and self.settings.allow_eio3):
            if version in ("2", "3"):  # such clients often do not show our answer
                cause = f"it speaks Engine.IO {version}"
                _log.warning("client refused", remote=remote, cause=cause, fix=_ALLOW)
            raise _BadRequest(5, _WRONG_VERSION)
        if query.get("transport") != transport:
            raise _BadRequest(0, "Transport unknown")
        return query

    # -- sessions ---------------------------------------------------------------------------

    def _find(self, sid: str) -> Session:
        session = self._sessions.get(sid)
        if session is None:
            raise _BadRequest(1, "Session ID unknown")
        return session

    def _find_polling(self, sid: str) -> Session:
        session = self._find(sid)
        if session.transport != "polling":
            raise _BadRequest(3, "Bad request")
        return session

    def _check_room(self) -> None:
        most = self.settings.engine.socketio.socketio_max_sessions
        if len(self._sessions) >= most:
            self._say_full("Socket.IO connections", most)
        if self._nursery is None or len(self._sessions) >= most:
            raise _full()

    def _open(self, remote: str, query: Mapping[str, str]) -> Session:
        self._check_room()
        assert self._nursery is not None  # else there is no room
        place = self._strangers.enter(remote)
        if place is None:
            raise _full()
        session = Session(self.settings, remote, query, place)
        self._sessions[session.engine.sid] = session
        self._nursery.start_soon(self._hold, session)
        return session

    async def _hold(self, session: Session) -> None:
        engine = session.engine
        try:
            with engine.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.heartbeat)
                    await self._on_session(session)
                    nursery.cancel_scope.cancel()
            engine.end("closed by this side")
            await engine.outgoing.drained(self.settings.goodbye)
        except Exception:  # noqa: BLE001  a bug met by one client is no reason to drop the others
            _log.exception("unhandled error in a Socket.IO session")
        finally:
            engine.end("the server is closing")
            session.leave()
            session.ended.set()
            del self._sessions[engine.sid]


def _full() -> _BadRequest:
    return _BadRequest(4, "Too many connections", 503)


async def _answer(server: ServerConnection, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"Content-Type", kind), (b"Cache-Control", b"no-store")]
    phrase = HTTPStatus(status).phrase.encode("ascii")
    await server.send_response(status, phrase, headers, length=len(body), first=body, end=True)


async def _read_body(server: ServerConnection, most: int, timeout: float) -> bytes:
    content = bytearray()
    with trio.move_on_after(timeout):
        try:
            done = server.body_done
            while not done:
                piece, done = await server.read_body()
                content += piece
                if len(content) > most:
                    raise _BadRequest(3, "Payload too large", 413)
        except BadBody:
            raise _BadRequest(3, "Bad request") from None
        return bytes(content)
    raise _BadRequest(3, "The body did not come in time", 408)
