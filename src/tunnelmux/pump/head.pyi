"""A strict scanner of HTTP/1.1 heads for a relay, without any I/O.

h11 decides what is valid. This scanner recognises the heads that can be read in one way only. A head
that it declines is not wrong: it goes to h11. Every head that it accepts, `tunnelmux.http.head` accepts
with the same meaning. A head may come in pieces: the scan goes on where the last piece ended.

A request is accepted with a method in capitals (not CONNECT), a target that is a path, HTTP/1.1
and one Host that is a plain name or address; with no body, or one Content-Length in its shortest
form, or `Transfer-Encoding: chunked` spelt so. Lines end in CRLF. A field is a token, a colon, at
most one space and a value without control characters. A request is declined with any other field for
one hop, with more than one `Connection` or one that is not `keep-alive` or `close`, with a second
`Tunnelmux-Device`, `Tunnelmux-Service`, `Tunnelmux-Access`, `Authorization` or access cookie, and with
a name that is disguised (`pump.field_names`).

The same goes for a response, but blanks may stand around the values of fields that mean nothing here.
Its `Connection` may also be a list of `close`, `keep-alive` and `upgrade`. Of the names above, only
disguised ones are declined: the others pass, or are left out when they were meant for this hop.
101 is declined, and so is a length, a coding or a field for one hop that a 1xx, a 204 or an HTTP/1.0
response may not have.

The C face for other compiled modules is in `head.pxd`; this one is for tests.
"""

from typing import Literal, TypedDict, final, type_check_only

@type_check_only
class _Request(TypedDict):
    head_size: int
    line_size: int
    method_size: int
    target_at: int
    target_size: int
    path_size: int
    host: bytes
    device: bytes
    service: bytes
    access: bytes
    login: bytes
    cookie: bytes
    member: bytes
    from_page: bool
    from_here: bool
    said: bytes
    content_length: int
    chunked: bool
    is_head: bool
    closes: bool
    binds: bool

@type_check_only
class _Response(TypedDict):
    head_size: int
    status: int
    content_length: int
    chunked: bool
    until_end: bool
    bodiless: bool
    announces: bool
    closes: bool
    is_old: bool
    has_hop: bool
    sets_domain: bool
    sets_own: bool
    clears: bool
    binds: bool

@final
class HeadScanner:
    """One head, in pieces."""

    def __init__(self, *, of_request: bool, to_head: bool = False, max_fields: int = 256) -> None:
        """*to_head* says that the request of a response was a HEAD. A head of more than
        *max_fields* fields is declined."""
    def feed(self, data: bytes) -> _Request | _Response | Literal["incomplete", "declined"]:
        """The result with *data* behind what came before."""
    @property
    def steps(self) -> int:
        """How many bytes were looked at so far."""
    def rewritten(self, fields: bytes = b"") -> bytes | None:
        """The head to pass on, or None when it was not accepted.

        *fields*, whole lines, come behind the rest. A request loses `Connection`, `Keep-Alive`,
        `Tunnelmux-*`, the proxy's own cookies and the fields that only a proxy may write. A response
        becomes HTTP/1.1. It loses `Connection`, `Keep-Alive`, `Tunnelmux-*`, the other fields for one
        hop (RFC 9110 section 7.6.1), and a framing field when it can have no body.
        """

def read_request(data: bytes) -> _Request | Literal["incomplete", "declined"]:
    """Scan the request head with which *data* begins."""

def read_response(
    data: bytes, *, to_head: bool = False
) -> _Response | Literal["incomplete", "declined"]:
    """The same for a response; *to_head* is whether the request was a HEAD."""
