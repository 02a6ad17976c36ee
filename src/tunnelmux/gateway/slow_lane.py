"""The way in for addresses from which too many log-ins failed: slow, and never closed.

A key, a certificate and a ticket cannot be guessed, so failures there cost work and nothing else:
the gateway limits that work. The failures may be those of a neighbour who shares the address, and a
person with the right key gets in between them.
"""

from __future__ import annotations

import select
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, NoReturn

import trio

from tunnelmux.transports.admission import Place
from tunnelmux.transports.tcp import reset_socket

__all__ = ["SlowLane"]

_EACH = 0.1
# Seconds between two connections of one such address. A key exchange takes some milliseconds.

_ALL = 0.05
# Seconds between two connections of all such addresses together.


class _Waiting(NamedTuple):
    connection: socket.socket
    go_on: Callable[[], object]


@dataclass(slots=True)
class _Source:
    """An address: when its next connection may go on, and those that wait, the newest last."""

    due: float
    waiting: dict[Place, _Waiting] = field(default_factory=dict)


class SlowLane:
    """Connections with a place wait here, so many as have one. Addresses take turns, and of one
    address the newest goes first, as the oldest is the first to lose its place.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # in the order of `due`
        self._arrival = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return sum(len(source.waiting) for source in self._sources.values())

    def enter(self, connection: socket.socket, place: Place, go_on: Callable[[], object]) -> None:
        """Have a connection wait, while `run` runs. `go_on` gets it when its turn comes, and must
        not raise. One that loses its place meanwhile is reset.
        """
        if place.source not in self._sources:
            self._sources[place.source] = _Source(trio.current_time())
        self._sources[place.source].waiting[place] = _Waiting(connection, go_on)
        place.on_give_way = partial(self._turn_out, place)
        self._arrival.unpark_all()

    async def run(self) -> NoReturn:
        """Let connections go on, until cancelled: that resets those that wait."""
        try:
            while True:
                while not self._sources:
                    await self._arrival.park()
                name, source = next(iter(self._sources.items()))
                await trio.sleep_until(source.due)
                if self._lets_one_go_on(source):
                    source.due = trio.current_time() + _EACH
                    self._sources.move_to_end(name)
                    await trio.sleep(_ALL)
                elif not source.waiting:
                    del self._sources[name]
        finally:
            for source in self._sources.values():
                for place in list(source.waiting):
                    self._turn_out(place)
                    place.leave()

    def _lets_one_go_on(self, source: _Source) -> bool:
        """False where none waits whose client is still there."""
        while source.waiting:
            place, (connection, go_on) = source.waiting.popitem()
            place.on_give_way = None
            if not _is_over(connection):
                go_on()
                return True
            connection.close()
            place.leave()
        return False

    def _turn_out(self, place: Place) -> None:
        reset_socket(self._sources[place.source].waiting.pop(place).connection)


def _is_over(connection: socket.socket) -> bool:
    """Whether the client has gone. An SSH client never ends only its own direction."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))
