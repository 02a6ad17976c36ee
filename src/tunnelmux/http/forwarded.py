"""The fields `Forwarded` (RFC 7239) and `X-Forwarded-*`: the client, its request, and the proxies
on the way. Targets get both, with the same content. Where a trusted proxy sends only one kind, the
other is made from it (RFC 7239 section 7.4). Where the two differ, `X-Forwarded-*` wins: few
proxies set `Forwarded`, and many pass on a visitor's own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

__all__ = [
    "MOST_HOPS",
    "Hop",
    "Route",
    "last_members",
    "plain_address",
    "plain_node",
    "read_forwarded",
    "write_forwarded",
]

MOST_HOPS = 32
"""Members of each list that count, from its end. Proxies add at the end, so the last ones are those
of the proxies nearest to us; no real way has as many. What is further left may be a visitor's own,
and costs time for each member."""

_LONGEST_FORWARDED = 4096
# Bytes of one `Forwarded` line that is read: 128 for each hop. A longer one counts as malformed.

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(
    rb"[ \t]*(" + _TOKEN + rb")=(?:(" + _TOKEN + rb')|"((?:[^"\\]|\\.)*)")[ \t]*', re.DOTALL
)
_EMPTY = re.compile(rb"[ \t]*")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")  # RFC 3986 3.1
_V4 = re.compile(rb"([0-9.]{7,15})(:[0-9]{1,5})?")
_V6 = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\](:[0-9]{1,5})?|([0-9A-Fa-f:.]+))")
_HIDDEN = re.compile(rb"unknown|_[A-Za-z0-9._-]+", re.IGNORECASE)  # RFC 7239 6.2, 6.3


@dataclass(frozen=True, slots=True)
class Hop:
    """One element of `Forwarded`, its values without quotes. Unknown ones are None."""

    node: bytes | None = None
    """Who asked: `for`."""
    host: bytes | None = None
    proto: bytes | None = None
    more: tuple[tuple[bytes, bytes], ...] = ()
    """Other parameters, such as `by`."""


@dataclass(frozen=True, slots=True)
class Route:
    """The hops of a request as proxies report them, the visitor's first."""

    hops: tuple[Hop, ...] = ()
    """As in `Forwarded`."""
    addresses: tuple[bytes, ...] = ()
    """As in `X-Forwarded-For`."""
    protos: tuple[bytes, ...] = ()
    hosts: tuple[bytes, ...] = ()

    @classmethod
    def read(
        cls,
        forwarded: Sequence[bytes],
        addresses: Sequence[bytes],
        protos: Sequence[bytes],
        hosts: Sequence[bytes],
    ) -> Route:
        """From the values of `Forwarded`, of `X-Forwarded-For` and so on: the last MOST_HOPS."""
        said = cls((), *(tuple(last_members(values)) for values in (addresses, protos, hosts)))
        hops = read_forwarded(forwarded)
        if not (said.addresses or said.protos or said.hosts):
            return cls._from_hops(hops)
        if hops and said._agrees(hops):
            known = cls._from_hops(hops)
            return cls(
                hops,
                said.addresses or known.addresses,
                said.protos or known.protos,
                said.hosts or known.hosts,
            )
        return replace(said, hops=said._made_hops())

    @classmethod
    def _from_hops(cls, hops: tuple[Hop, ...]) -> Route:
        if not hops:
            return cls()
        first = hops[0]
        return cls(
            hops,
            tuple(_bare(hop.node or b"unknown") for hop in hops),
            (first.proto,) if first.proto else (),
            (first.host,) if first.host else (),
        )

    def _agrees(self, hops: tuple[Hop, ...]) -> bool:
        nodes = [_node(hop.node or b"unknown") for hop in hops]
        first = hops[0]
        return (
            (not self.addresses or nodes == [_node(one) for one in self.addresses])
            and (not self.protos or (first.proto or b"").lower() == self.protos[0].lower())
            and (not self.hosts or (first.host or b"").lower() == self.hosts[0].lower())
        )

    def _made_hops(self) -> tuple[Hop, ...]:
        """One for each address. A single proto or host is what the visitor asked with."""
        count = max(1, len(self.addresses))
        protos = self.protos if len(self.protos) == count else self.protos[:1]
        hosts = self.hosts if len(self.hosts) == count else self.hosts[:1]
        return tuple(
            Hop(_node(node) if node is not None else None, host, proto)
            for node, host, proto in zip_longest(self.addresses, hosts, protos)
        )


def last_members(values: Sequence[bytes]) -> list[bytes]:
    """The last MOST_HOPS members of a list field (RFC 9110 5.6.1) with these values, in order."""
    members: list[bytes] = []
    for value in reversed(values):
        parts = value.rsplit(b",", MOST_HOPS)[-MOST_HOPS:]
        members += [member for part in reversed(parts) if (member := part.strip())]
        if len(members) >= MOST_HOPS:
            break
    return members[:MOST_HOPS][::-1]


def read_forwarded(values: Sequence[bytes]) -> tuple[Hop, ...]:
    """The last MOST_HOPS elements of `Forwarded` with these values, in order; only those behind a
    malformed value, which the proxies after it cannot have written."""
    hops: list[Hop] = []
    for value in reversed(values):
        found = parse_forwarded(value) if len(value) <= _LONGEST_FORWARDED else None
        if found is None:
            break
        hops[:0] = found
        if len(hops) >= MOST_HOPS:
            break
    return tuple(hops[-MOST_HOPS:])


def parse_forwarded(value: bytes) -> tuple[Hop, ...] | None:
    """The elements of a `Forwarded` value; None when it is malformed (RFC 7239 4)."""
    hops: list[Hop] = []
    pairs: dict[bytes, bytes] = {}
    at = 0
    while True:
        match = _PAIR.match(value, at)
        if match is not None:
            name, plain, quoted = match.groups()
            text = plain if plain is not None else _ESCAPED.sub(rb"\1", quoted)
            if name.lower() in pairs:
                return None  # each parameter once
            pairs[name.lower()] = text
        else:  # empty members of a list are ignored (RFC 9110 5.6.1.2)
            match = _EMPTY.match(value, at)
            assert match is not None  # it matches everywhere
        at = match.end()
        if at == len(value) or value[at : at + 1] == b",":
            if pairs:
                hops.append(_hop(pairs))
            pairs = {}
            if at == len(value):
                return tuple(hops)
        elif value[at : at + 1] != b";":
            return None
        at += 1


def _hop(pairs: dict[bytes, bytes]) -> Hop:
    node, host, proto = (pairs.pop(name, None) for name in (b"for", b"host", b"proto"))
    return Hop(node, host, proto, tuple(pairs.items()))


def write_forwarded(hops: Sequence[Hop]) -> bytes:
    """A `Forwarded` value."""
    return b", ".join(b";".join(_write_pairs(hop)) or b"for=unknown" for hop in hops)


def _write_pairs(hop: Hop) -> list[bytes]:
    pairs = []
    if hop.node is not None:
        pairs.append(b"for=" + (_quoted(hop.node) if _needs_quotes(hop.node) else hop.node))
    if hop.host:
        pairs.append(b"host=" + _quoted(hop.host))
    if hop.proto is not None and _SCHEME.fullmatch(hop.proto):
        pairs.append(b"proto=" + hop.proto)
    for name, value in hop.more:
        pairs.append(name + b"=" + (_quoted(value) if _needs_quotes(value) else value))
    return pairs


def _needs_quotes(value: bytes) -> bool:
    return re.fullmatch(_TOKEN, value) is None


def _quoted(value: bytes) -> bytes:
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _node(text: bytes) -> bytes:
    """The node (RFC 7239 6) that `for` or `X-Forwarded-For` holds; "unknown" where it is none."""
    if _HIDDEN.fullmatch(text):
        return text
    if (match := _V4.fullmatch(text)) and _is_address(match[1]):
        return text
    if (match := _V6.fullmatch(text)) and _is_address(match[1] or match[3]):
        return b"[%s]%s" % ((match[1] or match[3]).lower(), match[2] or b"")
    return b"unknown"


def plain_node(text: bytes) -> str | None:
    """The address in a member of `X-Forwarded-For` or a `for`, which some proxies write with the
    port of the connection; None where it holds none."""
    match = _V4.fullmatch(text)
    if match is None and (match := _V6.fullmatch(text)) is None:
        return None
    try:
        address = ipaddress.ip_address((match[1] or match[3]).decode("ascii"))
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _bare(node: bytes) -> bytes:
    """A node as `X-Forwarded-For` has it: IPv6 without brackets."""
    if (match := _V6.fullmatch(node)) and match[1] and not match[2]:
        return match[1]
    return node


def _is_address(text: bytes) -> bool:
    try:
        ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        return False
    return True


def plain_address(address: str) -> bytes:
    """A peer's address as others know it: IPv4 also where the socket is one of IPv6, and without
    the zone of this machine (RFC 4007)."""
    if ":" in address:
        address = address.partition("%")[0]
        try:
            mapped = ipaddress.IPv6Address(address).ipv4_mapped
        except ValueError:
            mapped = None
        if mapped is not None:
            address = str(mapped)
    return address.encode("ascii", "replace")
