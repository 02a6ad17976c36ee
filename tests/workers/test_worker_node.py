"""A worker as a node among others."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from tunnelmux.config import ProxyConfig
from tunnelmux.directory import LocalDirectory, Node, PlaceBook
from tunnelmux.directory.membership import Membership
from tunnelmux.proxy.cluster.store import ClusterStore
from tunnelmux.proxy.workers.node import WorkerNode
from tunnelmux.proxy.workers.worker import Worker
from tunnelmux.sessions import EventLog, OwnHandle

WORKERS = {name: Node(name=name, incarnation="1") for name in ("worker-1", "worker-2")}
MACHINE = {"b": Node(name="b", incarnation="1", address="10.0.0.7:3803")}


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """A worker, whose parent says nothing."""
    ours, theirs = socket.socketpair()
    worker = Worker(theirs, "worker-1", "1", others=list(WORKERS))
    yield worker
    worker._link._lose()
    ours.close()


@pytest.mark.parametrize(
    ("nodes", "has_others"),
    [({}, False), (WORKERS, False), (WORKERS | MACHINE, True)],
    ids=["alone", "other workers", "another machine"],
)
async def test_agents_move_before_it_ends_where_there_is_another_machine(
    worker: Worker, nodes: dict[str, Node], *, has_others: bool
) -> None:
    store = ClusterStore(expire_after=None, events=EventLog(0))
    node = WorkerNode(worker, ProxyConfig(), store)
    assert not node.has_others  # before it is one
    directory = LocalDirectory(PlaceBook(), "worker-1", "1")
    node.server.membership = Membership[OwnHandle](
        directory, WORKERS["worker-1"], lambda _handle, _node: None
    )
    node.server.membership.nodes = nodes
    assert node.has_others is has_others
