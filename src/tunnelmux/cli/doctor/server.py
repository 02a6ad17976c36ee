"""Checks of the way to one server. Each needs the one before it; the first failure ends them, and
says the cause."""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import socket
import ssl
import statistics
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import trio

from tunnelmux.cli.doctor.findings import Finding
from tunnelmux.cli.doctor.rates import EXAMPLE, SLOW_FIX, Rate
from tunnelmux.cli.output import duration, size
from tunnelmux.config.http_proxy import HttpProxy
from tunnelmux.errors import ConnectError
from tunnelmux.http import ClientConnection, PeerGone, ResponseHead
from tunnelmux.http.body import BadBody
from tunnelmux.http.head import Field, first_value
from tunnelmux.limits import IngressLimits
from tunnelmux.transports import WayOut
from tunnelmux.transports.dialling import open_tcp

__all__ = ["Probe", "Server", "check_descriptors"]

_CLOCK_SKEW = 30.0
# Seconds: what sign-in allows by default (oidc.clock_skew).

_CERTIFICATE_LEFT = 14 * 86_400.0
# Seconds before a certificate ends at which it should have been renewed.

_ROUND_TRIPS = 5
_SLOW = 0.5
# Seconds: a round trip that people notice with each key they press.

_MOST = 16_777_216
# Bytes that are downloaded to measure.

_MAX_ANSWER = 65_536
# Bytes of an answer that are read: a health document, or the begin of another server's page.

_FEW_DESCRIPTORS = 1024

_NO_ANSWER = (ConnectError, PeerGone, BadBody, trio.TooSlowError)

_DNS_FIX = "check the DNS servers in /etc/resolv.conf, and that UDP port 53 gets out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server's address, and the way to it."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    http_proxy: HttpProxy | None = None
    headers: tuple[Field, ...] = ()

    @property
    def authority(self) -> str:
        """For the Host field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(slots=True)
class Probe:
    """The checks of one server. `upgrade_path` takes WebSockets; `download_path` has a body."""

    server: Server
    upgrade_path: str
    plain_path: str
    download_path: str | None = None
    upgrade_answers: frozenset[int] = frozenset({101})
    """Statuses with which the server itself answers the handshake, even when it refuses."""
    upgrade_marks: tuple[bytes, ...] = ()
    """One of these is in such an answer; a proxy in between does not write it."""
    upgrade_unclear: bytes = b""
    """This is in an answer that says nothing about the upgrade: the caller was refused first."""
    now: datetime | None = None
    download_time: float = 1.0
    """Seconds."""
    timeout: float = 10.0
    """Seconds for each step."""
    _way: WayOut = field(default_factory=WayOut)

    async def run(self) -> AsyncIterator[Finding]:
        """The findings, one by one."""
        server = self.server
        self._way = WayOut(server.http_proxy)
        for check in (self._names, self._connection, self._tls, self._server):
            finding = await check()
            if finding is not None:
                yield finding
                if finding.outcome == "bad":
                    return
        yield await self._clock()
        yield await self._websocket()
        yield await self._round_trip()
        if self.download_path is not None:
            yield await self._throughput(self.download_path)

    # -- one after the other --------------------------------------------------------------------

    async def _names(self) -> Finding | None:
        dialled = self.server.http_proxy or self.server
        try:
            with trio.fail_after(self.timeout):
                found = await trio.socket.getaddrinfo(
                    dialled.host, dialled.port, type=socket.SOCK_STREAM
                )
        except (OSError, UnicodeError) as exc:
            if isinstance(exc, OSError) and exc.errno == socket.EAI_AGAIN:
                return Finding(
                    check="names",
                    outcome="bad",
                    said=f"no DNS server answered for {dialled.host}",
                    fix=_DNS_FIX,
                )
            why = "not a name"
            if isinstance(exc, OSError):
                is_unknown = exc.errno in {socket.EAI_NONAME, socket.EAI_NODATA}
                why = "the name is not known" if is_unknown else str(exc.strerror)
            return Finding(
                check="names",
                outcome="bad",
                said=f"{dialled.host} has no address: {why}",
                fix="check the spelling, and that this machine has a DNS server "
                "(/etc/resolv.conf): getent hosts " + dialled.host,
            )
        except trio.TooSlowError:
            return Finding(
                check="names",
                outcome="bad",
                said=f"no DNS server answered for {dialled.host} within {self.timeout:g} s",
                fix=_DNS_FIX,
            )
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        more = f" and {len(addresses) - 3} more" if len(addresses) > 3 else ""
        return Finding(
            check="names",
            outcome="good",
            said=f"{dialled.host} is {', '.join(addresses[:3])}{more}",
        )

    async def _connection(self) -> Finding | None:
        began = trio.current_time()
        proxy = self.server.http_proxy
        try:
            stream = await self._open(None)
        except ConnectError as exc:
            fix = "check that the server runs and that no firewall on the way drops this port"
            if proxy is not None:
                fix = (
                    "the HTTP proxy comes from HTTPS_PROXY or the configuration: let it pass "
                    f"CONNECT to {self.server.authority}, or name the host in NO_PROXY"
                )
            return Finding(check="connection", outcome="bad", said=str(exc), fix=fix)
        await trio.aclose_forcefully(stream)
        through = f" through the HTTP proxy {proxy}" if proxy is not None else ""
        took = (trio.current_time() - began) * 1000
        return Finding(
            check="connection",
            outcome="good",
            said=f"{self.server.authority}{through}, in {took:.0f} ms",
        )

    async def _tls(self) -> Finding | None:
        if self.server.tls is None:
            return (
                Finding(
                    check="TLS", outcome="warning", said="none: the connection is not encrypted"
                )
                if not _is_loopback(self.server.host)
                else None
            )
        try:
            stream = await self._open(self.server.tls)
        except ConnectError as exc:
            return Finding(
                check="TLS",
                outcome="bad",
                said=str(exc),
                fix=self._why_no_tls(str(exc)),
            )
        assert isinstance(stream, trio.SSLStream)
        peer: dict[str, object] = stream.getpeercert() or {}
        version = stream.version()
        await trio.aclose_forcefully(stream)
        ends = peer.get("notAfter")
        if not isinstance(ends, str):
            return Finding(check="TLS", outcome="good", said=f"{version}, by the pinned key")
        left = ssl.cert_time_to_seconds(ends) - self._time().timestamp()
        said = f"{version}, certificate good for {duration(left)}"
        if left < _CERTIFICATE_LEFT:
            return Finding(
                check="TLS",
                outcome="warning",
                said=said,
                fix="see that it is renewed: after that, nothing connects any more",
            )
        return Finding(check="TLS", outcome="good", said=said)

    def _why_no_tls(self, said: str) -> str:
        """What to do, by OpenSSL's words."""
        if "not yet valid" in said or "expired" in said:
            return (
                f"this machine's clock says {self._time():%Y-%m-%d %H:%M} UTC: set it if that is "
                "wrong (timedatectl set-ntp true); else the server's certificate is not renewed: "
                "renew it"
            )
        if "protocol version" in said or "unsupported protocol" in said:
            return (
                "the server offers no TLS 1.3, which this program wants: let it "
                "(nginx: ssl_protocols TLSv1.2 TLSv1.3)"
            )
        if "wrong version number" in said or "record layer failure" in said:
            return (
                "what answers there does not speak TLS: another port, or the sign-in page of a "
                "network in between (open any page in a browser)"
            )
        if "match" in said:
            return "the certificate is for another name: use the name that it is for"
        return (
            "a certificate that no authority here signed is that of a private authority "
            "(--ca-file, ca_file) or of something that stands in between and reads along"
        )

    async def _server(self) -> Finding | None:
        try:
            head, _ = await self._ask("GET", self.plain_path)
        except _NO_ANSWER as exc:
            return Finding(
                check="server",
                outcome="bad",
                said=f"no HTTP answer: {_why(exc)}",
                fix="something else listens there, or a proxy in between holds the answer back",
            )
        if head.status >= 500:
            return Finding(
                check="server",
                outcome="bad",
                said=f"it answers {head.status}: it runs, and does not serve now",
                fix="look into its log; behind a load balancer, see that it has a server left",
            )
        return Finding(check="server", outcome="good", said=f"it answers ({head.status})")

    async def _clock(self) -> Finding:
        try:
            head, _ = await self._ask("GET", self.plain_path)
        except _NO_ANSWER as exc:
            said = f"not compared: {_why(exc)}"
            return Finding(check="clock", outcome="unknown", said=said)
        date = first_value(head.headers, b"date")
        try:
            there = parsedate_to_datetime((date or b"").decode("latin-1"))
        except (ValueError, TypeError, OverflowError):
            return Finding(
                check="clock", outcome="unknown", said="the server does not tell its time"
            )
        skew = (self._time() - there.astimezone(UTC)).total_seconds()
        if abs(skew) > _CLOCK_SKEW:
            direction = "ahead of" if skew > 0 else "behind"
            return Finding(
                check="clock",
                outcome="bad",
                said=f"{duration(abs(skew))} {direction} the server's",
                fix="set this machine's clock (timedatectl set-ntp true): the validity of "
                "certificates and tokens depends on it",
            )
        return Finding(check="clock", outcome="good", said=f"within {max(abs(skew), 1):.0f} s")

    async def _websocket(self) -> Finding:
        key = base64.b64encode(os.urandom(16))
        fields = [
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Version", b"13"),
            (b"Sec-WebSocket-Key", key),
        ]
        try:
            head, body = await self._ask("GET", self.upgrade_path, fields)
        except _NO_ANSWER as exc:
            return Finding(
                check="WebSocket",
                outcome="bad",
                said=f"the handshake got no answer: {_why(exc)}",
                fix=_UPGRADE_FIX,
            )
        marks = [name for name, _ in head.headers if name.lower() in self.upgrade_marks]
        is_marked = bool(marks) or any(mark in body for mark in self.upgrade_marks)
        if head.status == 101 or (head.status in self.upgrade_answers and is_marked):
            return Finding(check="WebSocket", outcome="good", said="the upgrade gets through")
        if self.upgrade_unclear and self.upgrade_unclear in body:
            return Finding(
                check="WebSocket",
                outcome="unknown",
                said="not known: the server asks who you are first",
            )
        by = first_value(head.headers, b"server")
        who = f" by {by.decode('latin-1')}" if by else ""
        return Finding(
            check="WebSocket",
            outcome="bad",
            said=f"the upgrade was answered with {head.status}{who}, not by tunnelmux",
            fix=_UPGRADE_FIX,
        )

    async def _round_trip(self) -> Finding:
        times: list[float] = []
        with trio.move_on_after(self.timeout), contextlib.suppress(*_NO_ANSWER):
            while len(times) < _ROUND_TRIPS:
                times += await self._times_on_one_connection(_ROUND_TRIPS - len(times))
        if not times:
            return Finding(check="round trip", outcome="unknown", said="not measured")
        middle = statistics.median(times)
        said = f"{middle * 1000:.0f} ms (of {len(times)}: {min(times) * 1000:.0f} to "
        said += f"{max(times) * 1000:.0f} ms)"
        if middle > _SLOW:
            return Finding(
                check="round trip",
                outcome="warning",
                said=said,
                fix="a shell will feel slow: choose a server that is nearer, or another way out",
            )
        return Finding(check="round trip", outcome="good", said=said)

    async def _times_on_one_connection(self, most: int) -> list[float]:
        """Seconds of as many exchanges as the server answers on one connection: a proxy's port for
        agents closes after each. Raises PeerGone or BadBody when there is none."""
        times: list[float] = []
        stream = await self._open(self.server.tls)
        try:
            while len(times) < most:
                began = trio.current_time()
                try:
                    await self._exchange(stream, "GET", self.plain_path, [])
                except (PeerGone, BadBody):
                    if not times:
                        raise
                    break
                times.append(trio.current_time() - began)
        finally:
            await trio.aclose_forcefully(stream)
        return times

    async def _throughput(self, path: str) -> Finding:
        began = trio.current_time()
        count = 0
        with trio.move_on_after(self.timeout) as wait, contextlib.suppress(*_NO_ANSWER):
            is_over = False
            while not is_over and count < _MOST:
                is_over = True
                async with contextlib.aclosing(self._pieces(path)) as pieces:
                    async for piece in pieces:
                        if not count:
                            wait.deadline = trio.current_time() + self.download_time
                        count += len(piece)
                        is_over = False
        rate = Rate(count, trio.current_time() - began)
        if not count:
            return Finding(check="throughput", outcome="unknown", said="nothing to download")
        # At least: what is downloaded is small, and over a long way connecting takes most of it.
        return Finding(
            check="throughput",
            outcome="warning" if rate.is_thin else "good",
            said=f"at least {rate} from there ({size(count)} in {rate.seconds:.1f} s): {EXAMPLE} "
            f"take {rate.time_of_example}",
            fix=SLOW_FIX if rate.is_thin else "",
        )

    async def _pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """The content of an answer, as it comes."""
        stream = await self._open(self.server.tls)
        try:
            client = ClientConnection(stream, IngressLimits())
            headers = [(b"Host", self.server.authority.encode("ascii")), *self.server.headers]
            await client.send_request(b"GET", path.encode("ascii"), headers, end=True)
            while (head := await client.read_head()).is_interim:
                pass
            end = head.status != HTTPStatus.OK  # a refusal is too short to measure
            while not end:
                piece, end = await client.read_body()
                yield piece
        finally:
            await trio.aclose_forcefully(stream)

    # -- below ----------------------------------------------------------------------------------

    def _time(self) -> datetime:
        return self.now or datetime.now(UTC)

    async def _open(self, tls: ssl.SSLContext | None) -> trio.abc.Stream:
        return await open_tcp(
            self.server.host, self.server.port, ssl_context=tls, timeout=self.timeout, way=self._way
        )

    async def _ask(
        self, method: str, path: str, fields: list[Field] | None = None
    ) -> tuple[ResponseHead, bytes]:
        stream = await self._open(self.server.tls)
        try:
            with trio.fail_after(self.timeout):
                return await self._exchange(stream, method, path, fields or [])
        finally:
            await trio.aclose_forcefully(stream)

    async def _exchange(
        self, stream: trio.abc.Stream, method: str, path: str, fields: list[Field]
    ) -> tuple[ResponseHead, bytes]:
        client = ClientConnection(stream, IngressLimits())
        headers = [(b"Host", self.server.authority.encode("ascii")), *self.server.headers, *fields]
        await client.send_request(method.encode("ascii"), path.encode("ascii"), headers, end=True)
        while (head := await client.read_head()).is_interim:
            pass
        body = b"" if head.status == 101 else await client.read_body_start(_MAX_ANSWER)
        return head, body


_UPGRADE_FIX = (
    "a proxy in between does not pass Upgrade on: nginx needs proxy_http_version 1.1 and the two "
    "Upgrade fields (docs/operations.md), a company's proxy an exception; wss:// hides it from most"
)


def check_descriptors() -> Finding:
    """How many files and sockets a process of this user may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_DESCRIPTORS:
        return Finding(
            check="descriptors",
            outcome="warning",
            said=f"{soft} files and sockets at once, {hard} at most",
            fix="ulimit -n 4096, or LimitNOFILE= in the unit: each connection takes one or two",
        )
    words = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return Finding(check="descriptors", outcome="good", said=f"{words} files and sockets at once")


def _why(exc: Exception) -> str:
    return "nothing came in time" if isinstance(exc, trio.TooSlowError) else str(exc)


def _is_loopback(host: str) -> bool:
    from tunnelmux.config.rules import is_loopback

    return is_loopback(host) or host.endswith(".localhost")
