"""Groups of addresses that share a limit."""

from __future__ import annotations

import ipaddress

__all__ = ["block_of", "network_of"]


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


def block_of(address: str) -> str:
    """The block that one customer of a provider may have: of IPv6 the /48, of IPv4 the /24. Text
    that is no address is returned unchanged.
    """
    try:
        parsed = ipaddress.ip_address(network_of(address).partition("/")[0])
    except ValueError:
        return address
    length = 24 if parsed.version == 4 else 48
    return str(ipaddress.ip_network((parsed, length), strict=False))
