"""Which header fields are passed on, dropped, or set. There are three groups: hop-by-hop fields
(RFC 9110 section 7.6.1), which are dropped; fields that this system or a proxy in front sets, of
which a visitor's own versions must never reach a target; and all others, which pass unchanged and
in order. The table in `pump.field_names` has the groups.

No `Via` is added. RFC 9110 7.6.3 asks gateways for one; in practice it makes common targets (nginx
among them) switch off compression, other reverse proxies leave it out for that reason, and
`Forwarded` tells a target more.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tunnelmux.http.forwarded import (
    Hop,
    Route,
    last_members,
    plain_address,
    plain_node,
    read_forwarded,
    write_forwarded,
)
from tunnelmux.http.head import Field, field_values
from tunnelmux.pump.cookies import (
    clearing_only_own,
    is_own_set_cookie,
    split_own_cookies,
    without_parent_domains,
)
from tunnelmux.pump.field_names import field_kind

__all__ = [
    "TrustedProxies",
    "Visitor",
    "binds_connection",
    "clearing_own",
    "client_address",
    "end_to_end",
    "forwarding_fields",
    "names_visitor",
    "own_cookies",
    "replace_host",
    "reported_hosts",
    "reported_scheme",
    "safe_trailers",
    "without_own_cookies",
    "without_own_fields",
    "without_own_set_cookies",
]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER_HOP_BY_HOP = frozenset({b"host", b"content-length"})
"""A visitor may name any field in `Connection`; dropping these would change the request's
meaning.
"""

_FOR_ONE_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "hop", "disguised"})
"""Kinds of `pump.field_names` that stop here. A disguised one is no field of ours, and would be
taken for one by the target."""


_LOGIN_SCHEMES = frozenset({b"ntlm", b"negotiate"})
"""Logins that belong to the connection they were made on (RFC 4559 6)."""


def binds_connection(headers: Iterable[Field], name: bytes) -> bool:
    """Whether the field of this lower-case name (`authorization` of a request, `www-authenticate`
    of an answer) is part of a login that belongs to the connection it is made on."""
    values = [value.split(None, 1) for key, value in headers if key.lower() == name]
    return any(words and words[0].lower() in _LOGIN_SCHEMES for words in values)


def names_visitor(headers: Iterable[Field]) -> bool:
    """Whether a request has a field in which a proxy names or describes its visitor."""
    return any(field_kind(name) == "forwarding" for name, _ in headers)


def end_to_end(headers: Iterable[Field]) -> list[Field]:
    """The end-to-end fields; Content-Length is still among them."""
    headers = list(headers)
    named = {member.lower() for member in field_values(headers, b"connection")}
    named -= _NEVER_HOP_BY_HOP
    kept = [pair for pair in headers if field_kind(pair[0]) not in _FOR_ONE_HOP]
    return [pair for pair in kept if pair[0].lower() not in named] if named else kept


def without_own_fields(headers: Iterable[Field]) -> list[Field]:
    """The fields without `Tunnelmux-*`, which only this system's own parts may set."""
    return [pair for pair in headers if field_kind(pair[0]) not in {"own", "disguised"}]


def safe_trailers(trailers: Sequence[Field]) -> list[Field]:
    """The trailer fields that may be passed on (RFC 9110 6.5.1)."""
    return [pair for pair in trailers if field_kind(pair[0]) == "ordinary"]


def own_cookies(headers: Iterable[Field], host: bytes) -> list[Field]:
    """An answer's fields with no `Set-Cookie` for more than the host that was asked."""
    return [
        (name, without_parent_domains(value, host) if name.lower() == b"set-cookie" else value)
        for name, value in headers
    ]


def clearing_own(headers: Iterable[Field]) -> list[Field]:
    """An answer's fields with no `Clear-Site-Data` for more than the host that was asked."""
    kept = []
    for name, value in headers:
        if name.lower() == b"clear-site-data":
            value = clearing_only_own(value)  # noqa: PLW2901
            if not value:
                continue
        kept.append((name, value))
    return kept


def without_own_cookies(headers: Iterable[Field]) -> list[Field]:
    """A request's fields without the cookies of the proxy itself, which prove who a visitor is."""
    kept = []
    for name, value in headers:
        if name.lower() == b"cookie":
            others, own = split_own_cookies(value)
            if not others and own:
                continue
            value = others  # noqa: PLW2901
        kept.append((name, value))
    return kept


def without_own_set_cookies(headers: Iterable[Field]) -> list[Field]:
    """An answer's fields without those that would set such a cookie."""
    return [
        pair
        for pair in headers
        if pair[0].lower() != b"set-cookie" or not is_own_set_cookie(pair[1])
    ]


def replace_host(headers: Iterable[Field], host: bytes) -> list[Field]:
    """The fields with this Host, first (RFC 9110 7.2)."""
    return [(b"Host", host), *(pair for pair in headers if pair[0].lower() != b"host")]


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The peers whose fields about the visitor behind them are trusted."""

    networks: Sequence[IpNetwork] = field(default_factory=tuple)
    fields: frozenset[bytes] = frozenset()
    """Names, in lower case, of fields that they may set besides `Forwarded`, `X-Forwarded-*` and
    `X-Real-IP`.
    """
    keep_logins: bool = False
    """Whether they keep a connection for one visitor, once a login began that belongs to it."""

    @classmethod
    def parse(
        cls, networks: Iterable[str], fields: Iterable[str] = (), *, keep_logins: bool = False
    ) -> TrustedProxies:
        """From addresses and networks in CIDR notation; ValueError names a malformed one."""
        return cls(
            tuple(ipaddress.ip_network(text, strict=False) for text in networks),
            frozenset(name.lower().encode("ascii") for name in fields),
            keep_logins,
        )

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

    def visitor(self, address: str, scheme: str = "http") -> Visitor:
        """A visitor from this address; trusted if the address is one of these."""
        is_one = address in self
        fields = self.fields if is_one else frozenset[bytes]()
        is_shared = is_one and not self.keep_logins
        return Visitor(address, scheme, is_one, fields, connection_is_shared=is_shared)


@dataclass(frozen=True, slots=True)
class Visitor:
    """The sender of a request: the peer's address, and the scheme."""

    address: str
    scheme: str = "http"
    trusted: bool = False
    """Whether the address is one of the trusted proxies."""
    believed: frozenset[bytes] = frozenset()
    """`TrustedProxies.fields`, for one of them."""
    connection_is_shared: bool = False
    """Whether its connection may carry requests of other visitors, too: it is that of a trusted
    proxy, and these are told apart once a request `names_visitor`."""

    def may_say(self, name: bytes) -> bool:
        """Whether this peer may set a field that only proxies may send."""
        name = name.lower()
        usual = name.startswith(b"x-forwarded-") or name in {b"forwarded", b"x-real-ip"}
        return self.trusted and (usual or name in self.believed)


_SET_HERE = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})


def forwarding_fields(headers: Iterable[Field], visitor: Visitor, host: bytes) -> list[Field]:
    """The fields with `Forwarded` (RFC 7239) and `X-Forwarded-*` saying who asked for what.

    From a trusted proxy such fields stay, and ours are appended to the lists; from other peers
    every such field is replaced. `host` is the host that the visitor asked for.
    """
    # Also of a trusted proxy, disguised fields are dropped: it would not send them.
    kept = [
        (name, value)
        for name, value in headers
        if (kind := field_kind(name)) != "disguised"
        and (kind != "forwarding" or visitor.may_say(name))
    ]
    address, scheme = plain_address(visitor.address), visitor.scheme.encode("ascii")
    ours = Hop(b"[%s]" % address if b":" in address else address, host, scheme)
    before = Route()
    if visitor.trusted:
        before = Route.read(
            _values(kept, b"forwarded"),
            *(_values(kept, b"x-forwarded-" + name) for name in (b"for", b"proto", b"host")),
        )
        kept = [pair for pair in kept if pair[0].lower() not in _SET_HERE]
    hops = [*before.hops, ours]
    hops[0] = replace(hops[0], host=hops[0].host or host, proto=hops[0].proto or scheme)
    kept += [
        (b"X-Forwarded-For", b", ".join([*before.addresses, address])),
        (b"X-Forwarded-Proto", b", ".join(before.protos) or scheme),
    ]
    if before.hosts or host:
        kept.append((b"X-Forwarded-Host", b", ".join(before.hosts) or host))
    kept.append((b"Forwarded", write_forwarded(hops)))
    return kept


def client_address(headers: Iterable[Field], trusted: TrustedProxies) -> str | None:
    """The client behind the trusted proxies, from `X-Forwarded-For`, or `Forwarded` where there is
    no such field: the first address from the right that is not a trusted proxy's. None when both
    are missing or have no valid address.
    """
    headers = list(headers)
    nodes: list[bytes] = last_members(_values(headers, b"x-forwarded-for"))
    if not nodes:
        nodes = [hop.node or b"" for hop in read_forwarded(_values(headers, b"forwarded"))]
    client = None
    for node in reversed(nodes):
        address = plain_node(node)
        if address is None:
            return client
        client = address
        if address not in trusted:
            break
    return client


def reported_scheme(headers: Iterable[Field]) -> bytes | None:
    """The scheme that the visitor asked with, as trusted proxies report it: `X-Forwarded-Proto`, or
    `Forwarded` where there is no such field."""
    headers = list(headers)
    protos: Sequence[bytes | None] = last_members(_values(headers, b"x-forwarded-proto"))
    if not protos:
        protos = [hop.proto for hop in read_forwarded(_values(headers, b"forwarded"))]
    return protos[0] if protos else None


def reported_hosts(headers: Iterable[Field]) -> list[bytes]:
    """The hosts in `X-Forwarded-Host`."""
    return last_members(_values(headers, b"x-forwarded-host"))


def _values(headers: Iterable[Field], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]
