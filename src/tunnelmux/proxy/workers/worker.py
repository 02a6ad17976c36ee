"""One worker of a proxy: gives the rest of the process its parent and the other workers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from tunnelmux.config import Address as ConfigAddress
from tunnelmux.directory import Node
from tunnelmux.directory.workers import WorkersDirectory
from tunnelmux.errors import ConfigError, ConnectError
from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.listeners import Binder, listeners_of
from tunnelmux.proxy.workers.link import Link, LinkLost, Reply, close_all
from tunnelmux.proxy.workers.words import (
    AGENT,
    DIRECTORY,
    DRAIN,
    ENDED_FIGURES,
    ENROLLED,
    EVENT,
    FIGURES,
    HAS_SOCKETIO,
    LEFT,
    LISTEN,
    MAKE_WAY,
    MOVE,
    NEWS,
    NODE_KEY,
    PING,
    REACH,
    REACHED,
    READY,
    RELOAD,
    SEATED,
    TAKES_AGENTS,
    UNLISTEN,
    VISITOR,
    WELCOME,
    Address,
    Agent,
    Reach,
    Reloaded,
    Visitor,
    Way,
    Welcome,
)
from tunnelmux.sessions import EventLog, SessionEvent

__all__ = ["Worker"]

_log = get_logger("proxy.workers")

_REACH_TIMEOUT = 2.0
# Seconds for the parent to connect two workers: visitors wait.

Reloads = Callable[[], Awaitable[Reloaded]]


class Worker(Binder):
    """This process as a worker. `run` must be running while it is used."""

    def __init__(
        self, connected: socket.socket, name: str, incarnation: str, *, others: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.others = [other for other in others if other != name]
        """The names of the other workers, whether they run or not."""
        self.incarnation = incarnation
        self.events = EventLog(history=0)
        """The events of all workers."""
        self.drain_wanted = trio.Event()
        """Set when the worker has to end in order; also when the parent has ended."""
        self.is_orphan = False
        """Whether the parent has ended."""
        self.on_reload: Reloads | None = None
        self.on_reached: dict[Way, Callable[[socket.socket, str], None]] = {}
        """Called with this end of a connection that another worker has asked for."""
        self.on_move: Callable[[], Awaitable[None]] | None = None
        """Has the agents make sessions with the next program."""
        self.on_enrolled: Callable[[], Awaitable[None]] | None = None
        """Reads the list of devices that have enrolled."""
        self.on_make_way: Callable[[], Awaitable[None]] | None = None
        """Has nothing accepted here any more, because that serves."""
        self.on_agent: Callable[[str, socket.socket], None] | None = None
        """Called with the slot of a listener and a connection that came there."""
        self._link = Link(connected, self)
        self._news = trio.Event()

    async def run(self) -> None:
        """Carry messages until the parent is gone."""
        await self._link.run()
        _log.error("parent lost", effect="this worker ends")
        self.is_orphan = True
        self.drain_wanted.set()

    async def flush(self) -> None:
        """Return when all that was told is on its way."""
        await self._link.flush()

    def ready(self) -> None:
        """Tell the parent that this worker serves."""
        self._tell(READY)

    def keep_events(self, history: int) -> None:
        """Keep so many events of all workers from now on: before `run`."""
        self.events = EventLog(history)

    def record(self, event: SessionEvent) -> None:
        """Report an event of this worker to all workers."""
        self._tell(EVENT, msgspec.json.encode(event))

    def tell_left(self) -> None:
        """Tell the parent that a connection that it accepted for agents has ended and had no
        session."""
        self._tell(LEFT)

    def tell_figures(self, text: bytes) -> None:
        """Send the parent this worker's metrics, as they were last shown."""
        self._tell(FIGURES, text)

    async def ended_figures(self) -> bytes:
        """The counters of workers that have ended, as metrics. The caller bounds the wait."""
        return (await self._link.call(ENDED_FIGURES)).body

    async def socketio_at(self) -> str:
        """The name of the worker that has the agents by Socket.IO; empty while none can have them.
        The caller bounds the wait."""
        return (await self._link.call(HAS_SOCKETIO)).body.decode()

    async def tell_enrolled(self) -> None:
        """Return when all other workers know the device that has just enrolled here."""
        with contextlib.suppress(LinkLost):
            await self._link.call(ENROLLED)

    def _tell(self, what: str, body: bytes = b"") -> None:
        with contextlib.suppress(LinkLost):  # this process is about to end
            self._link.tell(what, body)

    # -- what the parent gives ------------------------------------------------------------------

    async def node_key(self) -> bytes:
        """Key and certificate by which other nodes of the cluster know this machine, as PEM."""
        return (await self._link.call(NODE_KEY)).body

    @property
    def directory(self) -> WorkersDirectory:
        """Which worker has which device."""
        return WorkersDirectory(self._ask_directory, self._wait_news)

    async def open(self, slot: str, address: ConfigAddress) -> list[trio.SocketListener]:
        """The sockets that listen there for all workers. Raises ConfigError."""
        wanted = msgspec.json.encode(Address(slot, address.host, address.port))
        reply = await self._link.call(LISTEN, wanted)
        return listeners_of(reply.descriptors)

    async def takes_agents(self) -> None:
        await self._link.call(TAKES_AGENTS)

    def pass_visitor(self, slot: str, descriptor: int, remote: str) -> bool:
        """Give a visitor's connection to the next program, which closes it; whether that goes."""
        with contextlib.suppress(LinkLost):
            self._link.tell(VISITOR, msgspec.json.encode(Visitor(slot, remote)), [descriptor])
            return True
        return False

    def closed(self, slot: str, address: ConfigAddress) -> None:
        """Note that this worker no longer listens there."""
        self._tell(UNLISTEN, msgspec.json.encode(Address(slot, address.host, address.port)))

    def feeds(self, slot: str) -> bool:
        """Whether the parent accepts what comes to that listener."""
        return slot in ("tunnel", "socketio")

    async def reach(self, node: str, way: Way) -> socket.socket:
        """A new connection to another worker. Raises ConnectError."""
        with trio.move_on_after(_REACH_TIMEOUT):
            try:
                reply = await self._link.call(REACH, msgspec.json.encode(Reach(node, way)))
            except LinkLost as error:
                raise ConnectError(str(error)) from error
            if not reply.descriptors:
                raise ConnectError(f"{node} does not run at the moment")
            connected = socket.socket(fileno=reply.descriptors[0])
            connected.setblocking(False)
            return connected
        raise ConnectError("the parent process gave no answer in time")

    async def dial(self, node: Node) -> trio.abc.Stream:
        """A connection for a hop to another worker. Raises ConnectError."""
        connected = await self.reach(node.name, "hop")
        return trio.SocketStream(trio.socket.from_stdlib_socket(connected))

    async def _ask_directory(self, message: bytes) -> bytes:
        try:
            return (await self._link.call(DIRECTORY, message)).body
        except LinkLost:
            await trio.sleep_forever()  # until the time for an answer is over: this process ends
            raise

    async def _wait_news(self) -> None:
        await self._news.wait()
        self._news = trio.Event()

    # -- what the parent says -------------------------------------------------------------------

    async def answer(self, what: str, body: bytes) -> Reply:  # noqa: ARG002  as any owner of a link
        """Answer the parent's call; raises ConfigError."""
        if what == PING:
            return Reply()
        if what == RELOAD and self.on_reload is not None:
            return Reply(msgspec.json.encode(await self.on_reload()))
        if what == MOVE and self.on_move is not None:
            await self.on_move()
            return Reply()
        if what == ENROLLED:
            if self.on_enrolled is not None:  # else it reads that list when it begins
                await self.on_enrolled()
            return Reply()
        if what == MAKE_WAY and self.on_make_way is not None:
            await self.on_make_way()
            return Reply()
        raise ConfigError(f"{self.name} knows no {what}")

    def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:
        """Handle a message from the parent."""
        if what == NEWS:
            self._news.set()
        elif what == EVENT:
            self.events.add(msgspec.json.decode(body, type=SessionEvent))
        elif what == WELCOME:
            welcome = msgspec.json.decode(body, type=Welcome)
            self.events.restart(welcome.epoch, welcome.seq)
            for event in welcome.events:
                self.events.add(msgspec.json.decode(event, type=SessionEvent))
        elif what == DRAIN:
            self.drain_wanted.set()
        elif what == VISITOR and self.take_visitor is not None:
            from tunnelmux.pump.sockets import adopted

            told = msgspec.json.decode(body, type=Visitor)
            self.take_visitor(told.slot, adopted(descriptors[0]), told.remote)
            return
        elif what == REACHED:
            self._take_reached(msgspec.json.decode(body, type=Reach), descriptors)
            return
        elif what == AGENT:
            self._take_agent(msgspec.json.decode(body, type=Agent), descriptors)
            return
        close_all(descriptors)

    def _take_reached(self, told: Reach, descriptors: Sequence[int]) -> None:
        take = self.on_reached.get(told.way)
        if take is None:
            close_all(descriptors)
            return
        connected = socket.socket(fileno=descriptors[0])
        connected.setblocking(False)
        take(connected, told.node)

    def _take_agent(self, told: Agent, descriptors: Sequence[int]) -> None:
        connected = socket.socket(fileno=descriptors[0])
        if self.on_agent is None:
            connected.close()
        else:
            self.on_agent(told.slot, connected)
        self._tell(SEATED)
