"""The address lists of listeners once more, for those who came in before these changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tunnelmux.access.addresses import AddressLists
from tunnelmux.config import TcpIngress
from tunnelmux.proxy.visitors.visit import Visit
from tunnelmux.transports.admission import address_of

__all__ = ["LISTS_CHANGED", "cut_unlisted", "is_listed"]

LISTS_CHANGED = "its address may not connect any more"
"""Why those are cut who may not go on."""


def is_listed(lists: AddressLists, remote: str) -> bool:
    """Whether `remote` (`host:port`) may be here. What is no address, in memory, may where nothing
    is said."""
    return lists.admit(address_of(remote))


def cut_unlisted(visits: Iterable[Visit], ports: Iterable[TcpIngress]) -> int:
    """End the visits by TCP that none of the ports to their service would let in now; how many
    there were. Where no port leads to a service any more, its visits go on."""
    known: dict[tuple[str, str | None], list[AddressLists]] = defaultdict(list)
    for port in ports:
        known[port.device, port.service].append(AddressLists(port.allow_from, port.deny_from))
    cut = 0
    for visit in visits:
        lists = known.get((visit.device, visit.service)) if visit.way == "tcp" else None
        if lists and not any(is_listed(one, visit.visitor) for one in lists):
            visit.cut(LISTS_CHANGED)
            cut += 1
    return cut
