"""The server's side of Engine.IO: one listener for polling, upgrades and WebSockets.

A polling session is many HTTP requests, which may come over any number of TCP connections; the sid
in each names the session. Each session has a task of its own, and ends when its pings stay
unanswered.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from urllib.parse import parse_qsl

import trio

from tunnelmux.errors import ConnectError
from tunnelmux.http import Refused, RequestHead, ServerConnection, VisitorGone
from tunnelmux.http.fields import client_address
from tunnelmux.http.head import has_member
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.socketio.engine_packets import CLOSE, EnginePacket
from tunnelmux.socketio.engine_session import (
    Arrival,
    BadRequest,
    Caller,
    ServerSettings,
    Session,
    answer,
)
from tunnelmux.socketio.websocket import WebSocket, WebSocketOver
from tunnelmux.transports import start_server_tls
from tunnelmux.transports.admission import Admission, Place, source_of

__all__ = ["EngineServer", "ServerSettings", "Session"]

_log = get_logger("socketio")

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

OnSession = Callable[[Session], Awaitable[None]]
"""Serves one client to its end. Returning ends the session."""


class EngineServer:
    """Sessions, and the HTTP connections that carry them. `run` owns the sessions' tasks.

    `handle` serves one connection. The listener first gets a place for it from `admission`; the
    connection holds that until it carries an authenticated client.
    """

    def __init__(self, on_session: OnSession, settings: ServerSettings) -> None:
        self.admission = Admission("socketio")
        self._strangers = Admission("socketio: clients that have not joined yet", by_share=True)
        self.settings = settings
        self._on_session = on_session
        self._said_full: dict[str, float] = {}
        self._refusals = RepeatedLines("client refused")
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
            max_waiting=limits.max_waiting_handshakes,
            patience=limits.handshake_timeout * 2 / 3,
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
                arrival = Arrival(remote, place, scope.cancel)
                await self._serve_connection(stream, settings, arrival)
        except ConnectError as error:
            _log.debug("a TLS handshake failed", remote=remote, cause=str(error))
        except VisitorGone:
            pass
        finally:
            self._connections.remove(scope)
            place.leave()
            await trio.aclose_forcefully(stream)

    async def _serve_connection(
        self, stream: trio.abc.Stream, settings: ServerSettings, arrival: Arrival
    ) -> None:
        tls: trio.abc.Stream | None = None
        patience = settings.http.first_byte_timeout
        if isinstance(stream, trio.SocketStream) and not await arrival.place.hear(stream, patience):
            return
        try:
            if settings.tls is not None:
                assert isinstance(stream, trio.SocketStream)
                timeout = settings.engine.handshake_timeout
                tls = await start_server_tls(stream, settings.tls, timeout=timeout)
            await self._serve(ServerConnection(tls or stream, settings.http), arrival)
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

    async def _serve(self, server: ServerConnection, arrival: Arrival) -> None:
        try:
            while (request := await server.read_request()) is not None:
                is_websocket = has_member(request.headers, b"upgrade", b"websocket")
                try:
                    with self._asked_by(request, arrival) as caller:
                        if is_websocket:
                            await self._serve_websocket(server, request, caller)
                            return
                        await self._serve_polling(server, request, caller)
                except BadRequest as error:
                    await answer(server, error.status, b"application/json", error.body)
                if is_websocket or not server.reusable:
                    break
        except Refused as refused:
            await server.refuse(refused.refusal)
            return
        finally:
            arrival.is_left()
        await server.close()

    @contextlib.contextmanager
    def _asked_by(self, request: RequestHead, arrival: Arrival) -> Iterator[Caller]:
        """The address that a request comes from, and its place: those of the connection. Behind a
        trusted proxy it is the client's address, with a place of its own for this request."""
        client = None
        if self.admission.exempts(arrival.remote):
            client = client_address(request.headers, self.settings.trusted)
        if client is None or self.admission.exempts(client):
            is_proxy = self.admission.exempts(arrival.remote)
            yield Caller(arrival.remote, arrival.place, None if is_proxy else arrival)
            return
        arrival.place.leave()
        place = self.admission.enter(client)
        if place is None:
            raise _full()
        with place:
            place.has_spoken()
            place.on_give_way = arrival.cut
            yield Caller(client, place, None)

    # -- one request ------------------------------------------------------------------------

    async def _serve_polling(
        self, server: ServerConnection, request: RequestHead, caller: Caller
    ) -> None:
        query = self._checked_query(request, "polling", caller.remote)
        if "sid" not in query:
            if request.method != b"GET":
                raise BadRequest(2, "Bad handshake method")
            session = self._open(caller.remote, query)
            opening = session.handshake(upgrades=["websocket"])
            body = session.codec.encode_payload([opening])
            await answer(server, 200, b"text/plain; charset=UTF-8", body)
            return
        session = self._find(query["sid"])
        with session.carried_by(caller):
            if request.method == b"GET":
                await session.poll(server)
            elif request.method == b"POST":
                await session.post(server)
            else:
                raise BadRequest(2, "Bad handshake method")

    async def _serve_websocket(
        self, server: ServerConnection, request: RequestHead, caller: Caller
    ) -> None:
        query = self._checked_query(request, "websocket", caller.remote)
        if "sid" in query:
            known = self._find_polling(query["sid"])
            with known.upgrading(), known.carried_by(caller):
                async with self._accepted(server, request) as socket:
                    await known.upgrade(socket)
            return
        self._check_room()
        async with self._accepted(server, request) as socket:
            with contextlib.suppress(BadRequest):  # the last place was given away meanwhile
                session = self._open(caller.remote, query)
                session.engine.outgoing.put_soon(session.handshake(upgrades=[]))
                with session.carried_by(caller):
                    await session.carry(socket)

    @contextlib.asynccontextmanager
    async def _accepted(
        self, server: ServerConnection, request: RequestHead
    ) -> AsyncIterator[WebSocket]:
        """The WebSocket that a request asks for, which is closed behind the block."""
        socket = await self._accept(server, request)
        try:
            yield socket
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
            raise BadRequest(3, "Bad request") from None

    def _checked_query(self, request: RequestHead, transport: str, remote: str) -> dict[str, str]:
        target = request.target.decode("ascii", "replace")
        path, _, encoded = target.partition("?")
        if path.rstrip("/") != self.settings.path.rstrip("/"):
            raise BadRequest(3, f"Socket.IO is at {self.settings.path}", 404)
        try:
            query = dict(parse_qsl(encoded, max_num_fields=64))
        except ValueError:
            raise BadRequest(3, "Bad request") from None
        version = query.get("EIO")
        if version != "4" and not (version == "3" and self.settings.allow_eio3):
            if version in ("2", "3"):  # such clients often do not show our answer
                cause = f"it speaks Engine.IO {version}"
                if self._refusals.may_write(source_of(remote)):
                    _log.warning("client refused", remote=remote, cause=cause, fix=_ALLOW)
            raise BadRequest(5, _WRONG_VERSION)
        if query.get("transport") != transport:
            raise BadRequest(0, "Transport unknown")
        return query

    # -- sessions ---------------------------------------------------------------------------

    def _find(self, sid: str) -> Session:
        session = self._sessions.get(sid)
        if session is None:
            raise BadRequest(1, "Session ID unknown")
        return session

    def _find_polling(self, sid: str) -> Session:
        session = self._find(sid)
        if session.transport != "polling":
            raise BadRequest(3, "Bad request")
        return session

    def _check_room(self) -> None:
        most = self.settings.engine.socketio.socketio_max_sessions
        # Clients that have not joined yet have places of their own: they keep no agent out.
        is_full = len(self._sessions) - len(self._strangers) >= most
        if is_full:
            self._say_full("Socket.IO connections", most)
        if self._nursery is None or is_full:
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


def _full() -> BadRequest:
    return BadRequest(4, "Too many connections", 503)
