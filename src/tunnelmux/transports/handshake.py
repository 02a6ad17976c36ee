"""The HTTP/1.1 side of a WebSocket handshake, read before trio-websocket sees it.

trio-websocket leaves a server waiting for ever when the request is no upgrade, a client when the
answer never ends, and neither says why. So the head is read and checked here. A bad one is answered
with a short HTTP response; only a valid one is replayed into trio-websocket.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl

import h11
import trio
import wsproto
from wsproto.utilities import RemoteProtocolError as WebSocketProtocolError

from tunnelmux.errors import ConnectError, ConnectRefused
from tunnelmux.wire import REASON_FIELD

__all__ = [
    "HANDSHAKE_TIMEOUT",
    "MAX_HEAD_BYTES",
    "Headers",
    "UpgradeRequest",
    "date_field",
    "read_connect_answer",
    "read_response",
    "read_upgrade",
    "send_answer",
]

Headers = Sequence[tuple[bytes, bytes]]

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for the whole handshake. Ours takes two round trips at most; a slower peer is better
served by a fresh try than by a slot kept for it."""

MAX_HEAD_BYTES = 16_384
"""Largest handshake head, either way. Browsers' and load balancers' heads stay under 8 KiB."""

_MAX_REFUSAL_BODY = 2_048
_LINGER = 0.5  # seconds for a peer to read an answer before a reset could discard it
_MAX_RETRY_AFTER = 3_600.0  # seconds; a longer Retry-After is taken for a mistake


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A valid WebSocket upgrade request that was not answered yet.

    Answer it with `websocket.accept_websocket(request)` or `refuse()`. Its repr shows no header
    and no query, which may hold a token.
    """

    stream: trio.abc.Stream = field(repr=False)
    target: str = field(repr=False)
    headers: Headers = field(repr=False)
    subprotocols: tuple[str, ...]
    head: bytes = field(repr=False)
    """The request for trio-websocket: only the fields of the handshake."""
    rest: bytes = field(repr=False)
    path: str

    def header(self, name: str) -> str | None:
        """The first header field of that name (any case), or None."""
        wanted = name.lower().encode("ascii")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    @property
    def token(self) -> str | None:
        """The bearer token of RFC 6750: `Authorization: Bearer`, else `?token=`, else None."""
        scheme, _, value = (self.header("authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and value.strip():
            return value.strip()
        query = self.target.partition("?")[2]
        return dict(parse_qsl(query)).get("token") or None

    async def refuse(self, status: int, reason: str, text: str, *, headers: Headers = ()) -> None:
        """Answer `status` with `Tunnelmux-Reason: reason` and the sentence `text`, then close."""
        await send_answer(self.stream, status, reason, text, headers=headers)


async def send_answer(
    stream: trio.abc.Stream, status: int, reason: str | None, text: str, *, headers: Headers = ()
) -> None:
    """Send one short plain-text HTTP response and close the stream; gives up quietly after 1 s.

    `reason` is the `Tunnelmux-Reason` code of a refusal, None for other answers.
    """
    body = text.encode() + b"\n"
    lines = [
        f"HTTP/1.1 {status} {_phrase(status)}".encode("ascii"),
        b"Date: " + date_field(),
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *([REASON_FIELD + b": " + reason.encode("ascii")] if reason else []),
        *(name + b": " + value for name, value in headers),
    ]
    answer = b"\r\n".join(lines) + b"\r\n\r\n" + body
    try:
        with trio.move_on_after(1.0), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(answer)
            await _linger(stream)
    finally:
        await trio.aclose_forcefully(stream)


def date_field() -> bytes:
    """Now, as the field Date has it (RFC 9110 section 6.6.1): `doctor` compares clocks by it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode("ascii")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


async def _linger(stream: trio.abc.Stream) -> None:
    """Let the peer read the answer: closing on unread input would make the kernel reset it."""
    if isinstance(stream, trio.SSLStream):
        await stream.aclose()  # close_notify, so that the answer is not taken for a cut one
        return
    if isinstance(stream, trio.abc.HalfCloseableStream):
        await stream.send_eof()
    with trio.move_on_after(_LINGER):
        dropped = 0
        while dropped < 65_536 and (data := await stream.receive_some(4_096)):
            dropped += len(data)


async def read_upgrade(
    stream: trio.abc.Stream,
    *,
    path: str,
    more_paths: Collection[str] = (),
    timeout: float = HANDSHAKE_TIMEOUT,
    max_head_bytes: int = MAX_HEAD_BYTES,
    plain: Callable[[str], tuple[int, str] | None] | None = None,
) -> UpgradeRequest:
    """Read a WebSocket upgrade request for `path` or one of `more_paths`, waiting at most `timeout`
    seconds.

    Anything else is answered here (404 for another path, 426 for no upgrade, 400 for rubbish,
    408, 431) and closed; then ConnectError says what came. `plain(path)` may give (status, text)
    for paths that are answered without an upgrade, such as a health check.
    """
    try:
        return await _read_sound_upgrade(
            stream, (path, *more_paths), timeout, max_head_bytes, plain
        )
    except _Answer as answer:
        await send_answer(stream, answer.status, answer.reason, answer.text, headers=answer.headers)
        raise ConnectError(f"answered {answer.status}: {answer.text}", retryable=False) from None


async def _read_sound_upgrade(
    stream: trio.abc.Stream,
    paths: Sequence[str],
    timeout: float,
    max_head_bytes: int,
    plain: Callable[[str], tuple[int, str] | None] | None,
) -> UpgradeRequest:
    head, rest = await _read_head_within(stream, timeout, max_head_bytes)
    method, target, headers = _parse_request(head)
    seen = target.partition("?")[0]
    special = plain(seen) if plain is not None and method in {"GET", "HEAD"} else None
    if special is not None:
        status, text = special
        raise _Answer(status, None, text)
    if seen not in paths:
        raise _Answer(404, "bad-request", f"nothing is here; agents connect to {paths[0]}")
    subprotocols = _check_upgrade(head, method, headers)
    replay = _bare_head(seen, headers)
    return UpgradeRequest(stream, target, headers, subprotocols, replay, rest, seen)


_HANDSHAKE_FIELDS = frozenset(
    {
        b"host",
        b"upgrade",
        b"connection",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-protocol",
    }
)


def _bare_head(path: str, headers: Headers) -> bytes:
    """The request with only the fields of the handshake, and no token, because trio-websocket keeps
    it as long as the connection lasts.
    """
    kept = (name + b": " + value for name, value in headers if name in _HANDSHAKE_FIELDS)
    return b"\r\n".join([b"GET %s HTTP/1.1" % path.encode("ascii"), *kept, b"", b""])


class _Answer(Exception):
    """The handshake ends with this HTTP answer."""

    def __init__(self, status: int, reason: str | None, text: str, headers: Headers = ()) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.headers = headers


async def _read_head_within(
    stream: trio.abc.Stream, timeout: float, max_head_bytes: int
) -> tuple[bytes, bytes]:
    try:
        with trio.fail_after(timeout):
            return await _read_head(stream.receive_some, max_head_bytes)
    except trio.TooSlowError:
        raise _Answer(
            408, "head-timeout", f"no complete request head came within {timeout:g} s"
        ) from None
    except _HeadTooLarge:
        raise _Answer(
            431, "head-too-large", f"the request head is larger than {max_head_bytes} bytes"
        ) from None
    except _NotHttp:
        raise _Answer(400, "bad-request", "this port speaks HTTP/1.1 only") from None
    except (EOFError, trio.BrokenResourceError):
        await trio.aclose_forcefully(stream)
        raise ConnectError("the peer left before its request head was complete") from None


class _HeadTooLarge(Exception):
    pass


class _NotHttp(Exception):
    pass


_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_HEAD_START = re.compile(rb"[A-Z]{1,23} |HTTP/1\.")


async def _read_head(
    receive: Callable[[int], Awaitable[bytes | bytearray]], max_bytes: int
) -> tuple[bytes, bytes]:
    """(head with its empty line, whatever followed). EOFError when the stream ends before."""
    buffer = bytearray()
    searched = 0
    while (end := _END_OF_HEAD.search(buffer, max(0, searched - 3))) is None:
        if len(buffer) >= max_bytes:
            raise _HeadTooLarge
        # A TLS hello or an SSH banner has no empty line to wait for.
        if len(buffer) >= 24 and not _HEAD_START.match(buffer):
            raise _NotHttp
        searched = len(buffer)
        data = await receive(4_096)
        if not data:
            raise EOFError
        buffer += data
    if end.end() > max_bytes:
        raise _HeadTooLarge
    return bytes(buffer[: end.end()]), bytes(buffer[end.end() :])


def _parse_request(head: bytes) -> tuple[str, str, list[tuple[bytes, bytes]]]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as exc:
        raise _Answer(400, "bad-request", f"the request cannot be read: {exc}") from None
    if not isinstance(event, h11.Request):
        raise _Answer(400, "bad-request", "the request cannot be read")
    return (
        event.method.decode("ascii"),
        event.target.decode("ascii"),
        [(bytes(name), bytes(value)) for name, value in event.headers],
    )


def _check_upgrade(head: bytes, method: str, headers: list[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The offered subprotocols of a request that wsproto will take, else the answer for it."""
    names = {name for name, _ in headers}
    upgrade = (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")
    if method != "GET" or b"upgrade" not in names:
        raise _Answer(
            426,
            "bad-request",
            "this is the tunnel port: agents connect here with a WebSocket upgrade",
            upgrade,
        )
    if names & {b"content-length", b"transfer-encoding"}:
        raise _Answer(400, "bad-request", "an upgrade request has no body")
    # A trial: wsproto will accept this again when trio-websocket replays the head.
    trial = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    try:
        trial.receive_data(head)
        event = next(iter(trial.events()), None)
    except WebSocketProtocolError as exc:
        status = getattr(exc.event_hint, "status_code", 400)
        extra = upgrade[1:] if status == 426 else ()
        raise _Answer(status, "bad-request", f"no WebSocket upgrade: {exc}", extra) from None
    except (ValueError, UnicodeError):
        raise _Answer(400, "bad-request", "a header of the upgrade is not ASCII") from None
    if not isinstance(event, wsproto.events.Request):
        raise _Answer(400, "bad-request", "no WebSocket upgrade")
    return tuple(event.subprotocols)


async def read_response(
    receive: Callable[[int], Awaitable[bytes | bytearray]], where: str
) -> tuple[bytes, bytes, Headers]:
    """The server's answer to our upgrade when it is a 101: its head, the bytes read behind it
    (which are frames already), and its headers.

    Raises ConnectRefused for any other status and ConnectError when it is no HTTP answer or the
    stream ends first. The caller bounds the time and closes the stream.
    """
    head, rest = await _read_answer(
        receive,
        where,
        "check that the port is the tunnel port, and that ws:// or wss:// fits it",
    )
    request = h11.Request(method="GET", target="/", headers=_UPGRADE_HEADERS)
    status, headers = _parse_answer(head, request, where)
    if status == 101:
        return head, rest, headers
    body = rest + await _refusal_body(receive, headers, len(rest))
    raise _refusal(where, status, headers, body)


async def read_connect_answer(
    receive: Callable[[int], Awaitable[bytes | bytearray]],
    where: str,
    authority: str,
    *,
    has_login: bool,
) -> None:
    """Read an HTTP proxy's answer to CONNECT `authority`; returns when it is a 2xx.

    Raises ConnectError with the status and what to do, whatever else comes. The caller bounds the
    time and closes the stream.
    """
    head, rest = await _read_answer(receive, where, "check that http_proxy names an HTTP proxy")
    request = h11.Request(method="CONNECT", target=authority, headers=[("Host", authority)])
    status, headers = _parse_answer(head, request, where)
    if 200 <= status < 300:
        if rest:
            raise ConnectError(f"{where} sent bytes of its own behind its answer to CONNECT")
        return
    body = rest + await _refusal_body(receive, headers, len(rest))
    said = _words(headers, body)
    raise ConnectError(
        f"{where} refused to connect to {authority}: {status} {_phrase(status)}"
        f"{f' ({said})' if said else ''}; {_connect_fix(status, headers, authority, has_login)}",
        retry_after=_retry_after(_by_name(headers)),
    )


def _connect_fix(status: int, headers: Headers, authority: str, has_login: bool) -> str:
    if status == 407:
        schemes = [
            value.decode("latin-1").split()[0].lower()
            for name, value in headers
            if name == b"proxy-authenticate" and value.strip()
        ]
        if schemes and "basic" not in schemes:
            return (
                f"it asks for a login by {', '.join(schemes)}, which is not known here: ask its "
                "operator for a way without, or put a local proxy in between that knows it"
            )
        if has_login:
            return "it does not take this login: check user and password in http_proxy"
        return "it wants a login: set http_proxy to http://user:password@host:port"
    if status in {502, 503, 504}:
        return "it cannot reach that address now: check the name and the port in url"
    if status in {403, 405}:
        port = authority.rpartition(":")[2]
        return f"ask its operator to allow CONNECT to port {port}; many allow 443 only"
    return "check that http_proxy names an HTTP proxy that allows CONNECT"


async def _read_answer(
    receive: Callable[[int], Awaitable[bytes | bytearray]], where: str, fix: str
) -> tuple[bytes, bytes]:
    try:
        return await _read_head(receive, MAX_HEAD_BYTES)
    except EOFError:
        raise ConnectError(
            f"{where} closed the connection without answering the handshake; {fix}"
        ) from None
    except trio.BrokenResourceError as exc:
        raise ConnectError(f"the connection to {where} broke during the handshake") from exc
    except _HeadTooLarge:
        raise ConnectError(
            f"{where} answered with a head larger than {MAX_HEAD_BYTES} bytes; check the port"
        ) from None
    except _NotHttp:
        raise ConnectError(_not_http(where)) from None


def _parse_answer(head: bytes, request: h11.Request, where: str) -> tuple[int, Headers]:
    """The status and the fields of an answer to `request`, as h11 reads it."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    parser.send(request)
    parser.send(h11.EndOfMessage())
    try:
        parser.receive_data(head)
        event = parser.next_event()
    except h11.RemoteProtocolError:
        raise ConnectError(_not_http(where)) from None
    if not isinstance(event, h11.InformationalResponse | h11.Response):
        raise ConnectError(_not_http(where))
    return event.status_code, [(bytes(name), bytes(value)) for name, value in event.headers]


_UPGRADE_HEADERS = [("Host", "h"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]


def _not_http(where: str) -> str:
    return f"{where} did not answer with HTTP/1.1; check that the port is the tunnel port"


async def _refusal_body(
    receive: Callable[[int], Awaitable[bytes | bytearray]], headers: Headers, have: int
) -> bytes:
    """The beginning of a refusal's body, for its first line. Takes at most a second."""
    declared = dict(headers).get(b"content-length", b"")
    wanted = _MAX_REFUSAL_BODY
    if declared.isdigit():
        wanted = min(int(declared), wanted)
    body = bytearray()
    with trio.move_on_after(1.0), contextlib.suppress(trio.BrokenResourceError):
        while have + len(body) < wanted and (data := await receive(_MAX_REFUSAL_BODY)):
            body += data
    return bytes(body)


def _by_name(headers: Headers) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in headers}


def _refusal(where: str, status: int, headers: Headers, body: bytes) -> ConnectRefused:
    fields = _by_name(headers)
    reason = fields.get(REASON_FIELD.lower())
    if reason is not None and not re.fullmatch(r"[a-z0-9-]{1,64}", reason):
        reason = None
    message = f"{where} refused the tunnel: {status} {_phrase(status)}"
    if said := _words(headers, body):
        message += f" ({said})"
    if reason is None:
        message += f"; {_stranger(status, fields)}"
    return ConnectRefused(
        message,
        status=status,
        reason=reason,
        # Only our own proxy can say no for good. Everything else may be a load balancer between
        # two restarts of its back end, or the login page of a network.
        retryable=reason is None or status not in {401, 403},
        retry_after=_retry_after(fields),
    )


_TITLE = re.compile(rb"<title[^<>]*>([^<]{1,200})", re.IGNORECASE)


def _words(headers: Headers, body: bytes) -> str:
    """The text of an answer for people: the first line of plain text, or the title of a page."""
    kind = _by_name(headers).get(b"content-type", "")
    said = b""
    if kind.startswith("text/plain"):
        said = body[:_MAX_REFUSAL_BODY].strip().partition(b"\n")[0]
    elif title := _TITLE.search(body):
        said = b" ".join(title[1].split())
    return _printable(said.decode("utf-8", "replace"))


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:200]


def _stranger(status: int, fields: dict[bytes, str]) -> str:
    """A description of an answer that is not from tunnelmux-proxy, and its likely cause."""
    seen = []
    if b"location" in fields:  # without its query, which may hold anything
        seen.append(f"it redirects to {_printable(fields[b'location'].partition('?')[0])}")
    if b"server" in fields:
        seen.append(f"its server is {_printable(fields[b'server'])}")
    if b"content-type" in fields:
        seen.append(f"its body is {_printable(fields[b'content-type'].partition(';')[0])}")
    look = f" ({', '.join(seen)})" if seen else ""
    if status == 407:
        cause = "an HTTP proxy in between wants a login: set http_proxy"
    elif status < 400:
        cause = "the login page of a network, or a web server at this address"
    else:
        cause = "a load balancer or a firewall in between, or a wrong address"
    return f"no tunnelmux-proxy says this{look}: {cause}"


def _retry_after(fields: dict[bytes, str]) -> float | None:
    """Retry-After (RFC 9110 10.2.3) in seconds; a date counts from the answer's own Date."""
    value = fields.get(b"retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _MAX_RETRY_AFTER)
    import email.utils  # imported here: a megabyte that is seldom needed

    try:
        until = email.utils.parsedate_to_datetime(value)
        now = email.utils.parsedate_to_datetime(fields.get(b"date", ""))
        return min(max((until - now).total_seconds(), 0.0), _MAX_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):
        return None
