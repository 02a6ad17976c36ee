"""The interface that every directory implements."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import trio

from tunnelmux.directory.places import (
    Beat,
    Claim,
    Heard,
    Held,
    Node,
    Place,
    Swept,
)

__all__ = ["Directory"]


class Directory(abc.ABC):
    """Where devices are connected: one node's view of the cluster, and its way to publish its
    sessions.

    A device has at most one place on each node, and all its places are of one start of its agent
    (*instance*). Generations grow with each claim, even when the directory has lost its data. A
    removal names its generation, so a late one removes nothing newer. A node that sends no beat for
    `LEASE` seconds is dead, and its places are not found any more. One that ends says so (`leave`),
    and tells of its sessions' ends itself; of those that died a sweep tells.

    Every call raises DirectoryAway when no answer came in time; the operation may have been carried
    out all the same. Calls may run concurrently, and be cancelled.
    """

    @abc.abstractmethod
    async def claim(self, device: str, instance: str, least: int = 0) -> Claim:
        """This node has a new session of the device. Its generation is higher than all that the
        directory knows, and than *least*. Places of other instances, and the older one on this
        node, are superseded at once, and their nodes told with their next beat. Places on dead
        nodes are removed: the device is not lost."""

    async def expect(self, device: str) -> None:  # noqa: B027  most need not do anything
        """A session of the device begins here in a moment: a look-up may wait for it. Where the
        others are machines, that is not worth its cost."""

    @abc.abstractmethod
    async def release(self, device: str, generation: int) -> bool:
        """This node's session of that generation has ended. True if the directory still had it."""

    @abc.abstractmethod
    async def find(self, device: str) -> list[Place]:
        """Where the device has sessions, newest first, on nodes that are not known to be dead."""

    @abc.abstractmethod
    async def beat(self, me: Node, heard: Heard) -> Beat:
        """Report that this node lives. Returns what happened since *heard*.

        Raises NodeNameTaken while a process that started later uses the same name.
        """

    async def wait_news(self, seconds: float) -> None:
        """Return when the next beat is due: after *seconds*, or when it would tell something new,
        where that is noticed."""
        await trio.sleep(seconds)

    @abc.abstractmethod
    async def republish(
        self, held: Sequence[Held], missed: Callable[[Sequence[str]], None] = lambda _devices: None
    ) -> None:
        """Publish all sessions of this node with their generations. Where a newer session is of
        another instance, this node's counts as superseded: its next beat says so. *missed* is
        called with devices that had no place any more, so that they may have been told lost, and
        with those of a call that was not answered.
        """

    @abc.abstractmethod
    async def sweep(self, lost: str = "") -> Swept:
        """Remove the places of dead nodes. Where it was a device's last one, and its node has not
        left but died, all nodes are told of the event *lost* in the same moment: JSON in which
        `{device}`, `{node}` and `{seconds}` (since its last beat) are replaced. Places of a node
        that died just now stay for another sweep. One node calls it now and then; when several do,
        each device is told lost once."""

    @abc.abstractmethod
    async def leave(self) -> None:
        """This node shuts down: its places are not found from now on."""
