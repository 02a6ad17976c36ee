"""Whether a proxy process is alone, a node of a cluster, or a worker of a proxy on this machine."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tunnelmux.config import ProxyConfig
from tunnelmux.proxy.names import node_name, proxy_identity
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.tunnels.presence import PresenceFile, presence_path
from tunnelmux.proxy.tunnels.registered import ProxyIdentity
from tunnelmux.proxy.visitors.listeners import Binder
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.sessions import EventLog, MemoryStore

if TYPE_CHECKING:
    from tunnelmux.proxy.cluster.node import ClusterNode
    from tunnelmux.proxy.internal import InternalServer
    from tunnelmux.proxy.tunnels.tunnel import TunnelServer
    from tunnelmux.proxy.visitors.ingress_http import HttpIngressServer
    from tunnelmux.proxy.visitors.ingress_tcp import TcpIngressServer
    from tunnelmux.proxy.visitors.listeners import ListenerSet
    from tunnelmux.proxy.workers.hand_over import HandOver
    from tunnelmux.proxy.workers.siblings import Siblings
    from tunnelmux.proxy.workers.upgrade import MakesWay
    from tunnelmux.proxy.workers.worker import Worker

__all__ = ["Surroundings", "surroundings_of"]


@dataclass(kw_only=True)
class Surroundings:
    """The parts of a proxy that depend on it."""

    events: EventLog
    """The events of this process's sessions."""
    all_events: EventLog
    """The events for readers of the internal API: those of other workers and nodes too."""
    store: MemoryStore
    identity: ProxyIdentity
    node: ClusterNode | None = None
    siblings: Siblings | None = None
    binder: Binder = field(default_factory=Binder)
    worker: Worker | None = None

    def connect(
        self,
        listeners: ListenerSet,
        internal: InternalServer,
        nursery: trio.Nursery,
        running: MakesWay,
        tunnel: TunnelServer,
    ) -> None:
        """Let the parent's connections in, if there is a parent; the parts that serve them are
        ready now."""
        self.binder.take_visitor = listeners.serve_released
        if self.worker is None:
            return

        def take_call(connected: socket.socket, name: str) -> None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
            nursery.start_soon(internal.serve_sibling, stream, name)

        internal.others = self.siblings
        self.worker.on_agent = listeners.adopt
        tunnel.tell_left = self.worker.tell_left
        self.worker.on_enrolled, tunnel.tell_enrolled = (
            tunnel.take_enrolled,
            self.worker.tell_enrolled,
        )
        self.worker.on_move = running.move_agents
        self.worker.on_make_way = partial(running.make_way, self.worker.pass_visitor)
        self.worker.on_reached["internal"] = take_call

    def hand_over(
        self,
        listeners: ListenerSet,
        devices: DeviceRegister,
        ways: tuple[HttpIngressServer, TcpIngressServer],
        pump: DataPump | None,
    ) -> HandOver | None:
        """Have visitors who come in by these ways passed to other workers, where there are some.
        What does that has to run."""
        if self.worker is None or pump is None:
            return None
        from tunnelmux.proxy.workers.hand_over import HandOver

        passing = HandOver(
            Router(self.store, devices),
            pump,
            ways[0].visits.figures,
            others=self.worker.others,
            reach=partial(self.worker.reach, way="visitors"),
            serve=listeners.serve_passed,
            listens=listeners.listens,
        )
        self.worker.on_reached["visitors"] = passing.take_from
        for way in ways:
            way.hand_over_by(passing)
        return passing

    def presence_in(self, folder: Path | None, config: ProxyConfig) -> PresenceFile | None:
        """The file of the devices that are online, if there is one."""
        if folder is None:
            return None
        own = self.worker.name if self.worker is not None else ""
        # Devices of another worker, or of an earlier single process, may connect to this worker.
        names = [own, "", *self.worker.others] if self.worker is not None else [own]
        found = [presence_path(folder, config.tunnel.address, name) for name in names]
        paths = [path for path in found if path is not None]
        return PresenceFile(paths[0], self.store, self.events, paths[1:]) if paths else None


def surroundings_of(
    config: ProxyConfig, worker: Worker | None, binder: Binder | None = None
) -> Surroundings:
    """Make the surroundings. Listening sockets come from *binder*, those of a worker from its
    parent. Raises ConfigError when the directory of other nodes cannot be used."""
    internal = config.limits.internal
    expire_after = internal.session_expiry
    if worker is not None:
        # Not at the top, here and below: a proxy that is alone needs none of it.
        from tunnelmux.proxy.cluster.store import ClusterStore
        from tunnelmux.proxy.workers.node import WorkerNode
        from tunnelmux.proxy.workers.siblings import Siblings

        events = EventLog(internal.event_history, on_record=worker.record)
        store = ClusterStore(expire_after=expire_after, events=events)
        siblings = Siblings(worker, config.limits.ingress)
        return Surroundings(
            events=events,
            all_events=worker.events,
            store=store,
            identity=proxy_identity(config, worker.name.rpartition("~")[2]),
            node=WorkerNode(worker, config, store),
            siblings=siblings,
            binder=worker,
            worker=worker,
        )
    if config.cluster is not None:
        from tunnelmux.proxy.cluster.events import ClusterEvents
        from tunnelmux.proxy.cluster.node import RedisNode
        from tunnelmux.proxy.cluster.store import ClusterStore

        all_events = ClusterEvents(internal.event_history)
        events = EventLog(internal.event_history, on_record=all_events.told.record)
        store = ClusterStore(expire_after=expire_after, events=events)
        node = RedisNode(node_name(config), config.cluster, config, store, all_events)
        return Surroundings(
            events=events,
            all_events=all_events.log,
            store=store,
            identity=proxy_identity(config),
            node=node,
            binder=binder or Binder(),
        )
    events = EventLog(internal.event_history)
    return Surroundings(
        events=events,
        all_events=events,
        store=MemoryStore(expire_after=expire_after, events=events),
        identity=proxy_identity(config),
        binder=binder or Binder(),
    )
