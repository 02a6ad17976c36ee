"""TCP connections set up for a tunnel, and listeners that outlive their connections' errors."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import trio

from tunnelmux.config import Address
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger

if TYPE_CHECKING:
    from tunnelmux.pump.sockets import BareSocket

__all__ = [
    "NO_DELAY",
    "OPTIONS",
    "TCP_USER_TIMEOUT",
    "bound_addresses",
    "configure_socket",
    "explain_os_error",
    "has_hung_up",
    "listening_socket",
    "open_listeners",
    "python_socket",
    "reset_socket",
    "serve_connections",
    "set_socket_options",
    "socket_has_hung_up",
    "take_socket",
]

_log = get_logger("transports")

TCP_USER_TIMEOUT = 20.0
"""Seconds sent bytes may stay unacknowledged before the kernel gives the connection up. The
promise of the documentation (a dead peer is noticed within 20 s), kept below the session's own
keepalive as a second net: it also frees a close that waits for a full send buffer."""

UNSENT_LIMIT = 131_072
"""Bytes that may wait unsent in the kernel (TCP_NOTSENT_LOWAT). What is in there cannot be
overtaken: with the megabytes that are usual, a window update or a short answer would wait seconds
behind a bulk transfer on a slow uplink. Two of our flushes keep a fast one busy."""

_BACKLOG = 4096
# The listen backlog, where the system allows so many (somaxconn). Over it the kernel drops SYNs,
# which clients repeat only after 1, 3 and 7 s: many clients at once must not fill the queue.

_LINGER_ZERO = struct.pack("ii", 1, 0)

_KEEPALIVE_IDLE = 15  # s of silence before the kernel probes; the session's pings come first
_KEEPALIVE_INTERVAL = 5
_KEEPALIVE_COUNT = 3


def configure_socket(
    stream: trio.SocketStream, *, user_timeout: float | None = TCP_USER_TIMEOUT
) -> None:
    """`set_socket_options` for the socket of a stream."""
    set_socket_options(stream.socket, user_timeout=user_timeout)


def set_socket_options(
    sock: socket.socket | trio.socket.SocketType, *, user_timeout: float | None
) -> None:
    """Set what a tunnel wants of its socket: TCP_NODELAY, keepalive, TCP_USER_TIMEOUT (s) and
    TCP_NOTSENT_LOWAT; the last two are left out when `user_timeout` is None.

    An option this system does not have is left out; a socket that is no TCP socket is left alone.
    """
    wanted = OPTIONS
    if user_timeout is not None:
        wanted = [*wanted, *_available("TCP_USER_TIMEOUT", int(user_timeout * 1000)), *_UNSENT]
    for level, option, value in wanted:
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, value)


def _available(name: str, value: int) -> list[tuple[int, int, int]]:
    """The TCP option of that name, if this system has it."""
    option: int | None = getattr(socket, name, None)
    return [] if option is None else [(socket.IPPROTO_TCP, option, value)]


_UNSENT = _available("TCP_NOTSENT_LOWAT", UNSENT_LIMIT)
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
OPTIONS = [
    NO_DELAY,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *_available("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
    *_available("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
    *_available("TCP_KEEPCNT", _KEEPALIVE_COUNT),
]
"""The options for every TCP socket: level, name and value of those that this system has."""


def explain_os_error(exc: BaseException) -> str:
    """The cause in a few words, also when Trio wrapped one error for each address it tried."""
    current: BaseException | None = exc
    while current is not None:
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
        elif isinstance(current, OSError) and current.errno is None and current.__cause__:
            current = current.__cause__
        else:
            break
    if isinstance(current, socket.gaierror):
        return "the name does not resolve"
    if isinstance(current, OSError) and current.errno:
        return os.strerror(current.errno).lower()
    return str(current) or type(current).__name__


def has_hung_up(stream: trio.abc.Stream) -> bool:
    """Whether the peer has closed or reset the TCP connection below this stream, also where bytes
    that it sent before are still to be read. Linux tells; elsewhere, and without a socket, False.
    """
    while not isinstance(stream, trio.SocketStream):
        below = getattr(stream, "transport_stream", None) or getattr(stream, "transport", None)
        if below is None:
            return False
        stream = below
    return socket_has_hung_up(stream.socket)


def socket_has_hung_up(sock: socket.socket | trio.socket.SocketType) -> bool:
    """The same of a socket."""
    if not hasattr(select, "POLLRDHUP") or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listening sockets for `host`:`port` (host "" or "*" is every interface; port 0 is any).

    Raises ConfigError, naming the address and the fix, when it cannot be listened on.
    """
    try:
        return await trio.open_tcp_listeners(port, host=None if host in {"", "*"} else host)
    except (OSError, UnicodeError) as exc:
        cause = explain_os_error(exc)
        code = getattr(exc, "errno", None)
        fix = "choose another address"
        if code == errno.EADDRINUSE:
            fix = "stop the program that uses it, or choose another port"
        elif code in {errno.EACCES, errno.EPERM}:
            fix = "choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
        elif isinstance(exc, socket.gaierror) or code == errno.EADDRNOTAVAIL:
            fix = "choose an address of this machine"
        raise ConfigError(f"cannot listen on {host or '*'}:{port}: {cause}; {fix}") from exc


def python_socket(bare: BareSocket) -> socket.socket:
    """The same socket as an object of Python's, whose it is from now on."""
    made = socket.socket(bare.family, socket.SOCK_STREAM, 0, bare.fileno())
    bare.detach()
    return made


def reset_socket(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close `sock` so that its peer sees a reset."""
    with contextlib.suppress(OSError):  # already closed, or no TCP socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    sock.close()


def take_socket(stream: trio.abc.AsyncResource) -> tuple[socket.socket, bytes] | None:
    """The socket below a stream, and what the stream has received and not given yet; None where
    more than a socket is below, such as TLS.

    The socket does not block. The stream is not to be used any more.
    """
    if isinstance(stream, trio.SocketStream):
        sock = socket.socket(fileno=stream.socket.detach())
        sock.setblocking(False)
        return sock, b""
    take = getattr(stream, "take_socket", None)
    taken: tuple[socket.socket, bytes] | None = take() if take is not None else None
    return taken


def listening_socket(key: str, address: Address) -> socket.socket:
    """A listening socket that does not block; `key` is the setting that an error names.

    Raises ConfigError when it cannot be listened on.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"{key}: cannot listen on {address} ({exc.strerror or exc}): choose another address, "
            "or stop what listens there"
        ) from exc
    return listener


def bound_addresses(listeners: list[trio.SocketListener]) -> list[tuple[str, int]]:
    """(host, port) of every listener, with the port the kernel chose for 0."""
    names = (listener.socket.getsockname() for listener in listeners)
    return [(str(name[0]), int(name[1])) for name in names]


async def serve_connections(
    handler: Callable[[trio.SocketStream], Awaitable[None]],
    listeners: list[trio.SocketListener],
    *,
    user_timeout: float | None = TCP_USER_TIMEOUT,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Run `handler(stream)` for every connection until cancelled, then close the listeners.

    What a handler raises is logged and ends that connection only. The stream is closed when the
    handler is done. Started value: the bound addresses.
    """
    guarded = partial(_run_handler, handler, user_timeout)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, guarded, listeners))
        task_status.started(bound_addresses(listeners))
        await trio.sleep_forever()  # until cancelled: this is what serving means
    raise AssertionError("unreachable")


async def _run_handler(
    handler: Callable[[trio.SocketStream], Awaitable[None]],
    user_timeout: float | None,
    stream: trio.SocketStream,
) -> None:
    try:
        configure_socket(stream, user_timeout=user_timeout)
        await handler(stream)
    except Exception:  # noqa: BLE001  a bug in one connection must not end the listener
        _log.exception("handler failed", effect="this connection ends, others go on")
    finally:
        # A stream that is still open has no owner now; the handler could have closed it gracefully.
        await trio.aclose_forcefully(stream)
