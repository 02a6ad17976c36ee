"""HTTP/1.1 heads: the bytes before a body, checked and made (RFC 9112).

h11's event classes validate every name, value, method and target. This module refuses what h11
accepts and a gateway may not: an ambiguous request allows request smuggling, so it is refused and
never repaired. Responses come from a device's own targets, some of them old and odd; RFC 9112
allows repairs there, and they are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import h11

from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits

__all__ = [
    "BadHead",
    "Field",
    "HeadReader",
    "RequestHead",
    "ResponseHead",
    "field_values",
    "first_value",
    "has_member",
    "head_end",
    "host_name",
    "looks_like_no_request",
    "parse_request",
    "parse_response",
    "write_request",
    "write_response",
]

MAX_FIELDS = IngressLimits().max_head_fields

Field = tuple[bytes, bytes]
"""A field's name, in the case it was written in, and its value without outer whitespace."""

_LONGEST_BODY = 2**63 - 1
# Bytes: as far as the pump counts.

_LONGEST_METHOD = 64
# Letters: the longest that is registered has 17. Targets keep it, and some keep it in logs.

_HEAD_END = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([0-9]{3})(?: ([^\x00\r\n]*))?")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN_BYTE = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([/?].*)?", re.IGNORECASE)
_HOST = re.compile(
    rb"(?:[-A-Za-z0-9._~!$&'()*+;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?"  # RFC 3986 3.2.2, 3.2.3
)


AS_TCP = 'what is not quite HTTP passes as it is through a TCP service (target = "tcp://...")'
"""The work-around for answers that are invalid by RFC 9112."""


class BadHead(Exception):
    """A response head that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head. `target` is in origin-form, "*", or for CONNECT in authority-form."""

    method: bytes
    target: bytes
    version: bytes
    headers: list[Field]
    content_length: int | None = None
    chunked: bool = False
    authority: bytes | None = None
    """The authority of a target that was written in absolute-form, else None. Unlike Host, it is
    never the visitor's own value once the proxy has passed the request on.
    """

    @property
    def has_body(self) -> bool:
        """Whether body bytes follow the head."""
        return self.chunked or bool(self.content_length)

    @property
    def host(self) -> bytes:
        """The Host field's value; empty when there is none (HTTP/1.0)."""
        return first_value(self.headers, b"host") or b""

    @property
    def path(self) -> str:
        """The target without its query, for logs: queries carry secrets."""
        return self.target.partition(b"?")[0].decode("ascii", "backslashreplace")


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's head, interim (1xx) or final."""

    status: int
    reason: bytes
    headers: list[Field] = field(default_factory=list)
    version: bytes = b"1.1"
    content_length: int | None = None
    chunked: bool = False

    @property
    def is_interim(self) -> bool:
        """Whether another head follows (1xx, but not 101)."""
        return self.status < 200 and self.status != 101


def first_value(headers: list[Field], name: bytes) -> bytes | None:
    """The value of the first field of this lower-case name, or None."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def field_values(headers: list[Field], name: bytes) -> list[bytes]:
    """Every member of a list field (RFC 9110 5.6.1), in order; `name` in lower case."""
    values = [value for key, value in headers if key.lower() == name]
    return [member for value in values for part in value.split(b",") if (member := part.strip())]


def has_member(headers: list[Field], name: bytes, member: bytes) -> bool:
    """Whether a list field has this lower-case member, whatever its case and its parameters."""
    return any(
        value.partition(b";")[0].strip().lower() == member for value in field_values(headers, name)
    )


def host_name(host: bytes) -> str:
    """The name or address in a checked Host, in lower case: without port, brackets and root dot."""
    text = host.decode("ascii").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


def head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """Where the head that `buffer` begins with ends, or -1 when it is not complete.

    `start` is how far an earlier call looked in the same buffer.
    """
    match = _HEAD_END.search(buffer, max(0, start - 2))
    return match.end() if match else -1


class HeadReader:
    """Collects a head from pieces of any size, in time linear in its bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)
        self._searched = self._checked = 0
        self.steps = 0
        """Bytes examined so far: a constant number per byte added, for any size of pieces."""

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Add bytes."""
        self._data += data

    def skip_empty_line(self) -> None:
        """Forget one empty line before the head (RFC 9112 2.2)."""
        if not self._searched and self._data.startswith(b"\r\n"):
            del self._data[:2]

    def end(self) -> int:
        """Where the head ends, or -1 when it is not complete."""
        self.steps += len(self._data) - self._searched
        end = head_end(self._data, self._searched)
        self._searched = len(self._data)
        return end

    def wrong(self) -> str | None:
        """The result of `looks_like_no_request` for the bytes so far."""
        self.steps += len(self._data) - self._checked
        problem = looks_like_no_request(self._data, self._checked)
        self._checked = len(self._data)
        return problem

    def begins(self, size: int) -> bytes:
        """The first `size` bytes."""
        return bytes(self._data[:size])

    def split(self, end: int = 0) -> tuple[bytes, bytes]:
        """The bytes before `end` and those behind."""
        return bytes(self._data[:end]), bytes(self._data[end:])


def looks_like_no_request(buffer: bytes | bytearray, start: int = 0) -> str | None:
    """Why the beginning of `buffer` can never become a request, or None when it still can.

    Called on incomplete heads, so that a TLS hello or a bare-LF request is answered at once
    instead of when the head's time is up. `start` is how far an earlier call looked.
    """
    if not buffer:
        return None
    if buffer[0] == 0x16:
        return "this looks like TLS: this port speaks plain HTTP, use http://"
    if not _TOKEN_BYTE.match(buffer):
        return "this is not HTTP: a request begins with a method"
    if buffer.count(b"\n", start) != buffer.count(b"\r\n", max(0, start - 1)):
        return "a line ends in LF without CR: end every line with CRLF"
    return None


def parse_request(raw: bytes, max_fields: int = MAX_FIELDS) -> RequestHead:
    """A request head from `raw`, its blank line included. Raises Refused, ready to be sent."""
    if raw.count(b"\n") - 2 > max_fields:
        message = f"The request's head has more than {max_fields} fields."
        raise Refused(Refusal(431, "head-too-large", message))
    if (wrong := looks_like_no_request(raw)) is not None:
        raise _bad_request(wrong)
    line, *lines = raw[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _bad_request("the request line is not METHOD SP TARGET SP HTTP/1.1")
    method, target, major, minor = match.groups()
    if len(method) > _LONGEST_METHOD:
        raise _bad_request("no method is as long as that", 501)
    if b"#" in target:
        raise _bad_request(
            "the target has a fragment, which is for the client alone (RFC 9112 3.2)"
        )
    if major != b"1" or minor not in (b"0", b"1"):
        raise Refused(Refusal(505, "bad-request", "Only HTTP/1.1 and HTTP/1.0 are spoken here."))
    version = b"1." + minor
    fields = [_split_request_field(text) for text in lines]
    try:
        event = h11.Request(method=method, target=target, headers=fields, http_version=version)
    except h11.LocalProtocolError as exc:
        # h11's texts quote what the visitor sent only with repr(), so they are safe to send back.
        status = 501 if exc.error_status_hint == 501 else 400
        raise _bad_request(str(exc), status) from None
    headers = event.headers.raw_items()
    try:
        length, chunked = _framing(event.headers)
    except ValueError as exc:
        raise _bad_request(str(exc)) from None
    if chunked and length is not None:
        raise _bad_request("both Content-Length and Transfer-Encoding are given: send one")
    if chunked and version == b"1.0":
        raise _bad_request("Transfer-Encoding needs HTTP/1.1")
    absolute = _ABSOLUTE.fullmatch(target) if method != b"CONNECT" else None
    target, headers = _resolve_target(method, target, headers)
    authority = absolute[1] if absolute is not None else None
    return RequestHead(method, target, version, headers, length, chunked, authority)


def parse_response(raw: bytes, request_method: bytes, max_fields: int = MAX_FIELDS) -> ResponseHead:
    """A response head from `raw`, its blank line included. Raises BadHead."""
    if raw.count(b"\n") - 2 > max_fields:
        raise BadHead(f"its head has more than {max_fields} fields (limits.max_head_fields)")
    # A lone LF may be taken for a line's end (RFC 9112 2.2).
    line, *lines = [text.removesuffix(b"\r") for text in raw.rstrip(b"\r\n").split(b"\n")]
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise BadHead(f"its status line is {line[:80]!r}; {AS_TCP}")
    status = int(match[2])
    if status < 100:
        raise BadHead(f"its status is {status}")
    event_class = h11.InformationalResponse if status < 200 else h11.Response
    try:
        event = event_class(
            status_code=status,
            reason=_CONTROL.sub(b" ", match[3] or b""),
            headers=_unfold(lines),
            http_version=b"1.1",
        )
    except h11.LocalProtocolError as exc:
        raise BadHead(f"{exc}; {AS_TCP}") from None
    try:
        length, chunked = _framing(event.headers)
    except ValueError as exc:
        raise BadHead(str(exc)) from None
    if request_method == b"SOURCE" and 200 <= status < 300 and length is None and not chunked:
        # SHOUTcast's and Icecast's: the sender's sound follows, behind a request without a length.
        raise BadHead(f"an answer to SOURCE has no end that HTTP knows of; {AS_TCP}")
    if chunked:
        length = None  # RFC 9112 6.3: Transfer-Encoding overrides, and Content-Length is removed
    if request_method == b"HEAD" or status in (204, 304) or status < 200:
        chunked = False
    version = b"1.0" if match[1] == b"0" else b"1.1"
    headers = event.headers.raw_items()
    return ResponseHead(status, event.reason, headers, version, length, chunked)


def write_request(method: bytes, target: bytes, headers: list[Field]) -> bytes:
    """The bytes of a request head. The fields were checked when they were parsed or made."""
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (method, target, _write_fields(headers))


def write_response(status: int, reason: bytes, headers: list[Field]) -> bytes:
    """The bytes of a response head."""
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, reason, _write_fields(headers))


def _write_fields(headers: list[Field]) -> bytes:
    return b"".join([b"%s: %s\r\n" % pair for pair in headers])


def _bad_request(message: str, status: int = 400) -> Refused:
    return Refused(Refusal(status, "bad-request", f"The request cannot be used: {message}."))


def _split_request_field(line: bytes) -> Field:
    if line.startswith((b" ", b"\t")):
        raise _bad_request("a header field is folded over two lines: write it on one")
    name, colon, value = line.partition(b":")
    if not colon:
        raise _bad_request("a header line has no colon")
    if name.endswith((b" ", b"\t")):
        raise _bad_request("there is whitespace before a header field's colon")
    return name, value.strip(b" \t")


def _unfold(lines: list[bytes]) -> list[Field]:
    """Response fields, folded ones on one line (RFC 9112 5.2 tells a gateway to do so)."""
    fields: list[Field] = []
    for line in lines:
        if line.startswith((b" ", b"\t")) and fields:
            name, value = fields[-1]
            fields[-1] = (name, (value + b" " + line.strip(b" \t")).strip(b" \t"))
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadHead(f"a header line has no colon: {line[:80]!r}")
        fields.append((name.rstrip(b" \t"), value.strip(b" \t")))  # RFC 9112 5.1
    return fields


def _framing(headers: Iterable[Field]) -> tuple[int | None, bool]:
    """Content-Length and whether chunked. h11 has refused what is no number, or differs. Raises
    ValueError for a length that cannot be counted to (RFC 9110 8.6)."""
    length = None
    chunked = False
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
            if length > _LONGEST_BODY:
                raise ValueError(f"Content-Length is over {_LONGEST_BODY}")
        elif name == b"transfer-encoding":
            chunked = True
    return length, chunked


def _resolve_target(
    method: bytes, target: bytes, headers: list[Field]
) -> tuple[bytes, list[Field]]:
    """The target in origin-form, and the fields with the Host that counts (RFC 9112 3.2)."""
    if (
        method != b"CONNECT"
        and target[:1] != b"/"
        and not (target == b"*" and method == b"OPTIONS")
    ):
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise _bad_request("the target is neither a path nor an http:// URL")
        authority, rest = match[1], match[2] or b""
        if not authority or b"@" in authority:
            raise _bad_request("the URL in the request line names no host, or a user")
        # RFC 9112 3.2.2: the target's authority replaces whatever Host says.
        headers = [(b"Host", authority), *(f for f in headers if f[0].lower() != b"host")]
        if not rest and method == b"OPTIONS":
            target = b"*"  # RFC 9112 3.2.4
        else:
            target = rest if rest[:1] == b"/" else b"/" + rest
    host = first_value(headers, b"host")
    if host is not None and not _HOST.fullmatch(host):
        raise _bad_request("the Host field is not a host name with an optional port")
    return target, headers
