"""Which addresses are allowed: a list that allows and a list that denies; deny wins."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

__all__ = ["AddressLists"]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MOST_KNOWN = 4096
# Addresses remembered with their verdict; one more, and all are forgotten.


class AddressLists:
    """An address in `deny` is refused. Where `allow` is not empty, so is every address
    outside it."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = tuple(ipaddress.ip_network(text, strict=False) for text in allow)
        self._deny = tuple(ipaddress.ip_network(text, strict=False) for text in deny)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether either list has an entry."""
        return bool(self._allow or self._deny)

    def admit(self, address: str) -> bool:
        """Whether this address is allowed. Text that is no address is refused where `allow` has
        entries.
        """
        if not self:
            return True
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[address] = self._look(address)
        return known

    def _look(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)
