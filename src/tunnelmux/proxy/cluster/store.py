"""The register of agents of one node: its own sessions, and those of other nodes."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from email.utils import format_datetime

import trio

from tunnelmux.directory.membership import Membership
from tunnelmux.errors import ConnectError, SessionNotFound
from tunnelmux.observability import get_logger
from tunnelmux.proxy.cluster.hops import Hops, ThereHandle
from tunnelmux.sessions import EventLog, MemoryStore, OwnHandle, SessionHandle

__all__ = ["ClusterStore"]

_log = get_logger("proxy.cluster")

_LOOK_AGAIN = 0.25
# Seconds between two look-ups of a device that a caller waits for.

_FORGET = 60.0
# Seconds after which a device that becomes unreachable again counts as newly lost.

_MOST_KNOWN = 10_000
# Devices on other nodes whose place is cached, and sessions there that were named by their token.

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
# What may be the token of a session: other nodes are not asked about anything else.


class ClusterStore(MemoryStore):
    """`find_device` and `reach` include other nodes; all else is about sessions of this node."""

    reaches_others = True

    def __init__(self, *, expire_after: float | None, events: EventLog) -> None:
        super().__init__(expire_after=expire_after, events=events)
        self.membership: Membership[OwnHandle] | None = None
        """Is told when sessions begin and end, once it is set."""
        self.hops: Hops | None = None
        self.is_known: Callable[[str], bool] = lambda _device: True
        """Whether a device of this name exists; if not, other nodes are not asked."""
        self._there: dict[str, ThereHandle] = {}
        self._was_there: dict[str, ThereHandle] = {}
        self._by_foreign_token: dict[str, ThereHandle] = {}
        self._unreachable: dict[str, float] = {}
        self._looking: dict[str, trio.Event] = {}

    async def expect(self, device: str) -> None:
        if self.membership is not None:
            await self.membership.expect(device)

    async def register(self, token: str, handle: OwnHandle) -> None:
        await super().register(token, handle)
        self._there.pop(handle.device, None)
        self._was_there.pop(handle.device, None)
        self._unreachable.pop(handle.device, None)
        if self.membership is not None and not handle.is_closed:
            # An agent that keeps one session has none anywhere else that is newer.
            instance = handle.instance or secrets.token_hex(8)
            self.membership.arrived(handle.device, instance, handle)

    def _remove(self, handle: OwnHandle, *, replaced: bool = False) -> None:
        super()._remove(handle, replaced=replaced)
        if self.membership is not None:
            self.membership.left(handle.device, handle)

    def live_device(self, name: str) -> SessionHandle | None:
        own = super().live_device(name)
        if own is not None:
            return own
        there = self._there.get(name)
        if there is not None and there.is_closed:
            # It was there a moment ago, and its agent dials again: wait for it, as for a device
            # that this node has lost.
            self._was_there[name] = self._there.pop(name)
            if len(self._was_there) > _MOST_KNOWN:
                del self._was_there[next(iter(self._was_there))]
            self._unreachable[name] = trio.current_time()
            there = None
        return there

    async def reach(self, token: str) -> SessionHandle:
        try:
            return await self.lookup(token)
        except SessionNotFound:
            there = await self._reach_elsewhere(token)
            if there is None:
                raise
            return there

    async def _reach_elsewhere(self, token: str) -> ThereHandle | None:
        known = self._by_foreign_token.pop(token, None)
        if known is None or known.is_closed:
            if self.hops is None or self.membership is None or not _TOKEN.fullmatch(token):
                return None
            known = await self.hops.reach_session(token, self.membership.others)
        if known is not None:
            self._by_foreign_token[token] = known
            if len(self._by_foreign_token) > _MOST_KNOWN:
                del self._by_foreign_token[next(iter(self._by_foreign_token))]
        return known

    async def find_device(self, name: str) -> SessionHandle | None:
        while (handle := self.live_device(name)) is None:
            if self.hops is None or self.membership is None or not self.is_known(name):
                return None
            if (looking := self._looking.get(name)) is not None:
                await looking.wait()  # bounded, because each question to a node is
                continue
            looking = self._looking[name] = trio.Event()
            try:
                return await self._look(self.membership, self.hops, name)
            finally:
                del self._looking[name]
                looking.set()
        return handle

    async def wait_for_device(self, name: str, until: float) -> SessionHandle | None:
        while True:
            # An arrival on this node is noticed at once, one on another node by the next look-up.
            soon = min(until, trio.current_time() + _LOOK_AGAIN)
            handle = await super().wait_for_device(name, soon)
            if handle is not None or trio.current_time() >= until:
                return handle

    def last_seen(self, name: str) -> datetime | None:
        there = self._there.get(name) or self._was_there.get(name)
        seen = [super().last_seen(name), there.last_seen if there is not None else None]
        return max(filter(None, seen), default=None)

    def offline_reason(self, name: str) -> str:
        there = self._was_there.get(name)
        if there is None or there.last_seen != self.last_seen(name):
            return super().offline_reason(name)
        members = self.membership
        gone_at = members.gone.get(there.node) if members is not None else None
        if gone_at is None:
            return ""
        when = format_datetime(gone_at, usegmt=True)
        return f"node {there.node}, which had it, is gone since {when}"

    def lost_at(self, name: str) -> float | None:
        own, there = super().lost_at(name), self._unreachable.get(name)
        if there is None or (own is not None and own > there):
            return own
        return there

    def forget_device(self, name: str) -> None:
        super().forget_device(name)
        self._there.pop(name, None)
        self._was_there.pop(name, None)
        self._unreachable.pop(name, None)

    async def _look(
        self, membership: Membership[OwnHandle], hops: Hops, name: str
    ) -> SessionHandle | None:
        places = hops.nearest_first(await membership.find(name))
        for place in places:
            try:
                there = await hops.reach(name, place)
            except ConnectError as error:
                _log.info("device not reached", device=name, node=place.node, cause=str(error))
                continue
            if there is not None:
                return self._note_there(name, there)
        # What the directory knows counts, as a node that it does not know may be far behind.
        if (there := await hops.reach_silent(name)) is not None:
            return self._note_there(name, there)
        if places:
            now = trio.current_time()
            if self._unreachable.get(name, -math.inf) < now - _FORGET:
                self._unreachable[name] = now
        return super().live_device(name)

    def _note_there(self, name: str, there: ThereHandle) -> ThereHandle:
        self._unreachable.pop(name, None)
        self._was_there.pop(name, None)
        self._there[name] = there
        if len(self._there) > _MOST_KNOWN:
            del self._there[next(iter(self._there))]
        return there
