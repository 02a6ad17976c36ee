"""What the name of a header field means to a proxy, for every path that a request can take.

This is the one table of such names: `http.fields` and the scanner of `pump.head` both ask it, so
that neither passes on what the other holds back.
"""

from typing import Literal, TypeAlias

_FieldKind: TypeAlias = Literal[
    "ordinary",
    "head-only",
    "set-cookie",
    "clear-site-data",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "forwarding",
    "expect",
    "hop",
    "trailer",
    "own",
    "disguised",
]

FORWARDING_NAMES: tuple[bytes, ...]
"""Names, in lower case, of fields in which a proxy says who sent a request, and for what."""

FORWARDING_PREFIXES: tuple[bytes, ...]
"""The same for all names that begin with one of these."""

def field_kind(name: bytes) -> _FieldKind:
    """What a field with this *name*, in any case, means to a proxy.

    - "ordinary": passes, in a head and in trailers;
    - "head-only": passes in a head; in trailers it would change framing, routing, authentication or
      how content is read (RFC 9110 section 6.5.1);
    - "set-cookie", "clear-site-data", "host", "content-length", "transfer-encoding", "connection",
      "keep-alive", "expect", "trailer": the field of that name;
    - "hop": for the next hop only (RFC 9110 section 7.6.1), beside those;
    - "forwarding": what a proxy says about the visitor, and a visitor may not say itself;
    - "own": `Tunnelmux-*`;
    - "disguised": any kind but the first two, with another character in place of a `-`. CGI, WSGI
      and the like cannot tell `X_Real_IP` or `X.Real.IP` from `X-Real-IP`.
    """
