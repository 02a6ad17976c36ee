"""Which header fields go through, which stop here, and which are set here.

Fields fall into three groups: those for the next hop only (RFC 9110 7.6.1), which stop; those this
system itself sets, of which a visitor's own versions must never reach a target; and the rest, which
pass untouched and in order.

No `Via` is added. RFC 9110 7.6.3 asks gateways for one; in practice it makes common targets (nginx
among them) switch off compression, other reverse proxies leave it out for that reason, and
`Forwarded` tells a target more.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tunnelmux.http.head import Field, field_values, first_value

__all__ = [
    "TrustedProxies",
    "Visitor",
    "end_to_end",
    "forwarding_fields",
    "replace_host",
    "safe_trailers",
    "without_own_fields",
]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",  # RFC 7540 3.2.1: belongs to an h2c upgrade, which is not passed on
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)

_NEVER_HOP_BY_HOP = frozenset({b"host", b"content-length"})
"""A visitor may name any field in `Connection`; with these, it would change what the request is."""

_FORWARDING = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-real-ip",
    }
)

_NOT_IN_TRAILERS = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"expect",
        b"host",
        b"max-forwards",
        b"set-cookie",
        b"te",
        b"trailer",
    }
)
"""RFC 9110 6.5.1: fields that change framing, routing, authentication or how content is read."""


def _key(name: bytes) -> bytes:
    # CGI and WSGI cannot tell X_Real_IP from X-Real-IP, so neither is let through.
    name = name.lower()
    return name.replace(b"_", b"-") if b"_" in name else name


def end_to_end(headers: Iterable[Field]) -> list[Field]:
    """The fields that are not for this hop only, Content-Length still among them."""
    headers = list(headers)
    named = {member.lower() for member in field_values(headers, b"connection")}
    drop = (_HOP_BY_HOP | named) - _NEVER_HOP_BY_HOP
    return [pair for pair in headers if pair[0].lower() not in drop]


def without_own_fields(headers: Iterable[Field]) -> list[Field]:
    """The fields without `Tunnelmux-*`, which only this system's own parts may set."""
    return [pair for pair in headers if not _key(pair[0]).startswith(b"tunnelmux-")]


def safe_trailers(trailers: Sequence[Field]) -> list[Field]:
    """The trailer fields that may be passed on."""
    if not trailers:  # nearly always, and asked for every piece of a body
        return []
    drop = _HOP_BY_HOP | _FORWARDING | _NOT_IN_TRAILERS
    return [pair for pair in without_own_fields(trailers) if _key(pair[0]) not in drop]


def replace_host(headers: Iterable[Field], host: bytes) -> list[Field]:
    """The fields with this Host, first (RFC 9110 7.2)."""
    return [(b"Host", host), *(pair for pair in headers if pair[0].lower() != b"host")]


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The peers whose word about the visitor behind them is taken."""

    networks: Sequence[IpNetwork] = field(default_factory=tuple)

    @classmethod
    def parse(cls, networks: Iterable[str]) -> TrustedProxies:
        """From addresses and networks in CIDR notation; ValueError names a malformed one."""
        return cls(tuple(ipaddress.ip_network(text, strict=False) for text in networks))

    def __contains__(self, address: str) -> bool:
        if not self.networks:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who sent a request: the address of the connection's other end, and how it came in."""

    address: str
    scheme: str = "http"
    trusted: bool = False
    """Whether the address is one of the trusted proxies."""


def forwarding_fields(headers: Iterable[Field], visitor: Visitor, host: bytes) -> list[Field]:
    """The fields with `Forwarded` (RFC 7239) and `X-Forwarded-*` saying who asked for what.

    From a trusted proxy, its own values stay and ours is appended to the lists; from anybody else
    every such field is replaced. `host` is what the visitor asked for.
    """
    headers = list(headers)
    # Also of a trusted proxy, fields spelt with "_" are dropped: it would not send them.
    kept = [
        (name, value)
        for name, value in headers
        if (key := _key(name)) not in _FORWARDING or (visitor.trusted and name.lower() == key)
    ]
    address, scheme = visitor.address.encode("ascii", "replace"), visitor.scheme.encode("ascii")
    lists = {
        b"x-forwarded-for": [*field_values(kept, b"x-forwarded-for"), address],
        b"forwarded": [
            *_raw_values(kept, b"forwarded"),
            _forwarded_element(address, host, scheme),
        ],
    }
    proto = first_value(kept, b"x-forwarded-proto") or scheme
    asked = first_value(kept, b"x-forwarded-host") or host
    ours = {*lists, b"x-forwarded-proto", b"x-forwarded-host"}
    kept = [pair for pair in kept if pair[0].lower() not in ours]
    kept += [
        (b"X-Forwarded-For", b", ".join(lists[b"x-forwarded-for"])),
        (b"X-Forwarded-Proto", proto),
    ]
    if asked:
        kept.append((b"X-Forwarded-Host", asked))
    kept.append((b"Forwarded", b", ".join(lists[b"forwarded"])))
    return kept


def _raw_values(headers: list[Field], name: bytes) -> list[bytes]:
    # Not split at commas: Forwarded has quoted strings.
    return [value for key, value in headers if key.lower() == name and value]


def _forwarded_element(address: bytes, host: bytes, scheme: bytes) -> bytes:
    node = b'"[%s]"' % address if b":" in address else address
    parts = [b"for=%s" % node]
    if host:
        parts.append(b'host="%s"' % host)  # checked on arrival: no quote, no backslash
    parts.append(b"proto=%s" % scheme)
    return b";".join(parts)
