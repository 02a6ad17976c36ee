"""Apply changed address lists of listeners to connections that are open already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tunnelmux.access.addresses import AddressLists
from tunnelmux.config import TcpIngress
from tunnelmux.proxy.visitors.visit import Visit
from tunnelmux.transports.admission import address_of

__all__ = ["LISTS_CHANGED", "cut_unlisted", "is_listed"]

LISTS_CHANGED = "its address may not connect any more"
"""The reason in the log for visits that are cut."""


def is_listed(lists: AddressLists, remote: str) -> bool:
    """Whether the lists allow `remote` (`host:port`). A text that is no address, as in-memory tests
    have, is allowed only by empty lists.
    """
    return lists.admit(address_of(remote))


def cut_unlisted(visits: Iterable[Visit], ports: Iterable[TcpIngress]) -> int:
    """End visits by TCP that no port to their service would accept now. Returns how many. Visits to
    a service that no port leads to any more go on.
    """
    known: dict[tuple[str, str | None], list[AddressLists]] = defaultdict(list)
    for port in ports:
        known[port.device, port.service].append(AddressLists(port.allow_from, port.deny_from))
    cut = 0
    for visit in visits:
        lists = known.get((visit.asked_for, visit.service)) if visit.way == "tcp" else None
        if lists and not any(is_listed(one, visit.visitor) for one in lists):
            visit.cut(LISTS_CHANGED)
            cut += 1
    return cut
