"""Getting a connection to a server: its addresses in turn, through an HTTP proxy if need be.

Some addresses of a name may be dead, or lead to another server. So connecting follows RFC 8305
("Happy Eyeballs"), up to the end of the handshake: when an address fails there, the next one is
tried at once.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import trio

from tunnelmux.config.http_proxy import HttpProxy
from tunnelmux.errors import ConnectError
from tunnelmux.transports.handshake import read_connect_answer
from tunnelmux.transports.reach import Reach, reach_of
from tunnelmux.transports.tcp import TCP_USER_TIMEOUT, configure_socket, explain_os_error
from tunnelmux.transports.tls import start_client_tls

__all__ = ["WayOut", "open_tcp", "try_addresses"]

T = TypeVar("T")

_SocketAddress = tuple[str, int] | tuple[str, int, int, int]

_CONNECTION_DELAY = 0.25
"""Seconds after which the next address is tried beside the one before (RFC 8305 section 8)."""

_SHARE = 0.3
"""Which part of the time for a handshake an address gets while others are left. Ours takes two
round trips, so three of ten seconds are enough on any network that is of use."""

_MOST_ADDRESSES = 8
"""Addresses of a name that are tried; more than that is a list that is drawn from at random."""


@dataclass(slots=True)
class WayOut:
    """The way to one server, with the addresses that worked; keep it between connections."""

    http_proxy: HttpProxy | None = None
    """The HTTP proxy that leads there, or None."""
    good: dict[str, str] = field(default_factory=dict)
    """For each name that was dialled (one or two), the address that led to the server last."""
    told_by: WayOut | None = None
    """The way to the server that has told of this one. Addresses with less reach than its own are
    not dialled: who is outside must not have us call what is inside."""

    @property
    def least_reach(self) -> Reach:
        """What the addresses of the server must have at least."""
        if self.told_by is None or self.http_proxy is not None:
            return Reach.MACHINE  # an HTTP proxy resolves the name, and has rules of its own
        return min(map(reach_of, self.told_by.good.values()), default=Reach.WORLD)


class _Address(NamedTuple):
    family: int
    sockaddr: _SocketAddress

    @property
    def text(self) -> str:
        return str(self.sockaddr[0])


async def open_tcp(
    host: str,
    port: int,
    *,
    ssl_context: ssl.SSLContext | None = None,
    timeout: float = 10.0,
    user_timeout: float | None = TCP_USER_TIMEOUT,
    way: WayOut | None = None,
) -> trio.abc.Stream:
    """A connected stream to `host`:`port`, over TLS when `ssl_context` is given.

    Raises ConnectError naming cause and fix when it is not there within `timeout` seconds; for
    TLS the handshake is part of that time, and a pinned certificate (see `client_context`) has
    been checked when this returns. With several addresses, see `try_addresses`.
    """

    async def use(stream: trio.abc.Stream, _time: float) -> trio.abc.Stream:
        return stream

    return await try_addresses(
        host,
        port,
        use,
        ssl_context=ssl_context,
        timeout=timeout,
        user_timeout=user_timeout,
        way=way,
    )


async def try_addresses(
    host: str,
    port: int,
    use: Callable[[trio.abc.Stream, float], Awaitable[T]],
    *,
    ssl_context: ssl.SSLContext | None = None,
    timeout: float,
    user_timeout: float | None = TCP_USER_TIMEOUT,
    way: WayOut | None = None,
) -> T:
    """What `use(stream, seconds)` makes of a connection to `host`:`port`, TLS included.

    Its addresses are tried in turn, the one that was good last time first; each is followed by the
    next as soon as it cannot be connected to, or TLS or `use` raises a ConnectError, or takes
    longer than its share of `timeout` (s). The last one has all of that. `use` owns the stream
    and keeps to the seconds it is given. A ConnectRefused that is not retryable comes out at once:
    the server itself has answered. Otherwise raises ConnectError with what each address did.
    """
    way = way or WayOut()
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    first = _Dialled(host, port, where)
    if way.http_proxy is not None:
        proxy = way.http_proxy
        first = _Dialled(proxy.host, proxy.port, f"the HTTP proxy {proxy}")

    async def shake_hands(connected: trio.SocketStream, seconds: float) -> T:
        deadline = trio.current_time() + seconds
        configure_socket(connected, user_timeout=user_timeout)
        stream: trio.abc.Stream = connected
        if way.http_proxy is not None:
            stream = await _pass_through(way.http_proxy, stream, where)
        if ssl_context is not None:
            stream = await start_client_tls(stream, ssl_context, host, where=where)
        return await use(stream, max(deadline - trio.current_time(), 0.1))

    return await _try_each(first, shake_hands, timeout, way)


class _Dialled(NamedTuple):
    """The peer of the TCP connection: the server, or the HTTP proxy before it."""

    host: str
    port: int
    where: str


async def _try_each(
    dialled: _Dialled,
    shake_hands: Callable[[trio.SocketStream, float], Awaitable[T]],
    timeout: float,
    way: WayOut,
) -> T:
    deadline = trio.current_time() + timeout
    least = timeout * _SHARE
    left = await _resolve(dialled, timeout, way)
    several = len(left) > 1
    failures: list[tuple[_Address, ConnectError]] = []
    while left:
        # The first wait is a whole one; later ones end with what is left of that, or a share.
        patience = max(deadline - trio.current_time(), least) if failures else timeout
        connected, unreachable = await _connect_first(left, dialled.where, patience)
        failures += unreachable
        left = [address for address in left if address not in dict(unreachable)]
        if connected is None:
            break
        address, stream = connected
        left.remove(address)
        seconds = least if left else max(deadline - trio.current_time(), least)
        try:
            result = await _within(shake_hands, stream, seconds, dialled)
        except ConnectError as error:
            if not error.retryable:
                raise
            failures.append((address, error))
        else:
            way.good[dialled.host] = address.text
            return result
    raise _summary(dialled, failures, several)


async def _within(
    shake_hands: Callable[[trio.SocketStream, float], Awaitable[T]],
    stream: trio.SocketStream,
    seconds: float,
    dialled: _Dialled,
) -> T:
    """The result of `shake_hands` within its time; closes the stream when it fails."""
    try:
        # Its own deadlines come first, with better words; this one is for what has none.
        with trio.fail_after(seconds + 0.5):
            return await shake_hands(stream, seconds)
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)
        raise ConnectError(
            f"{dialled.where} took the connection and did not answer within {seconds:g} s; check "
            "that the port is the right one"
        ) from None
    except BaseException:
        with trio.CancelScope(shield=True):  # it does not wait
            await trio.aclose_forcefully(stream)
        raise


async def _resolve(dialled: _Dialled, timeout: float, way: WayOut) -> list[_Address]:
    """The addresses in the order in which they are tried."""
    good = way.good.get(dialled.host)
    try:
        with trio.fail_after(timeout):
            found = await trio.socket.getaddrinfo(
                dialled.host, dialled.port, type=socket.SOCK_STREAM
            )
    except trio.TooSlowError:
        raise _silent(dialled.where, timeout) from None
    except (OSError, UnicodeError) as exc:
        raise _unreachable(dialled.where, exc) from exc
    addresses = list(
        dict.fromkeys(_Address(one[0], cast("_SocketAddress", one[4])) for one in found)
    )
    least = way.least_reach
    addresses = [address for address in addresses if reach_of(address.text) >= least]
    if not addresses:
        raise ConnectError(
            f"{dialled.where} was not dialled: the proxy tells of it, and its address is further "
            "inside than that of the proxy; give that node an address that the proxy's own peers "
            "can reach"
        )
    # RFC 8305 section 4: the system's order (RFC 6724), with the families taking turns.
    turns = dict.fromkeys(addresses, 0)
    for family in {address.family for address in addresses}:
        own = [address for address in addresses if address.family == family]
        turns.update((address, turn) for turn, address in enumerate(own))
    addresses.sort(key=lambda address: (address.text != good, turns[address]))
    return addresses[:_MOST_ADDRESSES]


async def _connect_first(
    addresses: list[_Address], where: str, timeout: float
) -> tuple[tuple[_Address, trio.SocketStream] | None, list[tuple[_Address, ConnectError]]]:
    """The first of the addresses that takes a connection, and those that failed before it."""
    winner: tuple[_Address, trio.SocketStream] | None = None
    failures: list[tuple[_Address, ConnectError]] = []

    async def attempt(address: _Address, failed: trio.Event) -> None:
        nonlocal winner
        sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
        try:
            await sock.connect(address.sockaddr)
            if winner is None:
                winner = address, trio.SocketStream(sock)
                attempts.cancel_scope.cancel()
        except OSError as exc:
            failures.append((address, _unreachable(where, exc)))
            failed.set()
        finally:
            if winner is None or winner[1].socket is not sock:
                sock.close()

    try:
        with trio.move_on_after(timeout):
            async with trio.open_nursery() as attempts:
                for address in addresses:
                    failed = trio.Event()
                    attempts.start_soon(attempt, address, failed)
                    with trio.move_on_after(_CONNECTION_DELAY):
                        await failed.wait()
    except BaseException:
        if winner is not None:  # cancelled in the same instant
            winner[1].socket.close()
        raise
    if winner is None:
        seen = dict(failures)
        failures += [(one, _silent(where, timeout)) for one in addresses if one not in seen]
    return winner, failures


def _silent(where: str, timeout: float) -> ConnectError:
    return ConnectError(
        f"{where} did not answer within {timeout:g} s; check the address, and that no firewall "
        "drops the connection"
    )


def _unreachable(where: str, exc: Exception) -> ConnectError:
    error = ConnectError(f"cannot connect to {where}: {explain_os_error(exc)}; {_fix_for(exc)}")
    error.__cause__ = exc
    return error


def _fix_for(exc: Exception) -> str:
    if isinstance(exc, (socket.gaierror, UnicodeError)):
        return "check its spelling, and that this machine has DNS"
    if isinstance(exc, OSError) and exc.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "check the address, and this machine's network"
    return "check the address, and that something listens there"


def _summary(
    dialled: _Dialled, failures: list[tuple[_Address, ConnectError]], several: bool
) -> ConnectError:
    """One error for all addresses."""
    if not several or len(failures) == 1:
        return failures[-1][1]
    hints = [error.retry_after for _, error in failures if error.retry_after is not None]
    said = "; ".join(f"({address.text}) {error}" for address, error in failures)
    return ConnectError(
        f"none of the {len(failures)} addresses of {dialled.where} led to the server: {said}",
        retry_after=max(hints, default=None),
    )


async def _pass_through(
    proxy: HttpProxy, stream: trio.abc.Stream, authority: str
) -> trio.abc.Stream:
    """Have the HTTP proxy connect the stream with `authority` (host:port). Raises ConnectError."""
    where = f"the HTTP proxy {proxy}"
    if proxy.is_secure:
        stream = await start_client_tls(
            stream, ssl.create_default_context(), proxy.host, where=where
        )
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines.append("User-Agent: tunnelmux")
    if proxy.login is not None:
        login = base64.b64encode(proxy.login.reveal().encode()).decode("ascii")
        lines.append(f"Proxy-Authorization: Basic {login}")
    try:
        with contextlib.suppress(trio.BrokenResourceError):  # the answer, if any, says why
            await stream.send_all("\r\n".join([*lines, "", ""]).encode("ascii"))
        await read_connect_answer(
            stream.receive_some, where, authority, has_login=proxy.login is not None
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream
