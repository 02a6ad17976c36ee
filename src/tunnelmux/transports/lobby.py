"""Accepted connections that are still silent, without a task for each. Silent peers may dial by the
thousand, and again when dropped. With a task for each, the queue of the listener grew faster than
it was processed, and new connections waited in it.
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
# Seconds of silence after which a connection is passed on anyway: few are left by then, and the
# server decides how long it tolerates silence.

_AT_ONCE = 64
# Connections that are passed on before other tasks run.


_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR if sys.platform == "linux" else 0


class _Guest(NamedTuple):
    connection: socket.socket
    place: Place
    go_on: Callable[[], object]


class Lobby:
    """Connections with a place wait here for their first byte. Nothing is read.

    With `bytes_count` a first byte ends their silence: they give way to no other any more.
    Without it they stay as silent as they were, until their server says otherwise.
    """

    def __init__(self, *, bytes_count: bool = True) -> None:
        self._bytes_count = bytes_count
        if sys.platform == "linux":
            self._epoll = select.epoll()
        self._guests: dict[int, _Guest] = {}  # by descriptor, the oldest first
        self._arrival = trio.lowlevel.ParkingLot()
        self._running = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._guests)

    def enter(self, connection: socket.socket, place: Place, go_on: Callable[[], object]) -> None:
        """Watch a new connection, while `run` runs. `go_on` gets it back when its first byte or its
        end has come, or after half a second of silence; at once where there is no epoll. `go_on`
        must not raise. A connection that loses its place meanwhile is reset.
        """
        if sys.platform != "linux":
            go_on()
            return
        number = connection.fileno()
        self._guests[number] = _Guest(connection, place, go_on)
        self._epoll.register(number, select.EPOLLIN | select.EPOLLRDHUP)
        place.on_give_way = partial(self._turn_out, number)
        if self._bytes_count:
            place.has_bytes = partial(_has_bytes, connection)
        self._arrival.unpark_all()

    async def run(self) -> None:
        """Watch the connections; `close` ends this."""
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
        """End `run`, which resets the waiting connections."""
        self._running.cancel(reason="no more connections are taken")

    async def _watch_bytes(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, events in self._epoll.poll(0, _AT_ONCE):
                if self._bytes_count and not events & _ENDED:
                    self._guests[number].place.has_spoken()
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


def _has_bytes(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:  # none, or it is over
        return False
