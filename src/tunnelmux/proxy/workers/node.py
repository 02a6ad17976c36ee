"""A worker as a node: the parent keeps its directory, and hops are pairs of sockets."""

from __future__ import annotations

import socket
from functools import partial
from typing import NoReturn

import trio

from tunnelmux.config import Address, ProxyConfig
from tunnelmux.directory import Node
from tunnelmux.observability import get_logger
from tunnelmux.proxy.cluster.doors import HopDoors
from tunnelmux.proxy.cluster.identity import NodeIdentity
from tunnelmux.proxy.cluster.node import ClusterNode
from tunnelmux.proxy.cluster.server import is_worker
from tunnelmux.proxy.cluster.store import ClusterStore
from tunnelmux.proxy.workers.worker import Worker

__all__ = ["WorkerNode"]

_log = get_logger("proxy.workers")


class WorkerNode(ClusterNode):
    """One worker among those of its parent."""

    def __init__(self, worker: Worker, config: ProxyConfig, store: ClusterStore) -> None:
        super().__init__(worker.name, config, store)
        self._worker = worker
        if config.cluster is not None:
            self.doors = HopDoors(None, self.server, config.limits.ingress)

    @property
    def has_others(self) -> bool:
        membership = self.server.membership
        nodes = membership.nodes.values() if membership is not None else ()
        return not all(map(is_worker, nodes))  # all workers of this machine end together

    async def run(
        self,
        bound: Address | None,  # noqa: ARG002  the parent connects workers
        internal_url: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        worker = self._worker
        if self.doors is not None:
            self.doors.identity = NodeIdentity(await worker.node_key())
        me = Node(
            name=self.name,
            incarnation=worker.incarnation,
            internal_url=internal_url,
            domain=self.domain,
        )
        async with trio.open_nursery() as nursery:
            worker.on_reached["hop"] = partial(self._take_hop, nursery)
            await self.be_node(me, worker.directory, self._dial, task_status)
        raise AssertionError  # it is a node until it is cancelled

    async def _dial(self, node: Node) -> trio.abc.Stream:
        if self.doors is None or is_worker(node):
            return await self._worker.dial(node)
        return await self.doors.dial(node)

    def _take_hop(self, nursery: trio.Nursery, connected: socket.socket, name: str) -> None:
        nursery.start_soon(self._serve_hop, connected, name)

    async def _serve_hop(self, connected: socket.socket, name: str) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        try:
            await self.server.serve(stream, name, name, from_worker=True)
        except Exception:  # noqa: BLE001  a bug met by one hop must not end the worker
            _log.exception("unhandled error in hop", node=name)
        finally:
            await trio.aclose_forcefully(stream)
