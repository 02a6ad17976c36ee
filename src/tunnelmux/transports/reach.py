"""How far an address can be reached from: from this machine, its link, its site, or everywhere."""

from __future__ import annotations

import ipaddress
import re
from enum import IntEnum

from tunnelmux.config.rules import is_loopback

__all__ = ["Reach", "reach_of"]

_LIKE_ADDRESS = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?$")
# A number in place of a top-level domain: systems read `127.1` or `0x7f000001` as addresses.


class Reach(IntEnum):
    """The larger, the more machines an address can be reached from."""

    MACHINE = 0
    LINK = 1
    SITE = 2
    """Private networks: RFC 1918, RFC 4193, and the shared space of RFC 6598."""
    WORLD = 3


def reach_of(host: str) -> Reach:
    """How far this address can be reached from. A name may resolve to any address: it counts as
    one of the whole world, but for `localhost` and what systems may read as an address."""
    if is_loopback(host.rstrip(".")) or host.lower().rstrip(".").endswith(".localhost"):
        return Reach.MACHINE
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Reach.MACHINE if _LIKE_ADDRESS.search(host) is not None else Reach.WORLD
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_unspecified:
        return Reach.MACHINE
    if address.is_link_local:
        return Reach.LINK
    is_wide = address.is_global and not getattr(address, "is_site_local", False)
    return Reach.WORLD if is_wide else Reach.SITE
