"""The nodes of the proxy's cluster, as this agent was told of them, and which of them to dial."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.wire import AgentNode, read_nodes

__all__ = ["KnownNodes"]

_log = get_logger("agent")


class KnownNodes:
    """What the agent was told last."""

    def __init__(self) -> None:
        self._nodes: dict[str, AgentNode] = {}
        self._failed: set[str] = set()
        self._left_out = RepeatedLines("node not dialled")

    def learn(self, value: str, objection: Callable[[str], str | None]) -> str:
        """Take what the proxy has told; empty for one that is alone. `objection` says why the URL
        of a node must not be dialled. Returns the name of the node that told it."""
        told = read_nodes(value)
        self._nodes = {}
        for node in told:
            cause = objection(node.url) if node.url else None
            if cause is not None and not node.is_here and self._left_out.may_write(node.name):
                _log.warning(
                    "node not dialled",
                    node=node.name,
                    cause=cause,
                    fix="correct [cluster] agent_url in the proxy.toml of that node",
                )
            self._nodes[node.name] = node._replace(url="") if cause is not None else node
        self._failed &= self._nodes.keys()
        return next((node.name for node in told if node.is_here), "")

    def choose(self, held: Collection[str]) -> AgentNode | None:
        """The node for one more session beside those that are held; None where there is none.

        One in a domain without a session comes before others, and one that was not tried in vain
        before one that was.
        """
        found = [node for node in self._nodes.values() if node.url and node.name not in held]
        if all(node.name in self._failed for node in found):
            self._failed.clear()
        domains = {node.domain for node in self._nodes.values() if node.name in held}
        return min(
            found,
            key=lambda node: (node.name in self._failed, node.domain in domains - {""}),
            default=None,
        )

    def is_left(self, held: Collection[str]) -> bool:
        """Whether there is a node beside those that are held that was not tried in vain."""
        return any(
            node.url and node.name not in held and node.name not in self._failed
            for node in self._nodes.values()
        )

    def try_all(self) -> None:
        """Count none as tried in vain any more: one of them has joined."""
        self._failed.clear()

    def failed(self, name: str) -> None:
        """This node was dialled in vain."""
        self._failed.add(name)
