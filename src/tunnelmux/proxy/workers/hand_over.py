"""Visitors who came to a worker that does not have their device are passed to the one that has.

The descriptors go over a pair of sockets that the parent made, those of one batch of arrivals
together: a message is a line of `SLOT NUL ADDRESS` for each. A descriptor stays open here until the
other worker says that it has taken it, which it says before it reads anything. So a visitor whose
taker dies is served here after all.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

import trio

from tunnelmux.errors import ConnectError
from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.figures import VisitorFigures
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.transports.tcp import python_socket, reset_socket

if TYPE_CHECKING:
    from tunnelmux.pump.sockets import BareSocket

__all__ = ["MOST_UNTAKEN", "HandOver"]

_log = get_logger("proxy.workers")

MOST_UNTAKEN = 64
"""Visitors who were passed to one worker and not taken yet. It is busy: the next ones are served
here, by a hop, and wait for it no longer than they do."""

_MOST_LOOKED_FOR = 256
# Visitors of TCP ports who wait for an answer about where their device is; others take a hop.

_AT_ONCE = 8
# Messages taken before other tasks run, each with 32 visitors at most.

_TAKE_TIMEOUT = 10.0
# Seconds in which a worker must take a visitor. It is stopped, or hangs, and may still wake up and
# read from the connection: so that is reset, and not served here.

_TAKE_LOOK = 1.0
# Seconds between two looks for visitors who were not taken in time.

_TAKEN, _REFUSED = 1, 0


class _Passed(NamedTuple):
    """A visitor who was passed on, and not taken yet."""

    slot: str
    local: BareSocket
    remote: str
    since: float


class HandOver:
    """Passes visitors to other workers, and takes those that they pass."""

    def __init__(
        self,
        router: Router,
        pump: DataPump,
        figures: VisitorFigures,
        *,
        others: Collection[str],
        reach: Callable[[str], Awaitable[socket.socket]],
        serve: Callable[[str, BareSocket, str], None],
        listens: Callable[[str], bool],
    ) -> None:
        """*others* are the names of the other workers; *reach* connects to one, or raises
        ConnectError. *serve* serves a visitor here, by slot and address, and *listens* tells
        whether it would."""
        self.serve = serve
        self.listens = listens
        self.figures = figures
        self._router = router
        self._pump = pump
        self._others = frozenset(others)
        self._reach = reach
        self._ways: dict[str, _Way] = {}
        self._opening: dict[str, trio.Event] = {}
        self._looked_for = 0
        self._has_passed = trio.Event()

    async def run(self) -> None:
        """Give up visitors who are not taken in time, until cancelled."""
        while True:
            await self._has_passed.wait()  # no deadline: there is no visitor to give up
            self._has_passed = trio.Event()
            while self._give_up_old():  # noqa: ASYNC110  a look for all of them at once
                await trio.sleep(_TAKE_LOOK)

    def _give_up_old(self) -> bool:
        """Give up those who were not taken in time; whether any still wait."""
        waiting = [way.give_up_old() for way in self._ways.values()]  # of every one of them
        return any(waiting)

    def way_to(self, device: str) -> _Way | Literal["here", "unknown"]:
        node = self._router.elsewhere(device)
        if node is None:
            return "unknown"
        if node not in self._others:
            return "here"  # or on another machine, to which each worker has a way
        return self._ways.get(node, "unknown")

    async def find_way(self, device: str) -> None:
        if self._router.elsewhere(device) is None:
            await self._router.look_for(device)
        node = self._router.elsewhere(device)
        if node and node in self._others:
            await self._make_way(node)

    def pass_later(
        self, nursery: trio.Nursery, device: str, slot: str, local: BareSocket, remote: str
    ) -> bool:
        if self._looked_for >= _MOST_LOOKED_FOR:
            return False
        self._looked_for += 1
        nursery.start_soon(self._pass_later, device, slot, local, remote)
        return True

    async def _pass_later(self, device: str, slot: str, local: BareSocket, remote: str) -> None:
        try:
            await self.find_way(device)
        except trio.Cancelled:
            local.close()
            raise
        finally:
            self._looked_for -= 1
        way = self.way_to(device)
        if not isinstance(way, _Way) or not way.pass_on(slot, local, remote):
            self.serve(slot, local, remote)

    def take_from(self, connected: socket.socket, node: str) -> None:
        """Take the visitors that another worker passes over this connection, as long as it
        lives."""
        _Arrivals(self, self._pump, connected, node)

    def note_passed(self, count: int) -> None:
        """So many visitors were passed on."""
        self.figures.passed_on += count
        self._has_passed.set()

    def forget(self, node: str) -> None:
        """That way is gone."""
        self._ways.pop(node, None)

    async def _make_way(self, node: str) -> None:
        if (opening := self._opening.get(node)) is not None:
            await opening.wait()  # bounded, because reaching a worker is
            return
        if node in self._ways:
            return
        opening = self._opening[node] = trio.Event()
        try:
            connected = await self._reach(node)
        except ConnectError as error:
            _log.info("worker not reached", worker=node, cause=str(error))
        else:
            self._ways[node] = _Way(self, self._pump, connected, node)
        finally:
            del self._opening[node]
            opening.set()


class _Way:
    """The way to one other worker."""

    def __init__(
        self, owner: HandOver, pump: DataPump, connected: socket.socket, node: str
    ) -> None:
        from tunnelmux.pump.passing import MOST_AT_ONCE, Passage

        self._owner = owner
        self._node = node
        self._socket = connected
        self._most_at_once = MOST_AT_ONCE
        self._waiting: list[tuple[str, BareSocket, str]] = []
        self._passed: deque[_Passed] = deque()
        self._passage = Passage(pump.core, connected, self)
        self._is_over = False

    def pass_on(self, slot: str, local: BareSocket, remote: str) -> bool:
        self.pass_waiting()
        return self._has_room() and self._send([(slot, local, remote)])

    def pass_soon(self, slot: str, local: BareSocket, remote: str) -> bool:
        if not self._has_room():
            return False
        self._waiting.append((slot, local, remote))
        if len(self._waiting) == self._most_at_once:
            self.pass_waiting()
        return True

    def pass_waiting(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        if not self._send(waiting):
            for one in waiting:
                self._owner.serve(*one)

    def _has_room(self) -> bool:
        return not self._is_over and len(self._passed) + len(self._waiting) < MOST_UNTAKEN

    def _send(self, visitors: list[tuple[str, BareSocket, str]]) -> bool:
        """Pass them on, all or none."""
        if self._is_over:
            return False
        message = "\n".join([f"{slot}\0{remote}" for slot, _, remote in visitors]).encode()
        try:
            if not self._passage.send(message, [local for _, local, _ in visitors]):
                return False
        except OSError:
            self._end()
            return False
        now = trio.current_time()
        self._passed.extend([_Passed(*visitor, now) for visitor in visitors])
        self._owner.note_passed(len(visitors))
        return True

    def on_news(self) -> None:
        """Called by the pump when the other worker has said something, or ended."""
        if not self._read_answers():
            self._end()

    def _read_answers(self) -> bool:
        """Take note of what was taken; whether the other worker still runs."""
        answers = self._passage.receive(_AT_ONCE)
        for message, _ in answers or ():
            for answer in message:
                passed = self._passed.popleft()
                if answer == _TAKEN:
                    passed.local.close()
                else:
                    self._serve_here(passed)
        return answers is not None

    def give_up_old(self) -> bool:
        """Reset those who were not taken in time; whether any still wait."""
        before = trio.current_time() - _TAKE_TIMEOUT
        for passed in self._passed:
            if passed.since > before:
                break
            if passed.local.fileno() >= 0:
                _log.warning(
                    "visitor lost",
                    visitor=passed.remote,
                    problem=f"{self._node} did not take it within {_TAKE_TIMEOUT:g} s",
                )
                connection = python_socket(passed.local)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # at the other worker as well
                reset_socket(connection)
        return any(passed.local.fileno() >= 0 for passed in self._passed)

    def _end(self) -> None:
        """The other worker has ended: serve the visitors here that it did not take."""
        self._is_over = True
        while self._read_answers():
            if not self._passed:
                break
        self._passage.stop()
        self._socket.close()
        self._owner.forget(self._node)
        while self._passed:
            self._serve_here(self._passed.popleft())

    def _serve_here(self, passed: _Passed) -> None:
        if passed.local.fileno() >= 0:
            self._owner.serve(passed.slot, passed.local, passed.remote)


class _Arrivals:
    """What one other worker passes. Owned by the pump, until that worker ends."""

    def __init__(
        self, owner: HandOver, pump: DataPump, connected: socket.socket, node: str
    ) -> None:
        from tunnelmux.pump.passing import Passage

        self._owner = owner
        self._node = node
        self._socket = connected
        self._held: list[tuple[str, str, BareSocket | None]] = []
        self._passage = Passage(pump.core, connected, self)

    def on_news(self) -> None:
        """Called by the pump when visitors came, or the other worker ended."""
        if not self._serve_held():
            return  # the next event says that there is room for the answer
        arrived = self._passage.receive(_AT_ONCE)
        if arrived is None:
            self._passage.stop()
            self._socket.close()
            return
        for message, connections in arrived:
            lines = message.decode().split("\n")
            for line, local in zip_longest(lines, connections):
                slot, _, remote = line.partition("\0")
                taken = local if self._owner.listens(slot) else None
                if taken is None and local is not None:
                    local.close()
                self._held.append((slot, remote, taken))
        self._serve_held()

    def _serve_held(self) -> bool:
        """Say who was taken, then serve them; whether that could be said."""
        if not self._held:
            return True
        answers = bytes([_REFUSED if one[2] is None else _TAKEN for one in self._held])
        try:
            if not self._passage.send(answers):
                return False
        except OSError:
            pass  # that worker has ended, and no other process has these visitors
        held, self._held = self._held, []
        for slot, remote, local in held:
            if local is not None:
                self._owner.figures.taken_over += 1
                self._owner.serve(slot, local, remote)
        return True
