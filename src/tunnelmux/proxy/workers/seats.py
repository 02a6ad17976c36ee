"""The workers of one proxy as their parent knows them, and which of them gets the next agent."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
import trio

from tunnelmux.directory.workers import DirectoryDesk
from tunnelmux.observability import get_logger
from tunnelmux.proxy.workers.link import Link, LinkLost
from tunnelmux.proxy.workers.words import AGENT, Agent

__all__ = ["AGENTS_SLOT", "SOCKETIO_SLOT", "AgentDesk", "Bound", "Seat", "SocketIODesk"]

_log = get_logger("proxy.workers")

AGENTS_SLOT = "tunnel"
"""The listener where agents connect."""

SOCKETIO_SLOT = "socketio"
"""The listener where agents by Socket.IO connect."""

_MOST_UNSEATED = 64
# Agents that wait in one worker for a place to shake hands; the others wait in the kernel.

_FAILED_ACCEPT_PAUSE = 0.1
# Seconds until a failed accept is tried again; mostly no descriptor was left.

_EXPECTED = 10.0
# Seconds after which an agent that was passed on and has no session no longer counts, where its
# worker has told of no end either.


@dataclass(eq=False)
class Seat:
    """One worker, from start to start."""

    name: str
    process: trio.Process | None = None
    link: Link | None = None
    desk: DirectoryDesk | None = None
    takes_agents: bool = False
    is_ready: bool = False
    is_silent: bool = False
    """Whether it has not answered its parent for some time."""
    ended_by: str = ""
    """Why its parent has ended it."""
    sessions: int = 0
    figures: bytes = b""
    unseated: int = 0
    expected: deque[float] = field(default_factory=deque)

    @property
    def load(self) -> int:
        """Sessions that it has, or is about to have."""
        while self.expected and self.expected[0] < trio.current_time():
            self.expected.popleft()
        return self.sessions + len(self.expected)

    def expect_one_less(self) -> None:
        """Note that a connection that was passed to it has a session now, or has ended."""
        if self.expected:
            self.expected.popleft()

    @property
    def serving_link(self) -> Link | None:
        """The link to it, if it serves and answers."""
        return self.link if self.is_ready and not self.is_silent else None

    def is_over(self) -> None:
        """Forget all of the process that has ended."""
        self.takes_agents = self.is_ready = self.is_silent = False
        self.link = self.process = None
        self.sessions = self.unseated = 0
        self.expected.clear()


@dataclass(eq=False)
class Bound:
    """One listener, and the workers that listen on it."""

    listeners: list[trio.SocketListener]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    holders: set[str] = field(default_factory=set)

    def close(self) -> None:
        """Close its sockets here."""
        self.scope.cancel(reason="no worker listens there any more")
        for listener in self.listeners:
            listener.socket.close()


class AgentDesk:
    """Accepts agents, and gives each to the worker that has the fewest."""

    slot = AGENTS_SLOT

    def __init__(self, seats: Collection[Seat]) -> None:
        self._seats = seats
        self._news = trio.Event()

    def note_change(self) -> None:
        """A worker may take more agents than before."""
        self._news.set()
        self._news = trio.Event()

    async def accept_from(self, bound: Bound, listener: trio.SocketListener) -> None:
        """Accept from there until that is closed."""
        told = msgspec.json.encode(Agent(self.slot))
        with bound.scope:
            while True:
                try:
                    seat = await self._free_seat()
                    connection, _ = await listener.socket.accept()
                except OSError as error:
                    if listener.socket.fileno() < 0:
                        return
                    _log.error(
                        "no connection can be accepted; if files ran out, raise LimitNOFILE "
                        "(ulimit -n)",
                        listener=self.slot,
                        error=error.strerror,
                    )
                    await trio.sleep(_FAILED_ACCEPT_PAUSE)
                    continue
                seat = self._choose() or seat  # of now
                if seat.link is None:
                    connection.close()
                    continue
                seat.unseated += 1
                self._note_passed(seat)
                with contextlib.suppress(LinkLost):
                    seat.link.tell(AGENT, told, [connection.detach()])

    def _note_passed(self, seat: Seat) -> None:
        seat.expected.append(trio.current_time() + _EXPECTED)

    def _choose(self) -> Seat | None:
        free = filter(_is_free, self._seats)
        return min(free, key=lambda seat: seat.load, default=None)

    async def _free_seat(self) -> Seat:
        while (seat := self._choose()) is None:
            # No deadline: they wait in the kernel's queue until a worker can take one more.
            await self._news.wait()
        return seat


class SocketIODesk(AgentDesk):
    """Accepts agents by Socket.IO, and gives all of them to one worker, as long as that runs.

    A client on polling makes many connections, and only the worker with its session can answer
    them. Who it is that the connections of one session have in common, only their content tells,
    and that may be under TLS. These agents run commands, and so one worker is enough for them.
    """

    slot = SOCKETIO_SLOT

    def __init__(self, seats: Collection[Seat]) -> None:
        super().__init__(seats)
        self._holder: Seat | None = None

    @property
    def holder(self) -> str:
        """The name of the worker that has these agents; empty while none can have them."""
        if self._holder is None or not self._holder.takes_agents:
            self._holder = next((seat for seat in self._seats if seat.takes_agents), None)
        return self._holder.name if self._holder is not None else ""

    def _note_passed(self, seat: Seat) -> None:
        """What this listener's agents cost does not count."""

    def _choose(self) -> Seat | None:
        seat = self._holder if self.holder else None
        return seat if seat is not None and _is_free(seat) else None


def _is_free(seat: Seat) -> bool:
    return (
        seat.takes_agents
        and not seat.is_silent
        and seat.link is not None
        and seat.unseated < _MOST_UNSEATED
    )
