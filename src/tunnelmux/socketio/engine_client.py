"""The client's side of Engine.IO: polling, then an upgrade to a WebSocket; or a WebSocket at
once."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode, urlsplit

import trio

from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.socketio.cookies import CookieJar
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
from tunnelmux.socketio.polling import Polling
from tunnelmux.socketio.websocket import WebSocket, WebSocketOver
from tunnelmux.transports import open_tcp

__all__ = ["EngineVersion", "SocketIOURL", "Transports", "open_engine", "parse_socketio_url"]

Transports = Literal["auto", "polling", "websocket"]
"""`auto` begins with polling, which works everywhere, and upgrades if a WebSocket works."""

EngineVersion = Literal[3, 4]
"""The version of Engine.IO: 4 for servers of Socket.IO 3 and 4, 3 for those of Socket.IO 2."""

_SERVERS = {4: "Socket.IO 3 or 4", 3: "Socket.IO 2"}

_LEAST_PING_INTERVAL = 0.05
# Seconds between two pings at least, even if the server wants more: thousands in a second would
# keep the processor busy.

_LONGEST_SID = 1024
# Characters: each request has the sid in its target. Servers make some 20 to 40.

_GOODBYE = 1.0  # seconds for the last packets; a slower server finds the end by its pings


@dataclass(frozen=True, slots=True)
class SocketIOURL:
    """A Socket.IO URL as its clients read it: a host, and the namespace in the path."""

    is_secure: bool
    host: str
    port: int
    namespace: str

    @property
    def authority(self) -> str:
        """host:port for a Host field, without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.is_secure else 'http'}://{self.authority}{self.namespace}"


def parse_socketio_url(url: str, *, namespace: str) -> SocketIOURL:
    """Parse a URL; its path is the namespace, or `namespace` when it has no path.

    Raises ConfigError.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the Socket.IO URL cannot be read ({error})") from None
    if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.hostname:
        raise ConfigError('the Socket.IO URL must be like "https://main.example.com"')
    is_secure = parts.scheme in {"https", "wss"}
    path = parts.path.rstrip("/") or namespace
    return SocketIOURL(is_secure, parts.hostname, port or (443 if is_secure else 80), path)


@asynccontextmanager
async def open_engine(
    url: SocketIOURL,
    *,
    path: str = "/socket.io/",
    query: Mapping[str, str] | None = None,
    transports: Transports = "auto",
    version: EngineVersion = 4,
    ssl_context: ssl.SSLContext | None = None,
    settings: EngineSettings | None = None,
) -> AsyncIterator[Engine]:
    """An open Engine.IO connection for the length of the block.

    `query` is sent with every request. Raises ConnectError when there is no connection within the
    handshake's timeout, and ConnectRefused when the server refuses.
    """
    codec = Version4() if version == 4 else Version3()
    client = _Client(url, path, query or {}, codec, ssl_context, settings or EngineSettings())
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await client.open(nursery, transports)
                yield client.engine
            except BaseException as error:
                failure = error
                raise
            finally:
                await client.say_goodbye()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup:
        # The transports' tasks never raise, so the error is the block's own.
        if failure is None:
            raise
        raise failure from failure.__cause__


class _Client:
    def __init__(
        self,
        url: SocketIOURL,
        path: str,
        query: Mapping[str, str],
        codec: Codec,
        ssl_context: ssl.SSLContext | None,
        settings: EngineSettings,
    ) -> None:
        self.engine = Engine(settings, codec, is_client=True)
        self._codec = codec
        self._url = url
        self._path = quote(path, safe="/")
        self._query = {**query, "EIO": str(codec.version)}
        self._ssl_context = ssl_context
        self._settings = settings
        self._max_payload = settings.socketio.socketio_max_payload
        self._jar = CookieJar(
            url.host,
            self._path,
            is_secure=url.is_secure,
            most=settings.socketio.socketio_max_cookies,
        )
        self._polling = Polling(self._dial, url.authority, str(url), self._max_payload, self._jar)
        self._may_upgrade = False
        self._ping_interval = 0.0  # s
        self._patience = 0.0  # s of silence after which the server is dead
        self._early: list[EnginePacket] = []  # what came with the handshake
        self._socket: WebSocket | None = None
        self._pausing = False
        self._paused = {"get": trio.Event(), "post": trio.Event()}
        self._post_wait: trio.CancelScope | None = None
        self._is_carried = False
        self._goodbye_said = trio.Event()

    async def open(self, nursery: trio.Nursery, transports: Transports) -> None:
        """Do the handshake, and start the tasks that carry the connection from then on."""
        limit = self._settings.handshake_timeout
        try:
            with trio.fail_after(limit):
                if transports == "websocket":
                    await self._open_websocket()
                else:
                    await self._open_polling()
        except trio.TooSlowError:
            await self._drop_socket()
            raise ConnectError(
                f"{self._url} did not finish the Socket.IO handshake within {limit:g} s; check "
                "that the URL is a Socket.IO server's"
            ) from None
        except (BadPacket, WebSocketOver) as error:
            await self._drop_socket()
            raise ConnectError(
                f"{self._url} does not speak {_SERVERS[self._codec.version]}: {error}; check the "
                "URL, and engine_io"
            ) from None
        except BaseException:
            await self._drop_socket()
            raise
        self._is_carried = True
        nursery.start_soon(self._run, transports)

    async def _drop_socket(self) -> None:
        with trio.CancelScope(shield=True):  # bounded: aclose() gives its goodbye a second
            if self._socket is not None:
                await self._socket.aclose()

    async def _open_polling(self) -> None:
        body = await self._polling.get(self._target("polling"))
        most = self._settings.socketio.socketio_max_packets
        first, *self._early = self._codec.decode_payload(body, most) or [EnginePacket(NOOP)]
        self._shake_hands(first)
        if self._early and self._codec.version == 4:
            raise BadPacket("other packets came together with the handshake")

    async def _open_websocket(self) -> None:
        self._socket = await self._connect_websocket()
        self._shake_hands(self._codec.decode_packet(await self._socket.receive()))

    def _shake_hands(self, packet: EnginePacket) -> None:
        kind, content = packet
        if kind != OPEN or not isinstance(content, dict):
            raise BadPacket("the first packet is not a handshake")
        sid, upgrades = content.get("sid"), content.get("upgrades")
        interval, timeout = content.get("pingInterval"), content.get("pingTimeout")
        if not isinstance(sid, str) or not sid or not isinstance(upgrades, list):
            raise BadPacket("its handshake has no sid or no upgrades")
        if len(sid) > _LONGEST_SID:
            raise BadPacket(f"its sid has more than {_LONGEST_SID} characters")
        if not _is_time(interval) or not _is_time(timeout):
            raise BadPacket("its handshake has no pingInterval or no pingTimeout above 0")
        assert isinstance(interval, int | float)
        assert isinstance(timeout, int | float)
        self._ping_interval = interval / 1000
        self._patience = (interval + timeout) / 1000
        longest = self._settings.socketio.socketio_max_silence
        if self._patience > longest:
            raise BadPacket(
                f"it would fall silent for {self._patience:g} s at a time, which is over the "
                f"{longest:g} s of socketio_max_silence"
            )
        most = content.get("maxPayload")
        if isinstance(most, int) and not isinstance(most, bool) and most > 0:
            self.engine.peer_max_payload = most
        self.engine.sid = sid
        self._may_upgrade = "websocket" in upgrades

    # -- while it is open -------------------------------------------------------------------

    async def _run(self, transports: Transports) -> None:
        engine = self.engine
        engine.heard = trio.current_time()
        try:
            with engine.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    if self._codec.client_pings:
                        nursery.start_soon(self._ping)
                    if self._socket is not None:
                        self._start_websocket(nursery, self._socket)
                    else:
                        nursery.start_soon(self._guarded, self._poll)
                        nursery.start_soon(self._guarded, self._post)
                        if transports == "auto" and self._may_upgrade:
                            nursery.start_soon(self._upgrade, nursery)
        finally:
            self._goodbye_said.set()
            await self._drop_socket()

    async def _watch(self) -> None:
        engine = self.engine
        while (left := engine.heard + self._patience - trio.current_time()) > 0:  # noqa: ASYNC110
            await trio.sleep(left)
        engine.end(f"nothing came for {self._patience:g} s")

    async def _ping(self) -> None:
        while True:
            await trio.sleep(max(self._ping_interval, _LEAST_PING_INTERVAL))
            self.engine.ping()

    async def _guarded(self, transport: object) -> None:
        """Run one of the transports' loops; its failure ends the connection."""
        assert callable(transport)
        try:
            await transport()
        except EngineOver:
            pass
        except BadPacket as error:
            self.engine.end(f"the server broke the protocol: {error}")
        except (ConnectError, WebSocketOver) as error:
            self.engine.end(str(error), failure=error)

    async def say_goodbye(self) -> None:
        """Tell the server that the connection is over, if it is still there."""
        engine = self.engine
        engine.stop_receiving()  # else the last messages could hold up the CLOSE packet
        if self._is_carried and not engine.is_over:
            with trio.move_on_after(_GOODBYE, shield=True):
                engine.outgoing.put_soon(EnginePacket(CLOSE))
                await self._goodbye_said.wait()
        engine.end("closed by this side")

    def _sent(self, packets: list[EnginePacket]) -> None:
        self.engine.sent(packets)
        if any(packet.kind == CLOSE for packet in packets):
            self._goodbye_said.set()

    # -- polling ----------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Take packets from the server, one long poll after the other."""
        most = self._settings.socketio.socketio_max_packets
        for packet in self._early:
            await self.engine.take_in(packet)
        while not self._pausing:
            # Bounded: the server's next ping or pong ends the wait, else _watch does.
            body = await self._polling.get(self._target("polling"))
            for packet in self._codec.decode_payload(body, most):
                await self.engine.take_in(packet)
        self._paused["get"].set()

    async def _post(self) -> None:
        """Send packets to the server: all that wait, in one request."""
        while not self._pausing:
            packets: list[EnginePacket] = []
            with trio.CancelScope() as self._post_wait:
                packets = await self.engine.outgoing.take(
                    self.engine.peer_max_payload, polling=True
                )
            self._post_wait = None
            if not packets and self.engine.is_over:
                return
            if packets:
                # Bounded: while it hangs, no pong goes out, and the server ends the connection.
                body = self._codec.encode_payload(packets)
                await self._polling.post(self._target("polling"), body)
                self._sent(packets)
        self._paused["post"].set()

    # -- WebSocket --------------------------------------------------------------------------

    async def _upgrade(self, nursery: trio.Nursery) -> None:
        """Try a WebSocket; when it works, let the polls end and go on there."""
        socket: WebSocket | None = None
        try:
            with trio.fail_after(self._settings.handshake_timeout):
                socket = await self._connect_websocket()
                await self._probe(socket)
        except (ConnectError, WebSocketOver, BadPacket, trio.TooSlowError):
            # A middlebox may block WebSockets: go on with polling.
            if socket is not None:
                await socket.aclose()
            return
        except BaseException:
            if socket is not None:
                await socket.aclose()
            raise
        self._socket = socket  # closed with the connection from here on
        self._pausing = True
        if self._post_wait is not None:
            self._post_wait.cancel()
        # The server answers the poll that still waits; then both loops stop.
        with trio.move_on_after(self._settings.handshake_timeout) as waiting:
            for paused in self._paused.values():
                await paused.wait()
        if waiting.cancelled_caught:
            self.engine.end("the server did not end polling for the upgrade in time")
            return
        try:
            await socket.send(self._codec.encode_packet(EnginePacket(UPGRADE)))
        except WebSocketOver as error:
            self.engine.end(str(error))
            return
        self._start_websocket(nursery, socket)

    async def _probe(self, socket: WebSocket) -> None:
        await socket.send(self._codec.encode_packet(EnginePacket(PING, "probe")))
        if self._codec.decode_packet(await socket.receive()) != (PONG, "probe"):
            raise BadPacket("the upgrade's probe was not answered with one")

    def _start_websocket(self, nursery: trio.Nursery, socket: WebSocket) -> None:
        async def read() -> None:
            while True:
                await self.engine.take_in(self._codec.decode_packet(await socket.receive()))

        async def write() -> None:
            while packets := await self.engine.outgoing.take(1, polling=False):
                for packet in packets:
                    await socket.send(self._codec.encode_packet(packet))
                self._sent(packets)

        nursery.start_soon(self._guarded, read)
        nursery.start_soon(self._guarded, write)

    # -- connections ------------------------------------------------------------------------

    async def _connect_websocket(self) -> WebSocket:
        stream = await self._dial()
        try:
            return await WebSocket.connect(
                stream,
                self._url.authority,
                self._target("websocket"),
                where=str(self._url),
                max_message=self._max_payload,
                jar=self._jar,
            )
        except BaseException:
            with contextlib.suppress(trio.BrokenResourceError):
                await trio.aclose_forcefully(stream)
            raise

    async def _dial(self) -> trio.abc.Stream:
        return await open_tcp(
            self._url.host,
            self._url.port,
            ssl_context=self._ssl_context,
            timeout=self._settings.handshake_timeout,
            way=self._settings.way,
        )

    def _target(self, transport: str) -> str:
        query = {**self._query, "transport": transport}
        if self.engine.sid:
            query["sid"] = self.engine.sid
        return f"{self._path}?{urlencode(query)}"


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**53
