"""What agents learn of other nodes of the cluster, on which they keep a second session."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from tunnelmux.http.refusal import Refusal, Refused
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.proxy.tunnels.moving import post_to_agents
from tunnelmux.sessions import LocalHandle
from tunnelmux.transports import UpgradeRequest
from tunnelmux.wire import (
    BESIDE_FIELD,
    INSTANCE_FIELD,
    NODES_PATH,
    SESSIONS_FIELD,
    AgentNode,
    list_nodes,
    read_instance,
)

__all__ = ["Neighbours", "instance_of", "refuse_double", "tell_of_nodes"]

_log = get_logger("proxy.tunnel")

_SEVERAL = re.compile(r"[2-9]|[1-9][0-9]")

_TIMEOUT = 15.0
# Seconds for all agents to be told. Who was not learns it with its next session.


class Neighbours(Protocol):
    """This proxy as a node of its cluster."""

    node_name: str
    """Its own name there."""

    def nodes_told(self) -> list[AgentNode]:
        """The nodes for an agent of this one that keeps several sessions, this one first; empty
        where agents keep one."""

    async def wait_joined(self) -> None:
        """Return when there may be more of them than before."""


def instance_of(request: UpgradeRequest) -> str:
    """The name of the agent's process, if it keeps several sessions; else empty."""
    if not _SEVERAL.fullmatch(request.header(SESSIONS_FIELD.decode("ascii")) or ""):
        return ""
    return read_instance(request.header(INSTANCE_FIELD.decode("ascii")))


def refuse_double(request: UpgradeRequest, neighbours: Neighbours | None) -> None:
    """Raises Refused where the agent wants a session beside one that it has on this same node: it
    would replace that. A proxy that is alone is no second one."""
    beside = request.header(BESIDE_FIELD.decode("ascii"))
    if beside is None:
        return
    if neighbours is None:
        message = "this proxy is alone, and you have a session with another one"
    elif neighbours.node_name in {name.strip() for name in beside.split(",")}:
        message = f"you have a session with this node, {neighbours.node_name}, already"
    else:
        return
    raise Refused(Refusal(409, "already-here", message))


async def tell_of_nodes(
    neighbours: Neighbours,
    sessions: Callable[[], Sequence[LocalHandle]],
    limits: Callable[[], IngressLimits],
) -> NoReturn:
    """Tell the agents that keep several sessions of nodes that join: those that came before have
    nowhere to make a second session. Until cancelled."""
    while True:
        await neighbours.wait_joined()
        several = [handle for handle in sessions() if handle.instance]
        if several and neighbours.nodes_told():
            told = await post_to_agents(
                several,
                NODES_PATH,
                limits(),
                _TIMEOUT,
                body=lambda: list_nodes(neighbours.nodes_told()),
            )
            _log.info("agents told of nodes", count=told, left=len(several) - told)
