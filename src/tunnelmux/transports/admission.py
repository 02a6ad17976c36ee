"""Places for new connections, which limit unauthenticated peers. A connection holds a place until
its handshake, or the head of its first request, is complete. Until its first byte it is silent. The
peer is not authenticated by then, so places are limited by address; when all are taken, silent
connections give way to new ones. Those that find none can wait.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import trio

from tunnelmux.config.networks import network_of
from tunnelmux.observability import get_logger
from tunnelmux.transports.waiting_line import Waiting, WaitingLine

__all__ = ["Admission", "Place", "source_of"]

_log = get_logger("admission")

_LOG_INTERVAL = 10.0
# Seconds between two log lines about the same kind of refusal: a flood must not fill the log.

_FRESH = 0.1
# Seconds of silence after which a connection gives way before others that have spoken. Where few
# are silent, each new one would else end the one before it, whose first byte is under way.

_SOURCES_TOLD_APART = 256
# Addresses that such a line counts separately; the others are summed.


class Addresses(Protocol):
    """A set of addresses, single ones or networks."""

    def __contains__(self, address: str, /) -> bool: ...


def source_of(remote: str) -> str:
    """The address that limits count for `host:port` or an address alone: of IPv6, its /64, which is
    what one subscriber has.
    """
    host = address_of(remote)
    return network_of(host) if ":" in host else host


def address_of(remote: str) -> str:
    """The address of `host:port`, or an address alone."""
    if remote.startswith("["):
        return remote[1:].partition("]")[0]
    return remote if remote.count(":") > 1 else remote.partition(":")[0]


def _is_fresh(place: Place) -> bool:
    return trio.current_time() - place.since < _FRESH


def _never() -> bool:
    return False


class Place:
    """One connection's place. Give it back with `leave`, or as a context manager."""

    __slots__ = ("_admission", "has_bytes", "on_give_way", "since", "source")

    def __init__(self, admission: Admission, source: str) -> None:
        self.source = source
        self.since = trio.current_time()
        self.on_give_way: Callable[[], object] | None = None
        """Called when another connection gets this place. It must end the connection soon, and not
        raise.
        """
        self.has_bytes: Callable[[], bool] = _never
        """Whether the peer has sent something that was not looked at yet. Asked before its place is
        given to another: a program that is busy comes late to who has spoken.
        """
        self._admission: Admission | None = admission

    @property
    def is_held(self) -> bool:
        """Whether the place is still held: neither given back nor lost to another."""
        return self._admission is not None

    def has_spoken(self) -> None:
        """Record the first byte: the connection is not silent any more."""
        if self._admission is not None:
            self._admission.note_first_byte(self)

    async def hear(self, stream: trio.SocketStream, timeout: float) -> bool:
        """Wait for the first byte or the end of a connection. True if it came within `timeout`
        seconds from when it got this place. Nothing is read.
        """
        with trio.move_on_at(self.since + timeout):
            await trio.lowlevel.wait_readable(stream.socket)
            self.has_spoken()
            return True
        return False

    def leave(self) -> None:
        """Give the place back: the connection's request has come, or it is over. Harmless twice."""
        if self._admission is not None:
            admission = self._take_back()
            admission.seat_waiting()

    def _take_back(self) -> Admission:
        assert self._admission is not None  # the caller has seen it
        admission, self._admission = self._admission, None
        self.on_give_way, self.has_bytes = None, _never
        admission.take_back(self)
        return admission

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
        """Lose the place to another, and end the connection."""
        on_give_way = self.on_give_way
        if self._admission is not None:
            self._take_back()
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

    `limit` is the number of places, `per_address` the most for one address. Addresses in `exempt`
    stand for many peers, such as load balancers: only `limit` applies to them. `grace` is the
    seconds of silence that are allowed: for that long a burst of one address may exceed its share
    while there are free places. Where no place is free, the oldest silent connection gives way: of
    the same address, if that has its full share, else of any that has no fewer places. Where none
    is silent, or only those that came just now, the oldest of the address that has the most places
    gives way, if those are at least two more than those of the new one's address. With `by_share`
    that comes first in any case: for a listener where silence says nothing. Connections from
    `known`, which are named as `source_of` does, take the place of any other address, whatever that
    has said: strangers from as many addresses as there are places must not keep them out.

    With `max_waiting`, so many connections that find no place wait for one, each for `patience`
    seconds. Then one that has been silent for `silence` seconds gives way to any address, and
    others only to the first of an address: where many agents dial at once, their first bytes are
    late, and each newcomer would end what another has begun.
    """

    def __init__(
        self,
        listener: str,
        *,
        limit: int = 256,
        per_address: int = 128,
        grace: float = 0.0,
        exempt: Addresses = frozenset(),
        known: Addresses = frozenset(),
        by_share: bool = False,
    ) -> None:
        self.grace = grace
        self._known = known
        self._by_share = by_share
        self.gave_way = 0
        """Connections that were ended to make room for others."""
        self.refused = 0
        """Connections that got no place."""
        self._line = WaitingLine()
        self.configure(limit=limit, per_address=per_address, exempt=exempt)
        self.listener = listener
        """The listener's name in logs and metrics."""
        self._places = 0
        self._silent: dict[Place, None] = {}
        self._sources: dict[str, _Source] = {}
        self._by_size: dict[int, dict[_Source, None]] = {}
        self._most = 0  # the places of the address that has most
        self._said: dict[str, _Tally] = {}

    def __len__(self) -> int:
        return self._places

    @property
    def silent(self) -> int:
        """The number of silent connections."""
        return len(self._silent)

    @property
    def waiting(self) -> int:
        """The number of connections that wait for a place."""
        return len(self._line)

    def configure(
        self,
        *,
        limit: int,
        per_address: int,
        exempt: Addresses = frozenset(),
        max_waiting: int = 0,
        patience: float = 0.0,
        silence: float = 0.0,
    ) -> None:
        """Use these limits from now on; held places stay."""
        self.limit = limit
        self._silence = silence
        self.per_address = per_address
        self.exempt: Addresses = exempt
        self._line.limit, self._line.patience = max_waiting, patience

    def exempts(self, remote: str) -> bool:
        """Whether this address is exempt."""
        return address_of(remote) in self.exempt

    def enter(self, remote: str) -> Place | None:
        """A place for the connection from `remote` (`host:port`, or an address alone); None when
        none is free.
        """
        exempt = self.exempts(remote)
        name = self._name(remote)
        reason = self._need_place(name)
        if reason is None:
            return self._add(name)
        if not exempt:
            self._refuse(name, reason)
        return None

    def enter_or_wait(
        self, connection: socket.socket, remote: str, seated: Callable[[Place], object]
    ) -> bool:
        """Call `seated` with a place for the connection, now or as soon as there is one; the
        connection is reset when that takes too long. `seated` must not raise. False when there is
        no place and too many wait already: the connection is still the caller's.
        """
        name = self._name(remote)
        # Of several of one address, those that came first are first.
        reason = "no-place" if name in self._line else self._need_place(name)
        if reason is None:
            seated(self._add(name))
            return True
        if not self._line.add(Waiting(name, connection, seated, trio.current_time())):
            self._refuse(name, reason)
            return False
        self._tell("connections wait", name, reason)
        self.seat_waiting()
        return True

    def seat_waiting(self) -> None:
        """Give free places, and those of silent connections, to connections that wait."""
        for late in self._line.turn_out_late(trio.current_time()):
            self._refuse(late, "waited-too-long")
        while (source := self._line.next_source(self._may_enter)) is not None:
            if self._places >= self.limit and not self.make_room():
                break
            if (waiting := self._line.take(source)) is not None:
                waiting.seated(self._add(source))

    def turn_out_waiting(self) -> None:
        """Reset the connections that wait: the listener is closed."""
        self._line.turn_out_all()

    def _name(self, remote: str) -> str:
        # Each connection of an exempt address stands for an address of its own.
        return remote if self.exempts(remote) else source_of(remote)

    def _may_enter(self, source: str) -> bool:
        return len(self._sources.get(source, ())) < self.per_address

    def make_room(self) -> bool:
        """Have the oldest silent connection give way. True if there was one that has been silent
        for long enough."""
        oldest = self._oldest(self._silent)
        if oldest is None or trio.current_time() - oldest.since < self._silence:
            return False
        self._evict(oldest, "silent")
        return True

    def make_room_for(self, remote: str) -> bool:
        """Have a connection give way to one from `remote`. True if there was one."""
        source = None if self.exempts(remote) else self._sources.get(source_of(remote))
        return self._make_room_for(source, len(source) if source is not None else 0)

    def _oldest(self, silent: dict[Place, None]) -> Place | None:
        """The first of these that is silent indeed."""
        while (place := next(iter(silent), None)) is not None and place.has_bytes():
            self.note_first_byte(place)  # it is in `silent` no more
        return place

    def _need_place(self, name: str) -> str | None:
        """See that there is a place for one more of that address. Returns why there is none."""
        source = self._sources.get(name)
        crowd = len(source) if source is not None else 0
        if source is not None and crowd >= self.per_address:
            crowd = self._thin_out(source)
        if crowd >= self.per_address and not self.grace:
            return "too-many-connections"
        if self._places >= self.limit and not self._make_room_for(source, crowd):
            if name in self._known and self._evict_stranger():
                return None
            return "no-place"
        return None

    def _make_room_for(self, source: _Source | None, crowd: int) -> bool:
        """Have a connection give way to one of this address, which has `crowd` places."""
        if self._line.limit:
            # Among addresses that all dial a lot, each would end what another has begun: but for
            # the first of an address, they wait, those that came first before others.
            return (not len(self._line) and self.make_room()) or (not crowd and self._level(crowd))
        oldest = self._oldest(self._silent)
        if (
            source is not None
            and oldest is not None
            and (self._by_share or len(self._sources[oldest.source]) < crowd)
        ):
            # A crowd of many addresses displaces its own, and none of an address that has less.
            oldest = self._oldest(source.silent)
        if (self._by_share or oldest is None or _is_fresh(oldest)) and self._level(crowd):
            return True
        if oldest is None:
            return False
        self._evict(oldest, "silent")
        return True

    def _thin_out(self, source: _Source) -> int:
        """Have connections give way that were silent for longer than `grace`. Returns how many of
        their address are left.
        """
        now = trio.current_time()
        while len(source) >= self.per_address:
            oldest = self._oldest(source.silent)
            if oldest is None or now - oldest.since < self.grace:
                break
            self._evict(oldest, "silent")
        return len(source)

    def _level(self, crowd: int) -> bool:
        """Have the oldest of the largest address give way to one that has `crowd` places."""
        if self._most < crowd + 2:
            return False
        largest = next(iter(self._by_size[self._most]))
        place = self._oldest(largest.silent) or next(iter(largest.speaking))
        self._evict(place, "of the address that has most")
        return True

    def _evict_stranger(self) -> bool:
        """Have the oldest connection of an address that is not known give way. True if there was
        one."""
        for source, places in self._sources.items():  # those that came first
            if source not in self._known:
                self._evict(next(iter(places.speaking or places.silent)), "of no known address")
                return True
        return False

    def _resized(self, source: _Source, change: int) -> None:
        """Note that it has got a place, or given one back."""
        before, now = len(source) - change, len(source)
        if before:
            del self._by_size[before][source]
            if not self._by_size[before]:
                del self._by_size[before]
        if now:
            self._by_size.setdefault(now, {})[source] = None
        if now > self._most or (before == self._most and before not in self._by_size):
            self._most = now

    def _add(self, name: str) -> Place:
        place = Place(self, name)
        self._places += 1
        self._silent[place] = None
        source = self._sources.setdefault(name, _Source())
        source.silent[place] = None
        self._resized(source, 1)
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
        self._resized(source, -1)
        if not len(source):
            del self._sources[place.source]

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
    """Counts since the last log line of its kind."""

    __slots__ = ("due", "sources", "total")

    def __init__(self) -> None:
        self.due = float("-inf")
        self.sources: Counter[str] = Counter()
        self.total = 0
