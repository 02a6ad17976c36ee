"""Socket.IO on an Engine.IO connection: one namespace, events both ways, acknowledgements.

This is Socket.IO 4, or Socket.IO 2 when both ends agree on Engine.IO 3. In Socket.IO 2 every client
is in the namespace "/" from the start, and joins another one with a query instead of a payload.
"""

from __future__ import annotations

import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple
from urllib.parse import urlencode

import trio

from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.observability import get_logger
from tunnelmux.socketio.engine import Engine, EngineOver, EngineSettings
from tunnelmux.socketio.engine_client import (
    EngineVersion,
    SocketIOURL,
    Transports,
    open_engine,
)
from tunnelmux.socketio.engine_packets import MESSAGE, BadPacket, EnginePacket
from tunnelmux.socketio.engine_server import EngineServer, ServerSettings, Session
from tunnelmux.socketio.packets import (
    ACK,
    CONNECT,
    CONNECT_ERROR,
    DISCONNECT,
    EVENT,
    Assembler,
    SocketPacket,
    encode_socket_packet,
)
from tunnelmux.socketio.polling import SessionUnknown

__all__ = ["Event", "Refusal", "Socket", "SocketIOServer", "SocketOver", "connect_socketio"]

_log = get_logger("socketio")

MAX_CALLS = 1024
"""Events that may wait for their acknowledgement at once; one more fails. The limits on commands
allow fewer, so that only a bug can reach this."""


class SocketOver(Exception):
    """The Socket.IO connection has ended. The message says how."""


class Refusal(Exception):
    """Raised by a server's `admit`: the client may not join. The message is sent to it."""


class Event(NamedTuple):
    """One event from the other side. `id` is None when it asks for no acknowledgement."""

    name: str
    args: list[object]
    id: int | None = None


class Socket:
    """A joined namespace on a connection. One task receives; any may send."""

    def __init__(
        self,
        engine: Engine,
        assembler: Assembler,
        namespace: str,
        unread: SocketPacket | None = None,
        *,
        admit_to: Callable[[str], object] | None = None,
    ) -> None:
        self.namespace = namespace
        self._admit_to = admit_to
        self._engine = engine
        self._assembler = assembler
        self._unread = unread
        self._next_id = 0
        self._calls: dict[int, trio.MemorySendChannel[list[object]]] = {}

    @property
    def reason(self) -> str:
        """How the connection ended; empty while it is open."""
        return self._engine.reason

    def end(self, reason: str) -> None:
        """End the connection at once, with a DISCONNECT if there is room for one."""
        disconnect = SocketPacket(DISCONNECT, self.namespace)
        for message in encode_socket_packet(disconnect):
            self._engine.outgoing.put_soon(EnginePacket(MESSAGE, message))
        self._over(reason)

    async def emit(self, name: str, *args: object) -> None:
        """Send an event. Waits while the other side does not read.

        Raises SocketOver, and MessageTooLarge when the other side would not take it.
        """
        await self._send(SocketPacket(EVENT, self.namespace, [name, *args]))

    async def call(self, name: str, *args: object, timeout: float) -> list[object]:
        """Send an event and wait for its acknowledgement. Some task must be in `receive` meanwhile.

        Raises SocketOver, MessageTooLarge and trio.TooSlowError.
        """
        if len(self._calls) >= MAX_CALLS:
            raise trio.TooSlowError(f"{MAX_CALLS} events wait for an acknowledgement already")
        call, self._next_id = self._next_id, self._next_id + 1
        put, get = trio.open_memory_channel[list[object]](1)
        self._calls[call] = put
        try:
            with trio.fail_after(timeout):
                await self._send(SocketPacket(EVENT, self.namespace, [name, *args], call))
                return await get.receive()
        except trio.EndOfChannel:
            raise SocketOver(self._engine.reason) from None
        finally:
            self._calls.pop(call, None)

    async def acknowledge(self, event: Event, *args: object) -> None:
        """Answer an event that asked for it. Raises SocketOver."""
        if event.id is not None:
            await self._send(SocketPacket(ACK, self.namespace, list(args), event.id))

    async def receive(self) -> Event:
        """The next event. Raises SocketOver when the connection has ended."""
        try:
            while True:
                packet, self._unread = self._unread, None
                if packet is None:
                    packet = self._assembler.feed(await self._engine.receive())
                if packet is None:
                    continue
                if packet.namespace != self.namespace:
                    await self._answer_stranger(packet)
                elif packet.kind == EVENT:
                    assert isinstance(packet.data, list)
                    return Event(str(packet.data[0]), packet.data[1:], packet.id)
                elif packet.kind == ACK:
                    self._take_ack(packet)
                elif packet.kind in (DISCONNECT, CONNECT_ERROR):
                    self._over("the other side left the namespace")
                else:
                    self._over("the other side joined a namespace twice")
        except BadPacket as error:
            self._over(f"the other side broke the protocol: {error}")
        except EngineOver as over:
            self._over(str(over))
        raise SocketOver(self._engine.reason)

    async def leave(self) -> None:
        """Queue a DISCONNECT; the opener then ends the connection. Never raises."""
        self._wake_callers()
        with contextlib.suppress(SocketOver):
            await self._send(SocketPacket(DISCONNECT, self.namespace))

    def _over(self, reason: str) -> None:
        self._engine.end(reason)
        self._wake_callers()

    def _wake_callers(self) -> None:
        for put in self._calls.values():
            put.close()

    def _take_ack(self, packet: SocketPacket) -> None:
        assert packet.id is not None
        assert isinstance(packet.data, list)
        put = self._calls.pop(packet.id, None)
        if put is not None:  # else no task waits for it any more
            put.send_nowait(packet.data)
            put.close()

    async def _answer_stranger(self, packet: SocketPacket) -> None:
        """Refuse a packet of another namespace: a connection has one namespace only. A client of
        Socket.IO 2 that was slow to join its own goes there from "/"; `admit_to` raises Refusal."""
        version = self._engine.codec.version
        if version == 3 and packet == SocketPacket(DISCONNECT, "/"):
            return  # it leaves "/", in which every client is; the end of the connection follows
        if packet.kind != CONNECT:
            raise BadPacket("it belongs to a namespace that was not joined")
        said = "one namespace for each connection"
        if version == 3 and self.namespace == "/" and self._admit_to is not None:
            try:
                self._admit_to(packet.namespace)
            except Refusal as refusal:
                said = str(refusal)
            else:
                self.namespace = packet.namespace
                await self._send(SocketPacket(CONNECT, packet.namespace))
                return
        await self._send(_refusal(packet.namespace, said, version))

    async def _send(self, packet: SocketPacket) -> None:
        try:
            await self._engine.send(encode_socket_packet(packet))
        except EngineOver as over:
            raise SocketOver(str(over)) from None


# -- client ---------------------------------------------------------------------------------


@asynccontextmanager
async def connect_socketio(
    url: SocketIOURL,
    *,
    path: str = "/socket.io/",
    query: Mapping[str, str] | None = None,
    auth: Mapping[str, object] | None = None,
    transports: Transports = "auto",
    version: EngineVersion = 4,
    ssl_context: ssl.SSLContext | None = None,
    settings: EngineSettings | None = None,
) -> AsyncIterator[Socket]:
    """A client in the URL's namespace, for the length of the block.

    `query` is sent with every request, `auth` when the namespace is joined. With `version` 3, for
    servers of Socket.IO 2, `query` is sent in both, and `auth` not at all. With `auto`, a server
    that does not know the connection while it is being made is dialled again, by WebSocket: a
    WebSocket stays at one server even behind a load balancer without sticky sessions. Raises
    ConnectError; errors of the block come out unchanged.
    """
    connect = partial(
        _connect,
        url,
        path=path,
        query=query,
        auth=auth,
        version=version,
        ssl_context=ssl_context,
        settings=settings or EngineSettings(),
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            socket = await stack.enter_async_context(connect(transports=transports))
        except SessionUnknown as error:
            if transports != "auto":
                raise
            _log.info("going on by WebSocket", server=str(url), cause=str(error))
            socket = await stack.enter_async_context(connect(transports="websocket"))
        yield socket


@asynccontextmanager
async def _connect(
    url: SocketIOURL,
    *,
    path: str,
    query: Mapping[str, str] | None,
    auth: Mapping[str, object] | None,
    transports: Transports,
    version: EngineVersion,
    ssl_context: ssl.SSLContext | None,
    settings: EngineSettings,
) -> AsyncIterator[Socket]:
    async with open_engine(
        url,
        path=path,
        query=query,
        transports=transports,
        version=version,
        ssl_context=ssl_context,
        settings=settings,
    ) as engine:
        assembler = Assembler(settings.socketio.socketio_max_payload, version)
        wish = SocketPacket(CONNECT, url.namespace, dict(auth) if auth is not None else None)
        if version == 3:
            wish = SocketPacket(CONNECT, f"{url.namespace}?{urlencode(query or {})}")
        try:
            with trio.fail_after(settings.handshake_timeout):
                await _join(engine, assembler, url, wish)
        except trio.TooSlowError:
            raise ConnectError(
                f"{url} did not let us join the namespace within {settings.handshake_timeout:g} s"
            ) from None
        except (EngineOver, BadPacket) as error:
            if isinstance(engine.failure, SessionUnknown):
                raise engine.failure from None
            raise ConnectError(f"{url} ended the connection before we joined: {error}") from None
        socket = Socket(engine, assembler, url.namespace)
        try:
            yield socket
        finally:
            with trio.move_on_after(1.0, shield=True):
                await socket.leave()


async def _join(engine: Engine, assembler: Assembler, url: SocketIOURL, wish: SocketPacket) -> None:
    is_old = engine.codec.version == 3
    if not (is_old and url.namespace == "/"):
        await engine.send(encode_socket_packet(wish))
    while (packet := assembler.feed(await engine.receive())) is None or (
        packet.namespace != url.namespace and not (is_old and packet.kind == CONNECT_ERROR)
    ):
        pass  # a server of Socket.IO 2 first says that we are in "/"
    if packet.kind == CONNECT and (is_old or packet.data):
        return
    if packet.kind == CONNECT:
        raise BadPacket("it answers as Socket.IO 2 does, for which engine_io has to be 3")
    if packet.kind != CONNECT_ERROR:
        raise BadPacket("it answers our CONNECT with another kind of packet")
    said = packet.data.get("message") if isinstance(packet.data, dict) else None
    words = "".join(c for c in said if c.isprintable())[:200] if isinstance(said, str) else "no"
    raise ConnectRefused(f"{url} refused us: {words}", status=403)


# -- server ---------------------------------------------------------------------------------


class Admitted(NamedTuple):
    """The result of `admit`: the function that serves the client."""

    serve: Callable[[Socket], Awaitable[None]]


Admit = Callable[[str, Mapping[str, str], Mapping[str, object], str], Admitted]
"""`admit(namespace, query, auth, remote)`; raises Refusal. It must not wait: a client that has not
authenticated yet holds memory meanwhile."""


class SocketIOServer(EngineServer):
    """A Socket.IO server whose clients join one namespace each; `run` and `handle` make it work."""

    def __init__(self, admit: Admit, settings: ServerSettings) -> None:
        super().__init__(self._serve_session, settings)
        self._admit = admit

    async def _serve_session(self, session: Session) -> None:
        engine = session.engine
        settings = self.settings.engine
        assembler = Assembler(settings.socketio.socketio_max_payload, engine.codec.version)
        wish: SocketPacket | None = None
        unread: SocketPacket | None = None
        try:
            with trio.fail_after(settings.handshake_timeout):
                if engine.codec.version == 3:
                    wish, unread = await self._await_settling(engine, assembler)
                while wish is None:
                    wish = assembler.feed(await engine.receive())
                admitted = await self._let_in(session, wish)
        except (EngineOver, BadPacket, trio.TooSlowError):
            return
        if admitted is None:
            return
        socket = Socket(
            engine,
            assembler,
            wish.namespace,
            unread,
            admit_to=lambda namespace: self._admit(namespace, session.query, {}, session.remote),
        )
        try:
            await admitted.serve(socket)
        except SocketOver:
            pass
        finally:
            with trio.move_on_after(1.0, shield=True):
                await socket.leave()

    async def _await_settling(
        self, engine: Engine, assembler: Assembler
    ) -> tuple[SocketPacket, SocketPacket | None]:
        """The namespace that a client of Socket.IO 2 is in, and a packet that it has sent there.

        The client is told at once that it is in "/"; python-socketio waits for that before it joins
        another namespace. A client that stays in "/" sends nothing about it.
        """
        in_root = SocketPacket(CONNECT, "/")
        await engine.send(encode_socket_packet(in_root))
        packet: SocketPacket | None = None
        with trio.move_on_after(self.settings.settle):
            while packet is None:
                packet = assembler.feed(await engine.receive())
        if packet is None or packet.kind != CONNECT:
            return in_root, packet
        return packet, None

    async def _let_in(self, session: Session, packet: SocketPacket) -> Admitted | None:
        if packet.kind != CONNECT:
            raise BadPacket("the client sends a packet before it has joined a namespace")
        auth = packet.data if isinstance(packet.data, dict) else {}
        version = session.codec.version
        try:
            admitted = self._admit(packet.namespace, session.query, auth, session.remote)
        except Refusal as refusal:
            error = _refusal(packet.namespace, str(refusal), version)
            await session.engine.send(encode_socket_packet(error))
            return None
        session.trust()
        if version == 4:
            sid: dict[str, object] = {"sid": secrets.token_urlsafe(15)}
            welcome = SocketPacket(CONNECT, packet.namespace, sid)
            await session.engine.send(encode_socket_packet(welcome))
        elif packet.namespace != "/":  # the client was told about "/" before
            welcome = SocketPacket(CONNECT, packet.namespace)
            await session.engine.send(encode_socket_packet(welcome))
        return admitted


def _refusal(namespace: str, message: str, version: int) -> SocketPacket:
    if version == 3:
        return SocketPacket(CONNECT_ERROR, namespace, message)
    # `data` is optional, but without it the Go client of zishang520 hides the message.
    return SocketPacket(CONNECT_ERROR, namespace, {"message": message, "data": {}})
