"""Who may stay while it has not said yet what it wants: places for connections that arrive.

A connection that arrives holds a place until its handshake, or the head of its first request, is
whole. Until its first byte it is silent. No peer has proved anything by then, so the places are
dealt out by address: one address gets so many, and where places run out, silence gives way to
every comer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import trio

from tunnelmux.config.networks import network_of
from tunnelmux.observability import get_logger

__all__ = ["Admission", "Place", "source_of"]

_log = get_logger("admission")

_LOG_INTERVAL = 10.0
# Seconds between two lines about the same kind of refusal: a flood must not fill the log as well.

_SOURCES_TOLD_APART = 256
# Addresses counted for such a line; the others are only added up.


class Addresses(Protocol):
    """A set of addresses, single ones or networks."""

    def __contains__(self, address: str, /) -> bool: ...


def source_of(remote: str) -> str:
    """The address of `host:port`, or an address alone, as one that is held to a limit: of IPv6, its
    /64, which is what one subscriber has."""
    host = address_of(remote)
    return network_of(host) if ":" in host else host


def address_of(remote: str) -> str:
    """The address of `host:port`, or an address alone."""
    if remote.startswith("["):
        return remote[1:].partition("]")[0]
    return remote if remote.count(":") > 1 else remote.partition(":")[0]


class Place:
    """One connection's place. Give it back with `leave`, or as a context manager."""

    __slots__ = ("_admission", "on_give_way", "since", "source")

    def __init__(self, admission: Admission, source: str) -> None:
        self.source = source
        self.since = trio.current_time()
        self.on_give_way: Callable[[], object] | None = None
        """Called when others got this place: it ends the connection soon, and does not raise."""
        self._admission: Admission | None = admission

    @property
    def is_held(self) -> bool:
        """Whether this is a place still: it was not given back, and did not have to give way."""
        return self._admission is not None

    def has_spoken(self) -> None:
        """The first byte has come: silence does not count against the connection any more."""
        if self._admission is not None:
            self._admission.note_first_byte(self)

    async def hear(self, stream: trio.SocketStream, timeout: float) -> bool:
        """Wait for the first byte, or the end, of a connection; whether it came within `timeout`
        seconds of when it got this place. Nothing is read."""
        with trio.move_on_at(self.since + timeout):
            await trio.lowlevel.wait_readable(stream.socket)
            self.has_spoken()
            return True
        return False

    def leave(self) -> None:
        """Give the place back: the connection has said what it wants, or is over. Harmless
        twice."""
        if self._admission is not None:
            admission, self._admission = self._admission, None
            self.on_give_way = None
            admission.take_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def give_way(self) -> None:
        """Leave for others, and end the connection."""
        on_give_way = self.on_give_way
        self.leave()
        if on_give_way is not None:
            on_give_way()


class _Source:
    """The places of one address: oldest first."""

    __slots__ = ("silent", "speaking")

    def __init__(self) -> None:
        self.silent: dict[Place, None] = {}
        self.speaking: dict[Place, None] = {}

    def __len__(self) -> int:
        return len(self.silent) + len(self.speaking)


class Admission:
    """The places of one listener.

    `limit` is how many there are, `per_address` how many one address may have. What lies in
    `exempt` speaks for many, a load balancer for one: only `limit` holds for it.

    With a `grace`, so many seconds of silence are granted: a burst of an address may go over its
    share for that long, and none of it is refused while there are places.

    Where no place is free, the oldest silent connection gives way: of the same address, if that has
    all it may have, else of any. One that has spoken keeps its place, unless its address has most
    of all and at least two more than that of the newcomer.
    """

    def __init__(
        self,
        listener: str,
        *,
        limit: int = 256,
        per_address: int = 128,
        grace: float = 0.0,
        exempt: Addresses = frozenset(),
    ) -> None:
        self.grace = grace
        self.gave_way = 0
        """Connections that were ended because others needed their places."""
        self.refused = 0
        """Connections that got no place."""
        self.configure(limit=limit, per_address=per_address, exempt=exempt)
        self.listener = listener
        """Which one: the name in logs and metrics."""
        self._places = 0
        self._silent: dict[Place, None] = {}
        self._sources: dict[str, _Source] = {}
        self._room = trio.lowlevel.ParkingLot()
        self._said: dict[str, _Tally] = {}

    def __len__(self) -> int:
        return self._places

    @property
    def silent(self) -> int:
        """How many have said nothing yet."""
        return len(self._silent)

    def configure(self, *, limit: int, per_address: int, exempt: Addresses = frozenset()) -> None:
        """Deal out places like this from now on; who has one keeps it."""
        self.limit = limit
        self.per_address = per_address
        self.exempt: Addresses = exempt

    def exempts(self, remote: str) -> bool:
        """Whether what comes from there speaks for many."""
        return address_of(remote) in self.exempt

    def enter(self, remote: str) -> Place | None:
        """A place for the connection from `remote` (`host:port`, or an address alone); None when
        there is none."""
        return self._enter(remote, self.exempts(remote))

    async def wait_for_place(self, remote: str) -> Place | None:
        """As `enter`; but an exempt peer waits for a place.

        No deadline: places are given back within the times that handshakes have.
        """
        exempt = self.exempts(remote)
        while (place := self._enter(remote, exempt)) is None and exempt:
            await self._room.park()
        return place

    def make_room(self) -> bool:
        """Have the oldest silent connection give way, if there is one; whether there was."""
        if not self._silent:
            return False
        self._evict(next(iter(self._silent)), "silent")
        return True

    def _enter(self, remote: str, exempt: bool) -> Place | None:
        # Each connection of an exempt address stands for an address of its own.
        name = remote if exempt else source_of(remote)
        source = self._sources.get(name)
        crowd = len(source) if source is not None else 0
        if source is not None and crowd >= self.per_address:
            crowd = self._thin_out(source)
        if crowd >= self.per_address and not self.grace:
            if not exempt:
                self._refuse(name, "too-many-connections")
            return None
        if self._places >= self.limit and not self.make_room() and not self._level(crowd):
            if not exempt:
                self._refuse(name, "no-place")
            return None
        return self._add(name)

    def _thin_out(self, source: _Source) -> int:
        """Have those give way that have been silent for longer than `grace`; answers how many are
        left of their address."""
        now = trio.current_time()
        while len(source) >= self.per_address:
            oldest = next(iter(source.silent), None)
            if oldest is None or now - oldest.since < self.grace:
                break
            self._evict(oldest, "silent")
        return len(source)

    def _level(self, crowd: int) -> bool:
        """Have the oldest of the largest address give way to one that has `crowd` places."""
        largest = max(self._sources.values(), key=len)
        if len(largest) < crowd + 2:
            return False
        self._evict(next(iter(largest.speaking)), "of the address that has most")
        return True

    def _add(self, name: str) -> Place:
        place = Place(self, name)
        self._places += 1
        self._silent[place] = None
        self._sources.setdefault(name, _Source()).silent[place] = None
        return place

    def note_first_byte(self, place: Place) -> None:
        """Called by a place that has spoken."""
        source = self._sources[place.source]
        if place in source.silent:
            del source.silent[place], self._silent[place]
            source.speaking[place] = None

    def take_back(self, place: Place) -> None:
        """Called by a place that is given back."""
        self._places -= 1
        source = self._sources[place.source]
        self._silent.pop(place, None)
        source.silent.pop(place, None)
        source.speaking.pop(place, None)
        if not len(source):
            del self._sources[place.source]
        self._room.unpark()

    def _evict(self, place: Place, reason: str) -> None:
        self.gave_way += 1
        self._tell("connections gave way", place.source, reason)
        place.give_way()

    def _refuse(self, source: str, reason: str) -> None:
        self.refused += 1
        self._tell("connections refused", source, reason)

    def _tell(self, event: str, source: str, reason: str) -> None:
        tally = self._said.setdefault(event, _Tally())
        tally.total += 1
        if source in tally.sources or len(tally.sources) < _SOURCES_TOLD_APART:
            tally.sources[source] += 1
        now = trio.current_time()
        if now < tally.due:
            return
        address, most = tally.sources.most_common(1)[0]
        _log.warning(
            event,
            listener=self.listener,
            reason=reason,
            count=tally.total,
            address=address,
            of_address=most,
            limit=self.limit,
            per_address=self.per_address,
        )
        tally.sources.clear()
        tally.total = 0
        tally.due = now + _LOG_INTERVAL


class _Tally:
    """What happened since the last line about it."""

    __slots__ = ("due", "sources", "total")

    def __init__(self) -> None:
        self.due = float("-inf")
        self.sources: Counter[str] = Counter()
        self.total = 0
