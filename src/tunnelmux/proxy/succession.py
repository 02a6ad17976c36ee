"""What a running proxy does for the program that follows it (see `workers.upgrade`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from tunnelmux.config import Address
from tunnelmux.proxy.tunnels.moving import move_agents
from tunnelmux.proxy.tunnels.presence import PresenceFile
from tunnelmux.proxy.tunnels.registered import RegisteredDevices
from tunnelmux.proxy.tunnels.tunnel import TunnelServer
from tunnelmux.proxy.visitors.ingress_http import HttpIngressServer
from tunnelmux.proxy.visitors.listeners import ListenerSet
from tunnelmux.sessions import LocalHandle

if TYPE_CHECKING:
    from tunnelmux.proxy.cluster.node import ClusterNode
    from tunnelmux.proxy.workers.upgrade import PassVisitor

__all__ = ["AGENTS_FIRST", "Succession"]

AGENTS_FIRST = frozenset({"tunnel", "cluster"})
"""The listeners that accept from the start; the others do when agents are there."""

_SPREAD = 3.2
# Seconds over which many agents are told to go: they knock at the nodes that stay, one after the
# other, instead of all at once.

_MANY = 100
# Sessions from which on it takes that long.

_LINGER = 1.0
# Seconds that this process stays once the next program serves.


class Succession:
    """Made of the parts of one proxy that has begun to listen."""

    def __init__(
        self,
        listeners: Sequence[ListenerSet],
        http: HttpIngressServer,
        tunnel: TunnelServer,
        presence: PresenceFile | None,
        registered: RegisteredDevices | None,
    ) -> None:
        self._until = -math.inf
        self._has_others = False
        self._listeners = listeners
        self._http = http
        self._presence = presence
        self._registered = registered
        self._tunnel = tunnel

    @property
    def is_followed(self) -> bool:
        """Whether the next program serves."""
        return self._until > -math.inf

    @property
    def is_awaited(self) -> bool:
        """Whether visitors of other workers may be on their way to devices of this one."""
        return trio.current_time() < self._until

    def sockets_at(self, slot: str, address: Address) -> list[int]:
        """Copies of the sockets that listen there for that slot, for the next program."""
        found = (listeners.sockets_at(slot, address) for listeners in self._listeners)
        return next(filter(None, found), [])

    async def move_agents(self) -> None:
        """Accept no more agents; those that are here make sessions with the next program."""
        for listeners in self._listeners:
            listeners.pause_slot("tunnel")
        if self._presence is not None:
            await self._presence.finish()
        await move_agents(self._tunnel.sessions, self._tunnel.settings.ingress)

    async def leave(self, cluster: ClusterNode, until: float) -> None:
        """Leave the cluster. Agents make their next session at another node, if there is one, while
        visitors go on here; *until* then (`trio.current_time()`) at the latest.
        """
        self._has_others = cluster.has_others
        cluster.leave()
        if self._has_others:
            with trio.move_on_at(until):
                await self.move_agents()

    async def send_away(self, sessions: Sequence[LocalHandle], until: float) -> None:
        """Tell these agents to go, *until* then (`trio.current_time()`) at the latest: one after
        the other where they go to other nodes. Those that have moved notice nothing."""
        pause = _SPREAD / max(len(sessions), _MANY)
        for handle in sessions:
            handle.session.go_away()
            if self._has_others and trio.current_time() < until:
                await trio.sleep(pause)

    def keep_agents(self) -> None:
        """Accept agents again: the next program has failed."""
        for listeners in self._listeners:
            listeners.resume_slot("tunnel")
        if self._presence is not None:
            self._presence.go_on()

    async def make_way(self, pass_visitor: PassVisitor) -> None:
        """The next program serves: it has the files and the place in the registry from now on.
        Nothing is accepted here any more, and visitors who are between two requests go to it. The
        agents' sessions stay for those who are within one, until a drain."""
        self._until = trio.current_time() + _LINGER
        for listeners in self._listeners:
            listeners.give_up(pass_visitor)
        self._http.pass_visitors(pass_visitor)
        self._http.drain()
        if self._registered is not None:
            self._registered.is_followed = True
