"""What a proxy is among: alone, one node of several on different machines, or one of the workers of
a proxy on this one."""

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
from tunnelmux.proxy.visitors.figures import VisitorFigures
from tunnelmux.proxy.visitors.listeners import Binder
from tunnelmux.proxy.visitors.routing import Router
from tunnelmux.pump.data_pump import DataPump
from tunnelmux.sessions import EventLog, MemoryStore

if TYPE_CHECKING:
    from tunnelmux.proxy.cluster.node import ClusterNode, RedisNode
    from tunnelmux.proxy.internal import InternalServer
    from tunnelmux.proxy.visitors.listeners import ListenerSet
    from tunnelmux.proxy.workers.hand_over import HandOver
    from tunnelmux.proxy.workers.siblings import Siblings
    from tunnelmux.proxy.workers.worker import Worker

__all__ = ["Surroundings", "surroundings_of"]


@dataclass(kw_only=True)
class Surroundings:
    """What differs by it."""

    events: EventLog
    """What happens to the sessions of this process."""
    all_events: EventLog
    """What readers of the internal API are told: also that of the other workers."""
    store: MemoryStore
    identity: ProxyIdentity
    node: ClusterNode | None = None
    redis_node: RedisNode | None = None
    """The same, where other nodes come in by a listener."""
    siblings: Siblings | None = None
    binder: Binder = field(default_factory=Binder)
    worker: Worker | None = None

    def connect(
        self, listeners: ListenerSet, internal: InternalServer, nursery: trio.Nursery
    ) -> None:
        """Take what comes by way of the parent, where there is one, now that there is something to
        take it."""
        if self.worker is None:
            return

        def take_call(connected: socket.socket, name: str) -> None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
            nursery.start_soon(internal.serve_sibling, stream, name)

        internal.others = self.siblings
        self.worker.on_agent = listeners.adopt
        self.worker.on_reached["internal"] = take_call

    def hand_over(
        self,
        listeners: ListenerSet,
        devices: DeviceRegister,
        pump: DataPump | None,
        figures: VisitorFigures,
    ) -> HandOver | None:
        """What passes visitors to other workers, where there are some."""
        if self.worker is None or pump is None:
            return None
        from tunnelmux.proxy.workers.hand_over import HandOver

        passing = HandOver(
            Router(self.store, devices),
            pump,
            figures,
            reach=partial(self.worker.reach, way="visitors"),
            serve=listeners.serve_passed,
            listens=listeners.listens,
        )
        self.worker.on_reached["visitors"] = passing.take_from
        return passing

    def presence_in(self, folder: Path | None, config: ProxyConfig) -> PresenceFile | None:
        """Where is kept who is online, if anywhere."""
        if folder is None:
            return None
        own = self.worker.name if self.worker is not None else ""
        # Devices of another worker may come to this one, and those of one process before.
        names = [own, "", *self.worker.others] if self.worker is not None else [own]
        found = [presence_path(folder, config.tunnel.address, name) for name in names]
        paths = [path for path in found if path is not None]
        return PresenceFile(paths[0], self.store, self.events, paths[1:]) if paths else None


def surroundings_of(config: ProxyConfig, worker: Worker | None) -> Surroundings:
    """What the proxy is among. Raises ConfigError where the other nodes cannot be looked for."""
    internal = config.limits.internal
    expire_after = internal.session_expiry
    if worker is not None:
        # Not at the top, here and below: who is alone needs nothing of it.
        from tunnelmux.proxy.cluster.store import ClusterStore
        from tunnelmux.proxy.workers.node import WorkerNode
        from tunnelmux.proxy.workers.siblings import Siblings

        events = EventLog(internal.event_history, on_record=worker.record)
        store = ClusterStore(expire_after=expire_after, events=events)
        siblings = Siblings(worker, config.limits.ingress)
        store.device_of_token = siblings.device_of_token
        return Surroundings(
            events=events,
            all_events=worker.events,
            store=store,
            identity=proxy_identity(config, worker.name),
            node=WorkerNode(worker, config, store),
            siblings=siblings,
            binder=worker,
            worker=worker,
        )
    events = EventLog(internal.event_history)
    if config.cluster is not None:
        from tunnelmux.proxy.cluster.node import RedisNode
        from tunnelmux.proxy.cluster.store import ClusterStore

        store = ClusterStore(expire_after=expire_after, events=events)
        node = RedisNode(node_name(config), config.cluster, config, store)
        return Surroundings(
            events=events,
            all_events=events,
            store=store,
            identity=proxy_identity(config),
            node=node,
            redis_node=node,
        )
    return Surroundings(
        events=events,
        all_events=events,
        store=MemoryStore(expire_after=expire_after, events=events),
        identity=proxy_identity(config),
    )
