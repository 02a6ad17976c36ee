"""The HTTP server of the API: it accepts connections, and anycorn speaks HTTP on them, on Trio.

It differs from anycorn's defaults. HTTP/2 upgrades are off, because a request that was checked as
HTTP/1.1 must not become another protocol. The kernel cuts a peer that acknowledges nothing
(`TCP_USER_TIMEOUT`), because anycorn shields its writes and such a peer could delay a shutdown for
ever. WebSockets are not compressed, because most of what they carry is compressed already.

anycorn does not accept the connections itself: it would take every one, and end altogether when it
cannot accept one. Opening as many connections as it has descriptors would stop it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import anycorn
import anyio.abc
import trio
from anycorn.protocol.h11 import H11Protocol
from anycorn.tcp_server import TCPServer
from anycorn.typing import ASGIFramework, ConnectionState, LifespanState
from anycorn.utils import wrap_app
from anycorn.worker_context import WorkerContext
from anyio.streams.tls import TLSStream

from tunnelmux.api.gate import PLACE
from tunnelmux.api.rounds import Pace
from tunnelmux.config import Address
from tunnelmux.observability import get_logger
from tunnelmux.relay import reset_socket
from tunnelmux.transports.admission import Admission, Place
from tunnelmux.transports.certificates import ServerCertificates, follow_renewals
from tunnelmux.transports.tcp import listening_socket

__all__ = ["listen", "serve"]

_log = get_logger("api.server")

_STUCK_PEER_MS = 20_000
# A peer that acknowledges nothing for so long is gone; a phone that changes networks is back
# sooner.

_HEAD_BYTES = 16_384

_QUEUED = 2
# Pieces of a body, or messages of a WebSocket, that wait for a route that takes none.

_FIRST_BYTE = 10.0
_HANDSHAKE = 10.0
# Seconds for the first byte of a connection, and for the rest of a TLS handshake.

_ACCEPTED_AT_ONCE = 64
# Connections that are accepted between two turns of the scheduler: a crowd at the door would else
# keep each one behind it waiting for as many turns as it has heads.

_FAILED_ACCEPT_PAUSE = 0.1
# Seconds before accepting again when, for example, no descriptor is left. Without the pause it
# would try at once, in a loop that takes the processor from connections that could finish.


async def _stay_with_http_1(self: H11Protocol, event: object) -> None:
    """Replaces anycorn's check for an HTTP/2 upgrade or preface, which no setting turns off."""


H11Protocol._check_protocol = _stay_with_http_1  # type: ignore[method-assign]  # noqa: SLF001


class _Connection(TCPServer):
    """One connection for anycorn that ends as soon as its peer has left. anycorn itself would keep
    the descriptor for as long as it waits for another request."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Caller:
    """The caller at one connection, as the gate gets to know them."""

    def __init__(self, place: Place, address: str, pace: Pace) -> None:
        self.is_known = False
        self._place = place
        self._address = address
        self._pace = pace

    def has_spoken(self) -> None:
        """A request shows who is there."""
        self.is_known = True
        self._place.has_spoken()
        self._pace.note_known(self._address)

    async def wait(self) -> None:
        """Wait until what came of a caller who is not known may be handled."""
        if not self.is_known:
            await self._pace.wait(self._address)


class _Paced(anyio.abc.ByteStream):
    """A connection of which, while its caller is not known, each piece waits for its turn; the
    first one has had it."""

    def __init__(self, inner: anyio.abc.SocketStream, caller: _Caller) -> None:
        self._inner = inner
        self._caller = caller
        self._has_begun = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        piece = await self._inner.receive(max_bytes)
        if self._has_begun:
            await self._caller.wait()
        self._has_begun = True
        return piece

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the socket."""
        return self._inner.extra_attributes


def listen(key: str, address: Address) -> socket.socket:
    """A listening socket; `key` is the setting that an error names. Raises ConfigError."""
    listener = listening_socket(key, address)
    with contextlib.suppress(AttributeError, OSError):  # not on every platform
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_PEER_MS)
    return listener


@contextlib.asynccontextmanager
async def serve(
    app: ASGIFramework,
    listener: socket.socket,
    admission: Admission,
    *,
    grace: float,
    max_message: int = 1_048_576,
    certificates: ServerCertificates | None = None,
) -> AsyncIterator[None]:
    """Serve *app* while the block runs, over TLS if there are certificates; then requests in flight
    get `grace` seconds.

    A connection holds its place of `admission` to its end; one that gets none is reset. A message
    of a WebSocket has `max_message` bytes at most.
    """
    listener.setblocking(False)  # it may come from elsewhere, and is asked until none waits
    server = _Server(app, admission, max_message, certificates)
    async with trio.open_nursery() as pacing:
        pacing.start_soon(server.pace.run)
        async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
            accepting.start_soon(server.accept_from, listener, connections)
            if certificates is not None:
                accepting.start_soon(follow_renewals, lambda: certificates)
            try:
                yield
            finally:
                accepting.cancel_scope.cancel()
                await server.context.terminated.set()
                connections.cancel_scope.deadline = trio.current_time() + grace
        pacing.cancel_scope.cancel()


class _Server:
    """The server of all connections."""

    def __init__(
        self,
        app: ASGIFramework,
        admission: Admission,
        max_message: int,
        certificates: ServerCertificates | None,
    ) -> None:
        self._config = config = anycorn.Config()
        config.errorlog = None
        config.accesslog = None
        config.websocket_permessage_deflate = False
        config.websocket_max_message_size = max_message
        config.max_app_queue_size = _QUEUED
        config.include_server_header = False
        config.h11_max_incomplete_size = _HEAD_BYTES
        config.keep_alive_timeout = 30
        self._certificates = certificates
        self._app = wrap_app(app, config.wsgi_max_body_size, "asgi")
        self._admission = admission
        self.context = WorkerContext(None)
        self.pace = Pace()

    async def accept_from(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Accept until it is cancelled."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                for _ in range(_ACCEPTED_AT_ONCE):
                    self._accept(listener, connections)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.ECONNABORTED:  # that caller left before it was accepted
                    await self._after_failed_accept(error)

    def _accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        connection, address = listener.accept()
        place = self._admission.enter(str(Address(*address[:2])))
        if place is None:
            reset_socket(connection)
            return
        connection.setblocking(False)
        caller = _Caller(place, address[0], self.pace)
        connections.start_soon(self._serve, connection, place, caller)

    async def _after_failed_accept(self, error: OSError) -> None:
        _log.error(
            "no connection can be accepted; if files ran out, raise LimitNOFILE (ulimit -n)",
            error=error.strerror,
        )
        self._admission.make_room()
        await trio.sleep(_FAILED_ACCEPT_PAUSE)

    async def _serve(self, connection: socket.socket, place: Place, caller: _Caller) -> None:
        with place, contextlib.closing(connection), trio.CancelScope() as scope:
            place.on_give_way = scope.cancel
            try:
                stream = await self._open(connection, caller)
                if stream is not None:
                    # The gate says there when a request shows who is behind it: until then, this
                    # connection gives way to others, also after it has sent something.
                    state = ConnectionState(LifespanState({PLACE: caller}))
                    await _Connection(self._app, self._config, self.context, state, stream).run()
            except* (OSError, trio.TooSlowError, anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # it left, or its TLS handshake failed
            except* Exception:  # noqa: BLE001  a bug in one connection must not end the others
                _log.exception("unhandled error in connection")

    async def _open(
        self, connection: socket.socket, caller: _Caller
    ) -> anyio.abc.SocketStream | None:
        """The connection as a stream for anycorn; None when the peer sent nothing."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        heard = False
        with trio.move_on_after(_FIRST_BYTE):
            await trio.lowlevel.wait_readable(connection)
            heard = True
        if not heard:
            return None
        await caller.wait()
        connection.getpeername()  # or OSError: it has left
        plain = _Paced(await anyio.abc.SocketStream.from_socket(connection), caller)
        if self._certificates is None:
            return cast("anyio.abc.SocketStream", plain)  # anycorn takes any with its extras
        context = self._certificates.context
        with trio.fail_after(_HANDSHAKE):
            secure = await TLSStream.wrap(plain, server_side=True, ssl_context=context)
        return cast("anyio.abc.SocketStream", secure)
