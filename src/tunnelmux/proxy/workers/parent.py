"""The parent of a proxy's workers: binds their listeners, supervises them, and keeps their
directory.

No byte of a visitor passes here. It accepts agents, because it knows which worker has the fewest.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from tunnelmux.config import Address as ConfigAddress
from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.config.workers import WORKER_TIMEOUT
from tunnelmux.directory import MOST_PLACES, PlaceBook, new_incarnation
from tunnelmux.directory.workers import DirectoryDesk, ExpectedDevices
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger
from tunnelmux.observability.sums import add_up
from tunnelmux.proxy.reports import ReloadReport
from tunnelmux.proxy.visitors.listeners import Binder
from tunnelmux.proxy.workers.events import SharedEvents
from tunnelmux.proxy.workers.link import Link, LinkLost, Reply, close_all
from tunnelmux.proxy.workers.seats import (
    AGENTS_SLOT,
    SOCKETIO_SLOT,
    AgentDesk,
    Bound,
    Seat,
    SocketIODesk,
)
from tunnelmux.proxy.workers.upgrade import PassVisitor
from tunnelmux.proxy.workers.watch import Watch
from tunnelmux.proxy.workers.words import (
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
    Reach,
    Reloaded,
    Visitor,
)
from tunnelmux.sessions import SessionEvent

if TYPE_CHECKING:
    from tunnelmux.proxy.workers.shared_node import SharedNode
    from tunnelmux.pump.sockets import BareSocket

__all__ = ["WorkersParent", "worker_command", "worker_names"]

_log = get_logger("proxy.workers")

_NODES_SLOT = "cluster"

_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 10.0
# Seconds before a worker is started again, doubled each time: a worker that cannot start must not
# keep a core busy.

_CALM = 30.0
# Seconds that a worker must have run for the pause before its restart to begin small again.

_RELOAD_TIMEOUT = 30.0
# Seconds a worker may take to read its configuration again, and to have its agents move.

_ENROLLED_TIMEOUT = 5.0
# Seconds in which all workers should know a device that has enrolled at one of them: it waits.

_NOT_STARTED = 126
# The status of a program that cannot be executed, as a shell has it.

_KILL_AFTER = 5.0
# Seconds that a worker has to end once its link is closed, or its grace period is over.


class WorkersParent:
    """*count* workers, each started by *command* with a descriptor, a name and an incarnation
    behind it. *history* is how many events are kept. With *cluster*, all workers together are the
    node of that name, and a device has *max_device_sessions* on as many nodes. A worker that does
    not answer for *timeout* seconds is killed. Raises InvalidSetting where its Redis cannot be
    used."""

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        *,
        history: int,
        binder: Binder | None = None,
        node: str = "",
        cluster: ClusterConfig | None = None,
        max_device_sessions: int = MOST_PLACES,
        timeout: float = WORKER_TIMEOUT,
    ) -> None:
        self._binder = binder or Binder()
        self._binder.take_visitor = self._take_visitor
        self._pass_visitor: PassVisitor | None = None
        self._takes_visitors = trio.Event()
        self._timeout = timeout
        self._command = list(command)
        self._environ = {
            name: value for name, value in os.environ.items() if name not in _OF_THE_PARENT
        }
        self._seats = {name: Seat(name) for name in worker_names(count, node)}
        self._agents = AgentDesk(self._seats.values())
        self._socketio = SocketIODesk(self._seats.values())
        # Of an agent's two sessions, none is on the same machine as the other.
        self._book = PlaceBook(
            lease=math.inf, most_places=1, on_news=self._tell_news, on_change=self._note_change
        )
        self._expected = ExpectedDevices()
        self._node: SharedNode | None = None
        if cluster is not None:
            # Here: a proxy without other nodes needs none of it.
            from tunnelmux.directory.event_stream import EventStream
            from tunnelmux.proxy.workers.shared_node import SharedNode

            stream = EventStream(history, self._restart_events, self._take_event)
            self._node = SharedNode(
                node, cluster, self._book, stream, max_device_sessions, self._tell_of_session
            )
        self._bound: dict[Address, Bound] = {}
        self._binding = trio.Lock()
        self._events = SharedEvents(history)
        self._ended_figures = b""
        self._stopping = trio.Event()
        self._seated = trio.Event()
        self._news = trio.Event()
        self._failure: ConfigError | None = None
        self._turn = 0

    # -- from start to end --------------------------------------------------------------------

    async def run(
        self,
        announce: Callable[[], None] | None = None,
        *,
        task_status: trio.TaskStatus[WorkersParent] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the workers until all were drained. Calls *announce* and reports started when all of
        them serve; raises ConfigError if one cannot start."""
        try:
            async with trio.open_nursery() as around:
                await self._run_workers(around, announce, task_status)
                around.cancel_scope.cancel(reason="all workers have ended")
        finally:
            for bound in self._bound.values():
                bound.close()
        if self._failure is not None:
            raise self._failure

    async def _run_workers(
        self,
        around: trio.Nursery,
        announce: Callable[[], None] | None,
        task_status: trio.TaskStatus[WorkersParent],
    ) -> None:
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._wait_for_agents)
            for seat in self._seats.values():
                self._nursery.start_soon(self._keep, seat)
            while not all(seat.is_ready for seat in self._seats.values()):
                if self._failure is not None:
                    self._stop()
                    return
                await self._news.wait()  # no deadline: a worker says why it cannot begin
            if self._node is not None:
                # Waits for the first answer of Redis, at most a second.
                await around.start(self._node.run, str(self.address_of(_NODES_SLOT)))
            _log.info("workers started", count=len(self._seats))
            if announce is not None:
                announce()
            task_status.started(self)

    def address_of(self, slot: str) -> ConfigAddress | None:
        """Where the workers listen for that slot, with the port the system chose for 0."""
        for address, bound in self._bound.items():
            if address.slot == slot:
                port = bound.listeners[0].socket.getsockname()[1]
                return ConfigAddress(address.host, port)
        return None

    async def _wait_for_agents(self) -> None:
        """Let the workers take visitors once all take agents, and those have come that another
        program has made way for."""
        while not all(seat.takes_agents for seat in self._seats.values()):
            if self._stopping.is_set() or self._failure is not None:
                return
            await self._news.wait()  # no deadline: a worker says why it cannot begin
        await self._binder.takes_agents()
        self._takes_visitors.set()

    async def reload(self) -> ReloadReport:
        """Make all workers read their configuration again. Raises ConfigError if one of them cannot
        use it."""
        reports: list[Reloaded] = []
        problems: list[ConfigError] = []

        async def ask(seat: Seat, link: Link) -> None:
            try:
                with trio.move_on_after(_RELOAD_TIMEOUT):
                    reply = await link.call(RELOAD)
                    reports.append(msgspec.json.decode(reply.body, type=Reloaded))
                    return
                _log.warning("worker not reloaded", worker=seat.name, cause="it did not answer")
            except ConfigError as problem:
                problems.append(problem)
            except LinkLost:
                return  # its successor reads the new one

        async with trio.open_nursery() as nursery:
            for seat in self._seats.values():
                if seat.link is not None and seat.is_ready:
                    nursery.start_soon(ask, seat, seat.link)
        if problems:
            raise problems[0]
        kicked = {name for report in reports for name in report.kicked}
        told = {text: None for report in reports for text in report.problems}
        return ReloadReport(kicked=sorted(kicked), problems=[ConfigError(text) for text in told])

    async def drain(self, grace: float) -> None:
        """Stop all workers in order, within so many seconds; returns when they have ended."""
        self._stop()
        running = [seat.process for seat in self._seats.values() if seat.process is not None]
        with trio.move_on_after(grace + _KILL_AFTER):
            for process in running:
                await process.wait()
            while any(seat.link is not None for seat in self._seats.values()):
                await self._news.wait()  # what they said last
            return
        for process in running:
            process.kill()

    def _stop(self) -> None:
        self._stopping.set()
        if self._node is not None and self._pass_visitor is None:
            self._node.leave()  # else the next program is that node
        self._tell_all_of_news()
        for bound in self._bound.values():
            bound.close()  # first here: the last of those that share a socket refuses who waits
        for seat in self._seats.values():
            if seat.link is not None:
                with contextlib.suppress(LinkLost):
                    seat.link.tell(DRAIN)

    # -- the next program ---------------------------------------------------------------------

    def sockets_at(self, slot: str, address: ConfigAddress) -> list[int]:
        """Copies of the sockets that listen there for that slot."""
        bound = self._bound.get(Address(slot, address.host, address.port))
        return [os.dup(one.socket.fileno()) for one in bound.listeners] if bound else []

    async def move_agents(self) -> None:
        """Accept no more agents; those that are here make sessions with the next program."""
        self._cease_to_accept(AGENTS_SLOT)
        await self._call_all(MOVE)

    def keep_agents(self) -> None:
        """Accept agents again: the next program has failed."""
        for address, bound in self._bound.items():
            if address.slot == AGENTS_SLOT:
                bound.scope = trio.CancelScope()
                self._accept_from(address, bound)

    async def make_way(self, pass_visitor: PassVisitor) -> None:
        """The next program serves. Returns when no worker accepts any more; a drain follows."""
        self._pass_visitor = pass_visitor
        self._cease_to_accept(SOCKETIO_SLOT)
        await self._call_all(MAKE_WAY)

    def _cease_to_accept(self, slot: str) -> None:
        for address, bound in self._bound.items():
            if address.slot == slot:
                bound.scope.cancel(reason="another program accepts there")

    async def _call_all(
        self, what: str, *, timeout: float = _RELOAD_TIMEOUT, but: Seat | None = None
    ) -> None:
        """Call all workers that serve; one that does not answer is left alone after a while."""

        async def call(link: Link) -> None:
            with contextlib.suppress(LinkLost, ConfigError):
                await link.call(what)

        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:
                for seat in self._seats.values():
                    serves = seat.is_ready or what == ENROLLED  # who begins hears of that as well
                    if seat.link is not None and serves and seat is not but:
                        nursery.start_soon(call, seat.link)

    def take_released(self, body: bytes, descriptors: Sequence[int]) -> None:
        """Give the next program a visitor that one of the workers gave up."""
        told = msgspec.json.decode(body, type=Visitor)
        for descriptor in descriptors:
            if self._pass_visitor is None:
                os.close(descriptor)
            else:
                self._pass_visitor(told.slot, descriptor, told.remote)

    def _take_visitor(self, slot: str, connection: BareSocket, remote: str) -> None:
        """Give a worker a visitor that the program before this one gave up."""
        self._turn += 1
        ready = [link for seat in self._seats.values() if (link := seat.serving_link)]
        told = msgspec.json.encode(Visitor(slot, remote))
        if ready:
            with contextlib.suppress(LinkLost):
                ready[self._turn % len(ready)].tell(VISITOR, told, [connection.detach()])
        else:
            connection.reset()

    # -- one worker ---------------------------------------------------------------------------

    async def _keep(self, seat: Seat) -> None:
        """Run the worker, and start it again whenever it ends."""
        backoff = _FIRST_BACKOFF
        while not self._stopping.is_set():
            began = trio.current_time()
            was_ready, status = await self._run_once(seat)
            cause, seat.ended_by = seat.ended_by or _cause_of(status), ""
            if self._stopping.is_set():
                return
            if not was_ready and not self._seated.is_set():
                self._failure = ConfigError(f"{seat.name} could not begin: see above")
                self._tell_all_of_news()
                return
            if trio.current_time() - began > _CALM:
                backoff = _FIRST_BACKOFF
            _log.error(
                "worker ended",
                worker=seat.name,
                cause=cause,
                effect=f"it is started again in {backoff:g} s; its devices connect to the others",
            )
            with trio.move_on_after(backoff):
                while not self._stopping.is_set():
                    await self._news.wait()
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    async def _run_once(self, seat: Seat) -> tuple[bool, int]:
        """Run the worker once. Returns whether it served, and its exit status."""
        ours, theirs = socket.socketpair()
        incarnation = new_incarnation(int(time.time() * 1000))
        with theirs:
            try:
                process = await trio.lowlevel.open_process(
                    [*self._command, str(theirs.fileno()), seat.name, incarnation],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=self._environ,
                )
            except OSError as error:
                ours.close()
                _log.error("worker not started", worker=seat.name, error=error.strerror)
                return False, _NOT_STARTED
        seat.process = process
        elsewhere = self._node.find if self._node is not None else None
        seat.desk = DirectoryDesk(self._book, seat.name, incarnation, self._expected, elsewhere)
        seat.link = Link(ours, _Ear(self, seat))
        seat.link.tell(WELCOME, msgspec.json.encode(self._events.welcome()))
        if self._stopping.is_set():
            seat.link.tell(DRAIN)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, seat, seat.link, process)
                # Its end of the link is gone when it has ended, and not before.
                await seat.link.run()
                nursery.cancel_scope.cancel(reason="the worker has ended")
            with trio.move_on_after(_KILL_AFTER):
                await process.wait()
        finally:
            was_ready = seat.is_ready
            self._forget(seat)
            if process.returncode is None:
                process.kill()
        return was_ready, await process.wait()

    async def _watch(self, seat: Seat, link: Link, process: trio.Process) -> None:
        """Give a worker that hangs nothing new, and kill it when that goes on."""
        while not seat.is_ready:
            await self._news.wait()  # no deadline: it says when it serves, or ends

        async def ask() -> None:
            with contextlib.suppress(LinkLost):
                await link.call(PING)

        await Watch(ask, self._timeout, partial(self._note_silence, seat)).run()
        seat.ended_by = f"it gave no answer for {self._timeout:g} s and was killed"
        process.kill()

    def _note_silence(self, seat: Seat, *, is_silent: bool) -> None:
        seat.is_silent = is_silent
        self._book.hide(seat.name, is_hidden=is_silent)
        if is_silent:
            _log.warning(
                "worker silent",
                worker=seat.name,
                seconds=self._timeout / 2,
                effect="it gets no agents and visitors, and is killed if it stays silent as long "
                "again (proxy.worker_timeout)",
            )
        else:
            _log.info("worker answers again", worker=seat.name)
            self._tell_all_of_news()

    def _forget(self, seat: Seat) -> None:
        seat.is_over()
        self._ended_figures = add_up([self._ended_figures, seat.figures], is_over=True)
        seat.figures = b""
        if seat.desk is not None:
            seat.desk.close()
        self._pass_on(self._events.worker_ended(seat.name))
        self._tell_all_of_news()

    # -- what workers want --------------------------------------------------------------------

    async def answer(self, seat: Seat, what: str, body: bytes) -> Reply:
        """Answer a worker's call; raises ConfigError."""
        if what == DIRECTORY:
            assert seat.desk is not None  # it runs
            return Reply(await seat.desk.answer(body))
        if what == LISTEN:
            return await self._listen(seat, msgspec.json.decode(body, type=Address))
        if what == TAKES_AGENTS:
            seat.takes_agents = True
            self._tell_all_of_news()
            await self._takes_visitors.wait()  # no deadline: the others say why they cannot begin
            return Reply()
        if what == ENROLLED:
            await self._call_all(ENROLLED, timeout=_ENROLLED_TIMEOUT, but=seat)
            return Reply()
        if what == ENDED_FIGURES:
            return Reply(self._ended_figures)
        if what == HAS_SOCKETIO:
            return Reply(self._socketio.holder.encode())
        if what == NODE_KEY and self._node is not None:
            return Reply(self._node.identity.pem)
        if what == REACH:
            return self._reach(seat, msgspec.json.decode(body, type=Reach))
        raise ConfigError(f"there is no {what}")

    def hear(self, seat: Seat, what: str, body: bytes) -> None:
        """Handle a message of a worker."""
        if what == EVENT:
            event = self._events.take(seat.name, body)
            if event is not None:
                self._pass_on([event])
            had, seat.sessions = seat.sessions, self._events.sessions_of(seat.name)
            if seat.sessions > had:
                seat.expect_one_less()
        elif what == LEFT:
            seat.expect_one_less()
        elif what == FIGURES:
            seat.figures = body
        elif what == SEATED:
            seat.unseated -= 1
            self._tell_all_of_news()
        elif what == READY:
            seat.is_ready = True
            assert seat.process is not None  # it speaks
            _log.info("worker ready", worker=seat.name, pid=seat.process.pid)
            if all(one.is_ready for one in self._seats.values()):
                self._seated.set()
            self._tell_all_of_news()
        elif what == UNLISTEN:
            self._unlisten(seat, msgspec.json.decode(body, type=Address))

    async def _listen(self, seat: Seat, address: Address) -> Reply:
        async with self._binding:  # two workers may ask for the same
            if self._stopping.is_set():
                raise ConfigError("the proxy is stopping")
            bound = self._bound.get(address)
            if bound is None:
                wanted = ConfigAddress(address.host, address.port)
                listeners = await self._binder.open(address.slot, wanted)
                bound = self._bound[address] = Bound(listeners)
                self._accept_from(address, bound)
        bound.holders.add(seat.name)
        try:
            return Reply(descriptors=[os.dup(one.socket.fileno()) for one in bound.listeners])
        except OSError as error:
            cause = f"cannot listen on {address.host}:{address.port}: {error.strerror}"
            raise ConfigError(
                f"{cause}; if files ran out, raise LimitNOFILE (ulimit -n)"
            ) from error

    def _accept_from(self, address: Address, bound: Bound) -> None:
        """Accept agents, if it is their listener."""
        for listener in bound.listeners:
            if address.slot == AGENTS_SLOT:
                self._nursery.start_soon(self._agents.accept_from, bound, listener)
            elif address.slot == SOCKETIO_SLOT:
                self._nursery.start_soon(self._accept_socketio, bound, listener)

    async def _accept_socketio(self, bound: Bound, listener: trio.SocketListener) -> None:
        # No deadline: until then, the program before this one has them.
        await self._takes_visitors.wait()
        await self._socketio.accept_from(bound, listener)

    def _unlisten(self, seat: Seat, address: Address) -> None:
        bound = self._bound.get(address)
        if bound is not None:
            bound.holders.discard(seat.name)
            if not bound.holders:
                self._bound.pop(address).close()

    def _reach(self, seat: Seat, wanted: Reach) -> Reply:
        """Connect two workers. Only this makes such connections, so that they need no
        authentication."""
        other = self._seats.get(wanted.node)
        if other is None or other is seat or (link := other.serving_link) is None:
            return Reply()
        kind = socket.SOCK_SEQPACKET if wanted.way == "visitors" else socket.SOCK_STREAM
        one, two = socket.socketpair(type=kind)
        told = msgspec.json.encode(Reach(seat.name, wanted.way))
        try:
            link.tell(REACHED, told, [two.detach()])
        except LinkLost:
            one.close()
            return Reply()
        return Reply(descriptors=[one.detach()])

    # -- what they are told -------------------------------------------------------------------

    def _tell_news(self, node: str) -> None:
        seat = self._seats.get(node)
        if seat is not None and seat.link is not None:
            with contextlib.suppress(LinkLost):
                seat.link.tell(NEWS)

    def _note_change(self, device: str) -> None:
        if self._node is not None:
            self._node.note_change(device)

    def _pass_on(self, events: Sequence[SessionEvent]) -> None:
        """Tell all workers of events of one, and all nodes, if there are others: these number
        them."""
        if self._node is None:
            self._tell_events([self._events.number(event) for event in events])
            return
        for event in events:
            self._node.told.record(event)

    def _tell_of_session(self, device: str) -> None:
        event = self._events.session_of(device)
        if event is not None:
            self._pass_on([event])

    def _take_event(self, number: int, text: str) -> None:
        event = self._events.keep(number, text)
        if event is None:
            self._welcome_all()
        else:
            self._tell_events([event])

    def _restart_events(self, epoch: str, seq: int) -> None:
        self._events.restart(epoch, seq)
        self._welcome_all()

    def _welcome_all(self) -> None:
        welcome = msgspec.json.encode(self._events.welcome())
        for seat in self._seats.values():
            if seat.link is not None:
                with contextlib.suppress(LinkLost):
                    seat.link.tell(WELCOME, welcome)

    def _tell_events(self, events: Sequence[bytes]) -> None:
        for seat in self._seats.values():
            if seat.link is not None:
                with contextlib.suppress(LinkLost):
                    for event in events:
                        seat.link.tell(EVENT, event)

    def _tell_all_of_news(self) -> None:
        """Wake the parent's own tasks: something has changed."""
        self._news.set()
        self._news = trio.Event()
        self._agents.note_change()
        self._socketio.note_change()


class _Ear:
    """Handles the messages of one worker's link."""

    def __init__(self, parent: WorkersParent, seat: Seat) -> None:
        self._parent = parent
        self._seat = seat

    async def answer(self, what: str, body: bytes) -> Reply:
        return await self._parent.answer(self._seat, what, body)

    def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:
        if what == VISITOR:
            self._parent.take_released(body, descriptors)
            return
        close_all(descriptors)  # workers pass no others here
        self._parent.hear(self._seat, what, body)


_OF_THE_PARENT = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
# Variables by which the service manager knows the process that it started.


def worker_names(count: int, node: str = "") -> list[str]:
    """The names of the workers of one proxy; in a cluster they begin with that of its *node*, so
    that none is another node's."""
    prefix = f"{node}~" if node else ""
    return [f"{prefix}worker-{number}" for number in range(1, count + 1)]


def worker_command(arguments: Sequence[str]) -> list[str]:
    """The program that becomes a worker, for the parent's own arguments."""
    return [sys.executable, "-P", "-m", "tunnelmux.cli.worker", *arguments]


def _cause_of(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
