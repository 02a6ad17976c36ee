"""A strict scanner of HTTP/1.1 heads and chunked bodies for a relay, without any I/O.

h11 is the judge of what is valid. This scanner recognises, on a connection whose first request h11
has accepted and that is routed, the further heads that can be read in one way only. What it
declines is not wrong: it goes back to h11. Whatever it accepts, `tunnelmux.http.head` accepts with
the same meaning.

A request is accepted with a method in capitals (not CONNECT), a target that is a path, HTTP/1.1
and one Host that is the first request's byte for byte; with no body, or one Content-Length in its
shortest form, or `Transfer-Encoding: chunked` spelt so. Lines end in CRLF. A field is a token, a
colon, at most one space and a value without control characters. Declined with any of `Expect`,
the fields for one hop, `Trailer`, `Tunnelmux-*`, with more than one `Connection` or one other than
`keep-alive` or `close`, and with a name that is disguised (`pump.field_names`).

A response is held to the same but for blanks around the values of fields that mean nothing here.
Its `Connection` may also be a list of `close`, `keep-alive` and `upgrade`, and of the names above only
`Trailer` and `Tunnelmux-*` are declined: the others pass, or are left out when they were for the
sender's own peer. 101 is declined, and a length or coding, or any such field, that a 1xx, a 204 or
an HTTP/1.0 response may not have.

The C face for other compiled modules is in `_head.pxd`; this one is for tests.
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
    content_length: int
    chunked: bool
    is_head: bool
    closes: bool

@type_check_only
class _Response(TypedDict):
    head_size: int
    status: int
    content_length: int
    chunked: bool
    until_end: bool
    bodiless: bool
    closes: bool
    is_old: bool
    has_hop: bool
    sets_domain: bool

def read_request(data: bytes, host: bytes) -> _Request | Literal["incomplete", "declined"]:
    """What `scan_request` finds in *data*, on a connection whose first request named *host*."""

def read_response(
    data: bytes, *, to_head: bool = False
) -> _Response | Literal["incomplete", "declined"]:
    """What `scan_response` finds in *data*; *to_head* is whether the request was a HEAD."""

def relayed_request(data: bytes, host: bytes, fields: bytes = b"") -> bytes | None:
    """The head as `rewrite_request` sends it on, or None when it is not accepted.

    Left out are `Connection: keep-alive`, `Keep-Alive` and what a visitor may not say about itself
    ("forwarding" in `pump.field_names`). *fields*, whole lines, come behind the rest.
    """

def relayed_response(data: bytes, *, to_head: bool = False, fields: bytes = b"") -> bytes | None:
    """The head as `rewrite_response` sends it on, or None when it is not accepted.

    Left out are `Connection`, `Keep-Alive`, what else is for one hop (RFC 9110 section 7.6.1) and a
    framing field where there can be no body. It is HTTP/1.1 now. *fields*, whole lines, come behind the rest.
    """

@final
class ChunkScanner:
    """Walks a chunked body (RFC 9112 section 7.1) that passes as it is.

    Stricter than `http.body.ChunkedBody`, since the next reader sees every byte: a size has at
    most 15 digits, and 64 bytes may follow it; lines end in CRLF; any trailer field breaks the
    body, because nobody here could take it out.
    """

    def __init__(self, *, padded: bool = False) -> None:
        """*padded* accepts blanks behind a chunk's size, as some old servers write them."""
    def feed(self, data: bytes) -> int:
        """How many bytes of *data* belong to the body: fewer than all when it ended, or broke."""
    @property
    def done(self) -> bool:
        """Whether the body is complete."""
    @property
    def broken(self) -> bool:
        """Whether the byte behind those that belong to the body must not stand there."""
