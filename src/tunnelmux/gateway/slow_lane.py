"""The way in for addresses from which too many log-ins failed: slow, and never closed.

A key, a certificate and a ticket cannot be guessed, so failures there cost work and nothing else:
the gateway limits that work. The failures may be those of a neighbour who shares the address, and a
person with the right key gets in between them.

Who has the right key is known after the key exchange only, which is the work to be limited. But
those who flood mostly use one program, and SSH begins with its name (RFC 4253 section 4.2). So
programs take turns: a person with another one does not wait for the flood. One who tells a new name
each time gains nothing over that: then the newest goes first.
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


_MOST_WAITING = 32
# Connections of one address: half of the places that it has by default. So those of a flood that
# wait here take no place from others of the address, that come later.

_MOST_PROGRAMS = 64
# Programs of one address that are told apart.

_LONGEST_NAME = 255
# Bytes of an identification: RFC 4253 section 4.2.


class _Waiting(NamedTuple):
    connection: socket.socket
    go_on: Callable[[], object]


@dataclass(slots=True)
class _Source:
    """An address: when its next connection may go on, and those that wait by their program, the
    newest last. The program that went on last comes last."""

    due: float
    programs: OrderedDict[bytes, dict[Place, _Waiting]] = field(default_factory=OrderedDict)
    names: dict[Place, bytes] = field(default_factory=dict)
    """The program of each that waits."""

    def add(self, place: Place, name: bytes, waiting: _Waiting) -> None:
        if name not in self.programs:
            self.programs[name] = {}
            self.programs.move_to_end(name, last=False)
        self.programs[name][place] = waiting
        self.names[place] = name

    def remove(self, place: Place) -> _Waiting:
        return self.programs[self.names.pop(place)].pop(place)

    def next(self) -> Place | None:
        """The place whose turn it is; None where none waits."""
        name = next((name for name, places in self.programs.items() if places), None)
        if name is None:
            return None
        self.programs.move_to_end(name)
        if len(self.programs) > _MOST_PROGRAMS:
            self._forget_one()
        return next(reversed(self.programs[name]))

    def _forget_one(self) -> None:
        name = next((name for name, places in self.programs.items() if not places), None)
        if name is not None:
            del self.programs[name]

    def oldest_of_most(self) -> Place:
        """The oldest place of those programs that have most."""
        most = max(map(len, self.programs.values()))
        return next(place for place, name in self.names.items() if len(self.programs[name]) == most)


class SlowLane:
    """Connections with a place wait here. Addresses take turns, and the programs of one address;
    of one program the newest goes first, as the oldest is the first to lose its place.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # in the order of `due`
        self._arrival = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return sum(len(source.names) for source in self._sources.values())

    def enter(self, connection: socket.socket, place: Place, go_on: Callable[[], object]) -> None:
        """Have a connection wait, while `run` runs. `go_on` gets it when its turn comes, and must
        not raise. One that loses its place meanwhile is reset.
        """
        if place.source not in self._sources:
            self._sources[place.source] = _Source(trio.current_time())
        source = self._sources[place.source]
        source.add(place, _program_of(connection), _Waiting(connection, go_on))
        place.on_give_way = partial(self._turn_out, place)
        if len(source.names) > _MOST_WAITING:
            source.oldest_of_most().give_way()
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
                elif not source.names:
                    del self._sources[name]
        finally:
            for source in self._sources.values():
                for place in list(source.names):
                    place.give_way()

    def _lets_one_go_on(self, source: _Source) -> bool:
        """False where none waits whose client is still there."""
        while (place := source.next()) is not None:
            connection, go_on = source.remove(place)
            place.on_give_way = None
            if not _is_over(connection):
                go_on()
                return True
            connection.close()
            place.leave()
        return False

    def _turn_out(self, place: Place) -> None:
        reset_socket(self._sources[place.source].remove(place).connection)


def _is_over(connection: socket.socket) -> bool:
    """Whether the client has gone. An SSH client never ends only its own direction."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def _program_of(connection: socket.socket) -> bytes:
    """How the client calls itself; nothing where it waits for the server's greeting."""
    try:
        said = connection.recv(_LONGEST_NAME, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""
    return said.partition(b"\n")[0].rstrip()
