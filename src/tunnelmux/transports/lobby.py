"""Connections that were accepted and have said nothing yet, without a task for each.

Who has nothing to say dials by the thousand, and again when dropped. With a task for each, the
queue in front of the listener grew faster than it was worked off, and newcomers waited in it.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import trio

from tunnelmux.transports.admission import Place
from tunnelmux.transports.tcp import reset_socket

__all__ = ["Lobby"]

_STAY = 0.5
# Seconds of silence until a connection goes on all the same: few are left by then, and how long
# silence is borne, and what the log says of it, is for those to decide who serve it.

_AT_ONCE = 64
# Connections that go on before the other tasks get their turn.


class _Guest(NamedTuple):
    connection: socket.socket
    place: Place
    go_on: Callable[[], object]


class Lobby:
    """Where connections with a place wait for their first byte. Nothing is read."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self._epoll = select.epoll()
        self._guests: dict[int, _Guest] = {}  # by descriptor, the oldest first
        self._arrival = trio.lowlevel.ParkingLot()
        self._running = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, connection: socket.socket, place: Place, go_on: Callable[[], object]) -> None:
        """Watch a connection that was accepted just now, while `run` runs.

        `go_on` is called, and the connection is its own again, when a first byte or the end has
        come, or after half a second of silence, and at once where there is no epoll. It does not
        raise. A connection that has to give way meanwhile is reset.
        """
        if sys.platform != "linux":
            go_on()
            return
        number = connection.fileno()
        self._guests[number] = _Guest(connection, place, go_on)
        self._epoll.register(number, select.EPOLLIN | select.EPOLLRDHUP)
        place.on_give_way = partial(self._turn_out, number)
        self._arrival.unpark_all()

    async def run(self) -> None:
        """For as long as connections come; `close` ends it."""
        if sys.platform != "linux":
            return
        with self._running, self._epoll:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_silence)
                    await self._watch_bytes()
            finally:
                for number, guest in list(self._guests.items()):
                    guest.place.leave()
                    self._turn_out(number)

    def close(self) -> None:
        """End `run`, which resets who is here."""
        self._running.cancel(reason="no more connections are taken")

    async def _watch_bytes(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0, _AT_ONCE):
                self._let_go_on(number)

    async def _watch_silence(self) -> None:
        while True:
            while not self._guests:
                await self._arrival.park()  # until a connection comes, and is still there
            number, guest = next(iter(self._guests.items()))
            await trio.sleep_until(guest.place.since + _STAY)
            if self._guests.get(number) is guest:
                self._let_go_on(number)

    def _turn_out(self, number: int) -> None:
        # The epoll instance forgets it with its descriptor.
        reset_socket(self._guests.pop(number).connection)

    def _let_go_on(self, number: int) -> None:
        guest = self._guests.pop(number)
        self._epoll.unregister(number)
        guest.place.on_give_way = None
        guest.go_on()
