"""This proxy as a node of a cluster: its membership, its hops, and its store."""

from __future__ import annotations

import abc
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn

import trio

from tunnelmux.config import Address, ProxyConfig
from tunnelmux.config.cluster import ClusterConfig
from tunnelmux.config.process import LimitsConfig
from tunnelmux.directory import Directory, Node, new_incarnation
from tunnelmux.directory.membership import Membership
from tunnelmux.directory.redis import RedisDirectory
from tunnelmux.directory.resp import open_redis
from tunnelmux.limits import INITIAL_WINDOW, Limits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.cluster.doors import HopDoors
from tunnelmux.proxy.cluster.events import ClusterEvents, ToldWhenFound, lost_event
from tunnelmux.proxy.cluster.hops import Hops
from tunnelmux.proxy.cluster.identity import NodeIdentity
from tunnelmux.proxy.cluster.server import HopServer
from tunnelmux.proxy.cluster.store import ClusterStore
from tunnelmux.proxy.names import node_name
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.sessions import OwnHandle
from tunnelmux.wire import MOST_NODES, AgentNode

__all__ = ["ClusterNode", "RedisNode", "hop_limits"]

_log = get_logger("proxy.cluster")

_TIDY = 5.0
# Seconds between two searches for sessions to nodes that have left.

_MOST_STRAY_FRAMES = sys.maxsize
# No bound: a device decides how many frames its bytes come in, and they are passed on in as many.
# Those to visitors who have left must not end the hop of all. The node itself is authenticated.

_LEAST_SESSIONS = 2
# Where a device may have fewer, agents are told of no other node.


def hop_limits(limits: LimitsConfig) -> Limits:
    """The limits of a session between two nodes, which has the streams of many devices."""
    session, streams = limits.session, limits.ingress.max_hop_streams
    return replace(
        session,
        max_streams=streams,
        # All that the protocol grants: readers of one device that have stopped reset no other's
        # stream. Each device's own session is bounded.
        max_unread_bytes=max(session.max_unread_bytes, streams * INITIAL_WINDOW),
        keepalive_interval=min(session.keepalive_interval, 2.0),
        keepalive_timeout=min(session.keepalive_timeout, 2.0),
        max_stray_frames=_MOST_STRAY_FRAMES,
    )


class ClusterNode(abc.ABC):
    """Made with the proxy, run when its listeners are open. What is the same for all kinds of
    nodes: membership, hops, and what is superseded."""

    def __init__(self, name: str, config: ProxyConfig, store: ClusterStore) -> None:
        self.name = name
        self.pump: DataPump | None = None
        self.membership: Membership[OwnHandle] | None = None
        """Set while it is a node."""
        self.node_name = node_name(config) if config.cluster is not None else ""
        """The name of the node that other nodes and agents know, of which this may be a worker."""
        self._cluster = config.cluster
        self.domain = (config.cluster.failure_domain or "") if config.cluster is not None else ""
        """Its failure domain; empty where that is not known."""
        self._most_sessions = config.limits.ingress.max_device_sessions
        self._event_history = config.limits.internal.event_history
        self._store = store
        self._http_limits = config.limits.ingress
        self._limits = hop_limits(config.limits)
        self.server = HopServer(self._limits, self._http_limits)
        self.doors: HopDoors | None = None
        """Lets nodes of other machines in, if there can be any."""
        self._told: ToldWhenFound | None = None
        self._running = trio.CancelScope()

    def nodes_told(self) -> list[AgentNode]:
        """The nodes for an agent of this one that keeps several sessions, this one first; empty
        where agents keep one."""
        members, cluster = self.membership, self._cluster
        if members is None or cluster is None or self._most_sessions < _LEAST_SESSIONS:
            return []
        domain = self.domain
        known = members.nodes.values()
        others = [node for node in known if node.agent_url and node.name != self.node_name]
        # Each agent gets another selection, so that second sessions spread over all nodes.
        random.shuffle(others)
        others.sort(key=lambda node: node.domain == domain)
        told = [AgentNode(self.node_name, cluster.agent_url or "", domain, is_here=True)]
        told += [AgentNode(node.name, node.agent_url, node.domain) for node in others]
        return told[:MOST_NODES]

    async def wait_joined(self) -> None:
        """Return when there may be more in `nodes_told` than before."""
        members = self.membership
        assert members is not None  # it runs
        before = {(node.name, node.agent_url) for node in members.nodes.values()}
        while True:  # until another one has joined
            await members.wait_change(math.inf)
            nodes = {(node.name, node.agent_url) for node in members.nodes.values()}
            if nodes - before:
                return
            before = nodes

    def look_only_for(self, is_known: Callable[[str], bool]) -> None:
        """Ask other nodes only about devices of these names."""
        self._store.is_known = is_known

    @property
    def has_others(self) -> bool:
        """Whether agents can go on at another node of the cluster when this one ends."""
        return False

    def leave(self) -> None:
        """Leave the cluster: other nodes no longer find devices here. Streams on hops go on."""
        self.server.has_left = True
        self._running.cancel(reason="the node leaves its cluster")

    @abc.abstractmethod
    async def run(
        self,
        bound: Address | None,
        internal_url: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Be a node until cancelled; *bound* is where other nodes come in, if they come by a
        listener, and *internal_url* where back ends call it."""

    async def be_node(
        self,
        me: Node,
        directory: Directory,
        dial: Callable[[Node], Awaitable[trio.abc.Stream]],
        task_status: trio.TaskStatus[None],
    ) -> NoReturn:
        """Be *me* in that directory; *dial* connects to another node, or raises ConnectError."""
        async with trio.open_nursery() as nursery:
            membership = self._member(directory, me, nursery)
            self.membership = self.server.membership = self._store.membership = membership
            self.server.pump = self.pump
            self.server.lookup = self._store.lookup
            self._store.hops = self.server.hops = hops = Hops(
                membership, dial, self._limits, self._http_limits, lambda: self.pump, nursery
            )
            await nursery.start(self._be_member, membership)
            _log.info("node of a cluster", node=self.name, address=me.address)
            task_status.started()
            while True:  # until the proxy ends
                await trio.sleep(_TIDY)
                hops.tidy()
        raise AssertionError  # the loop above does not end

    def _member(
        self, directory: Directory, me: Node, nursery: trio.Nursery
    ) -> Membership[OwnHandle]:
        supersede = partial(self._supersede, nursery)
        if self._told is None:
            return Membership(directory, me, supersede)
        told = self._told
        members = Membership(directory, me, supersede, on_missed=told.still_here, lost=lost_event)
        told.follow(members)
        return members

    async def _be_member(
        self,
        membership: Membership[OwnHandle],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with self._running:
            await membership.run(task_status)

    @staticmethod
    def _supersede(nursery: trio.Nursery, handle: OwnHandle, node: str) -> None:
        where = f"node {node}" if node else "another node"
        nursery.start_soon(handle.make_way, where)


class RedisNode(ClusterNode):
    """One proxy of several that find each other in Redis. Raises InvalidSetting where the file with
    its URL cannot be used."""

    def __init__(
        self,
        name: str,
        settings: ClusterConfig,
        config: ProxyConfig,
        store: ClusterStore,
        events: ClusterEvents,
    ) -> None:
        super().__init__(name, config, store)
        self._stream, self._told = events.stream, events.told
        self._settings = settings
        self._redis_url = settings.read_redis()
        self._identity = NodeIdentity.made_for(self.name)
        self._doors = self.doors = HopDoors(self._identity, self.server, config.limits.ingress)

    @property
    def has_others(self) -> bool:
        membership = self.server.membership
        return membership is not None and len(membership.nodes) > 1

    async def run(
        self,
        bound: Address | None,
        internal_url: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        address = self._settings.address or str(bound)
        incarnation = new_incarnation(int(time.time() * 1000))
        me = Node(
            name=self.name,
            incarnation=incarnation,
            address=address,
            certificate=self._identity.certificate,
            internal_url=internal_url,
            agent_url=self._settings.agent_url or "",
            domain=self.domain,
        )
        url, ca_file = self._redis_url.reveal(), self._settings.redis_ca
        async with open_redis(url, ca_file) as redis, trio.open_nursery() as nursery:
            directory = RedisDirectory(
                redis,
                self.name,
                incarnation,
                most_places=self._most_sessions,
                event_history=self._event_history,
            )
            await nursery.start(self._stream.run, redis)
            await self.be_node(me, directory, self._doors.dial, task_status)
        raise AssertionError  # it is a node until it is cancelled
