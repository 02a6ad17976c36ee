"""The node that all workers of one proxy are together, as other nodes of the cluster see it.

Other nodes know one name, one key and one place of a device, whichever worker has its session; so
what Redis is asked and told does not grow with the number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.directory import Node, Place, PlaceBook, new_incarnation
from tunnelmux.directory.event_stream import EventStream
from tunnelmux.directory.membership import Membership
from tunnelmux.directory.redis import RedisDirectory
from tunnelmux.directory.resp import open_redis
from tunnelmux.observability import get_logger
from tunnelmux.proxy.cluster.events import ToldWhenFound, lost_event
from tunnelmux.proxy.cluster.identity import NodeIdentity

__all__ = ["SharedNode"]

_log = get_logger("proxy.cluster")


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A device with a session at one of the workers, or at several of them by one agent."""

    device: str
    instance: str


class SharedNode:
    """Keeps what the workers' book says of this machine's devices in the cluster's directory, where
    a device has at most *most_places*, and tells the workers of the other nodes. *on_missed* is
    called with a device that the others may have been told lost, though it is here. Raises
    InvalidSetting where the file with the URL of Redis cannot be used."""

    def __init__(
        self,
        name: str,
        settings: ClusterConfig,
        book: PlaceBook,
        stream: EventStream,
        most_places: int,
        on_missed: Callable[[str], None],
    ) -> None:
        self.name = name
        self.identity = NodeIdentity.made_for(name)
        """The key that all workers use."""
        self.told = ToldWhenFound(stream)
        """Tells all nodes of events of this one; its stream runs with this."""
        self._on_missed = on_missed
        self._settings = settings
        self._most_places = most_places
        self._redis_url = settings.read_redis()
        self._book = book
        self._held: dict[str, _Held] = {}
        self._membership: Membership[_Held] | None = None
        self._running = trio.CancelScope()

    async def run(
        self, bound: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Be a node until `leave`, and tell and hear events until cancelled; *bound* is where the
        workers listen for other nodes. Started once Redis has answered, or did not in time."""
        incarnation = new_incarnation(int(time.time() * 1000))
        me = Node(
            name=self.name,
            incarnation=incarnation,
            address=self._settings.address or bound,
            certificate=self.identity.certificate,
            internal_url=next((one.internal_url for one in self._book.nodes), ""),
            agent_url=self._settings.agent_url or "",
            domain=self._settings.failure_domain or "",
        )
        url, ca_file = self._redis_url.reveal(), self._settings.redis_ca
        async with open_redis(url, ca_file) as redis, trio.open_nursery() as nursery:
            await nursery.start(self.told.stream.run, redis)
            directory = RedisDirectory(
                redis,
                self.name,
                incarnation,
                most_places=self._most_places,
                event_history=self.told.stream.history,
            )
            membership = Membership[_Held](
                directory,
                me,
                self._superseded,
                on_missed=lambda held: self._on_missed(held.device),
                lost=lost_event,
            )
            self.told.follow(membership)
            with self._running:
                await self._be_member(membership, task_status)

    async def _be_member(
        self, membership: Membership[_Held], task_status: trio.TaskStatus[None]
    ) -> None:
        me = membership.me
        async with trio.open_nursery() as nursery:
            self._membership = membership
            for device in self._book.devices:
                self.note_change(device)
            await nursery.start(membership.run)
            _log.info("node of a cluster", node=self.name, address=me.address)
            task_status.started()
            while True:  # until it is cancelled
                nodes = membership.nodes
                self._book.take_others({name: nodes[name] for name in nodes if name != me.name})
                await membership.wait_change(math.inf)

    def leave(self) -> None:
        """Leave the cluster: other nodes no longer find devices here. Streams on hops go on."""
        self._running.cancel(reason="the node leaves its cluster")

    def note_change(self, device: str) -> None:
        """The places of the device at the workers may have changed."""
        if self._membership is None:
            return
        places, held = self._book.find(device), self._held.get(device)
        if not places:
            if held is not None:
                del self._held[device]
                self._membership.left(device, held)
        elif held is None or held.instance != places[0].instance:
            held = self._held[device] = _Held(device, places[0].instance)
            self._membership.arrived(device, held.instance, held)

    async def find(self, device: str) -> list[Place]:
        """The device's places on other machines, newest first."""
        return await self._membership.find(device) if self._membership is not None else []

    def _superseded(self, held: _Held, _node: str) -> None:
        if self._held.get(held.device) is held:
            del self._held[held.device]
            self._book.supersede(held.device)
