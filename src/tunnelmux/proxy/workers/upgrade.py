"""One program of a proxy makes way for the next, and no visitor notices.

The one that runs starts the other and gives it copies of its listening sockets over a `Link`. The
other one takes agents first: each agent makes a session with it and keeps the old one. Only when
that is done it takes visitors, and the first one lets its own finish. Where the other does not come
to serve, the first one goes on as if nothing had been.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

from tunnelmux.config import Address as ConfigAddress
from tunnelmux.errors import ConfigError
from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.listeners import Binder, listeners_of
from tunnelmux.proxy.workers.link import Link, LinkLost, Reply, close_all
from tunnelmux.proxy.workers.words import LISTEN, READY, TAKES_AGENTS, VISITOR, Address, Visitor

__all__ = ["MakesWay", "NextProgram", "PassVisitor", "Predecessor", "start_successor"]

_log = get_logger("proxy.upgrade")

_OF_THE_FIRST = frozenset({"WATCHDOG_PID"})
# Variables that name the process which the service manager started.

_KILL_AFTER = 5.0
# Seconds that a program which is not wanted any more has to end.


@dataclass(frozen=True, slots=True)
class NextProgram:
    """The program that serves now."""

    pid: int
    link: Link

    async def flush(self) -> None:
        """Return when all visitors that it is to serve are on their way to it."""
        await self.link.flush()


PassVisitor = Callable[[str, int, str], bool]
"""Gives a visitor's connection (slot, descriptor, address) to the next program, which closes it."""


class MakesWay(Protocol):
    """A running proxy that another program can follow."""

    def sockets_at(self, slot: str, address: ConfigAddress) -> list[int]:
        """Copies of the sockets that listen there for that slot; none where nothing does."""

    async def move_agents(self) -> None:
        """Accept no more agents, and have those that are here make sessions with the next
        program."""

    def keep_agents(self) -> None:
        """Accept agents again: the next program has failed."""

    async def make_way(self, pass_visitor: PassVisitor) -> None:
        """The next program serves: what both share is its own now. Accept nothing more, and give it
        the visitors who are between two requests. A drain follows."""


async def start_successor(
    running: MakesWay, command: Sequence[str], environ: Mapping[str, str], nursery: trio.Nursery
) -> NextProgram:
    """Start the next program by *command*, with a descriptor behind it, and return once it serves.
    Raises ConfigError, with everything as before, when it does not come to that.
    *nursery* owns what visitors go by from then on. The caller bounds the wait by cancelling."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await trio.lowlevel.open_process(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in environ.items() if name not in _OF_THE_FIRST},
            )
        except OSError as error:
            ours.close()
            raise ConfigError(f"the new program could not be started: {error.strerror}") from error
    desk = _Desk(running)
    link = Link(ours, desk)

    def pass_visitor(slot: str, descriptor: int, remote: str) -> bool:
        with suppress(LinkLost):
            link.tell(VISITOR, msgspec.json.encode(Visitor(slot, remote)), [descriptor])
            return True
        return False

    serves = False
    try:
        await nursery.start(_carry, link, desk)
        await desk.settled.wait()
        serves = desk.serves
    finally:
        if not serves:
            with trio.CancelScope(shield=True):
                await _end(process)
            if desk.takes_agents:
                running.keep_agents()
    if not serves:
        raise ConfigError(f"the new program ended ({process.returncode}): its last lines say why")
    await running.make_way(pass_visitor)
    return NextProgram(process.pid, link)


async def _carry(
    link: Link, desk: _Desk, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    try:
        await link.run()
    finally:
        desk.settled.set()


async def _end(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with trio.move_on_after(_KILL_AFTER):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


class _Desk:
    """What the first program does for the next."""

    def __init__(self, running: MakesWay) -> None:
        self.settled = trio.Event()
        """Set when the next program serves, or has ended."""
        self.serves = False
        self.takes_agents = False
        self._running = running

    async def answer(self, what: str, body: bytes) -> Reply:
        if what == LISTEN:
            wanted = msgspec.json.decode(body, type=Address)
            address = ConfigAddress(wanted.host, wanted.port)
            return Reply(descriptors=self._running.sockets_at(wanted.slot, address))
        if what == TAKES_AGENTS:
            self.takes_agents = True
            await self._running.move_agents()
            return Reply()
        raise ConfigError(f"there is no {what}")

    def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:  # noqa: ARG002
        close_all(descriptors)
        if what == READY:
            self.serves = True
            self.settled.set()


class Predecessor(Binder):
    """The program before this one, as this one sees it: where its listening sockets come from.
    `run` has to run all the while."""

    def __init__(self, connected: socket.socket) -> None:
        self._link = Link(connected, self)

    async def run(self) -> None:
        """Carry messages until that program has ended."""
        with suppress(LinkLost):
            await self._link.run()

    async def open(self, slot: str, address: ConfigAddress) -> list[trio.SocketListener]:
        wanted = msgspec.json.encode(Address(slot, address.host, address.port))
        with suppress(LinkLost):
            reply = await self._link.call(LISTEN, wanted)
            if reply.descriptors:
                return listeners_of(reply.descriptors)
        return await super().open(slot, address)

    async def takes_agents(self) -> None:
        with suppress(LinkLost):  # then they dial anyway
            await self._link.call(TAKES_AGENTS)

    def serves(self) -> None:
        """Tell it that this program serves."""
        with suppress(LinkLost):
            self._link.tell(READY)

    async def answer(self, what: str, body: bytes) -> Reply:  # noqa: ARG002  as any owner of a link
        """Answer a call; raises ConfigError."""
        raise ConfigError(f"there is no {what}")

    def hear(self, what: str, body: bytes, descriptors: Sequence[int]) -> None:
        """Take what the program before this one tells."""
        if what != VISITOR or self.take_visitor is None:
            close_all(descriptors)
            return
        from tunnelmux.pump.sockets import adopted

        told = msgspec.json.decode(body, type=Visitor)
        for descriptor in descriptors:
            self.take_visitor(told.slot, adopted(descriptor), told.remote)
