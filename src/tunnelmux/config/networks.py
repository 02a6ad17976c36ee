"""Groups of addresses that share a limit."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["allocation_of", "block_of", "network_of", "wider_networks"]

_MOST_KNOWN = 8192
# Addresses whose groups are remembered: a thousand that wait are grouped again for each new one.


@lru_cache(maxsize=_MOST_KNOWN)
def network_of(address: str) -> str:
    """The group that a per-address limit counts an address in: itself, of IPv6 its /64, which is
    what one subscriber has. An IPv4-mapped address counts as the IPv4 address; text that is no
    address is returned unchanged.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def wider_networks(address: str) -> list[tuple[str, int]]:
    """The blocks that one customer may have and change addresses in, of IPv6 the /56 and the /48,
    and that of a provider (see `allocation_of`), and how many times the limit of one network is
    theirs: so that 65,536 networks are not as many limits. A provider has as much as one IPv4 /24
    has by its addresses; its other customers share that.
    """
    try:
        parsed = ipaddress.ip_address(network_of(address).partition("/")[0])
    except ValueError:
        return []
    blocks = ((16, 256),) if parsed.version == 4 else ((56, 4), (48, 16), (32, 256))
    return [
        (str(ipaddress.ip_network((parsed, length), strict=False)), times)
        for length, times in blocks
    ]


def block_of(address: str) -> str:
    """The block that one customer of a provider may have: of IPv6 the /48, of IPv4 the /24. Text
    that is no address is returned unchanged.
    """
    return _around(address, ipv4=24, ipv6=48)


def allocation_of(address: str) -> str:
    """The block that a registry allocates to a provider, and anybody may become one: of IPv6 the
    /32, of IPv4 the /16. Text that is no address is returned unchanged.
    """
    return _around(address, ipv4=16, ipv6=32)


@lru_cache(maxsize=_MOST_KNOWN)
def _around(address: str, *, ipv4: int, ipv6: int) -> str:
    try:
        parsed = ipaddress.ip_address(network_of(address).partition("/")[0])
    except ValueError:
        return address
    length = ipv4 if parsed.version == 4 else ipv6
    return str(ipaddress.ip_network((parsed, length), strict=False))
