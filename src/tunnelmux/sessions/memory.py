"""The store of one process."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import trio

from tunnelmux.errors import SessionExpired, SessionNotFound
from tunnelmux.sessions.events import EventLog
from tunnelmux.sessions.handle import OwnHandle, SessionHandle, utc_now
from tunnelmux.sessions.store import DeviceStore
from tunnelmux.sessions.summary import Presence, SessionSummary

__all__ = ["MemoryStore"]


@dataclass(frozen=True, slots=True)
class _Lost:
    """What the store keeps of a device whose session ended."""

    at: float
    last_seen: datetime
    reason: str
    is_awaited_until: float = -math.inf
    """Until when it counts as online, because it was online when the previous process ended."""


class MemoryStore(DeviceStore):
    """Sessions of this process, in two dictionaries that always hold the same handles.

    Only `wait_for_device` and the closing of handles are checkpoints: no other task runs inside the
    rest, so no reader ever sees two sessions of one device, or none while one replaces another.
    What is kept of lost devices is bounded by the devices that may connect; `forget_device` drops
    one.

    `expire_after` is how long (s) a session may be silent before `lookup` calls it expired; None is
    for ever. Session events are recorded in `events`, if it is given.
    """

    def __init__(
        self,
        *,
        expire_after: float | None = None,
        events: EventLog | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.expire_after = expire_after
        self._events = events
        self._clock = clock
        self._by_token: dict[str, OwnHandle] = {}
        self._by_device: dict[str, OwnHandle] = {}
        self._lost: dict[str, _Lost] = {}
        self._arrivals: dict[str, trio.Event] = {}

    async def register(self, token: str, handle: OwnHandle) -> None:
        old = {
            id(h): h
            for h in (self._by_token.get(token), self._by_device.get(handle.device))
            if h is not None and h is not handle
        }
        replaces = False
        for stale in old.values():
            replaces |= stale.device == handle.device and not stale.is_closed
            # A different device had this token: its session is not replaced, it has ended.
            self._remove(stale, replaced=stale.device == handle.device)
        self._by_token[token] = handle
        self._by_device[handle.device] = handle
        self._lost.pop(handle.device, None)
        if self._events is not None:
            if replaces:
                self._events.record("replaced", handle.summary(), "the device connected again")
            else:
                self._events.record("connected", handle.summary())
        if (arrival := self._arrivals.pop(handle.device, None)) is not None:
            arrival.set()
        for stale in old.values():
            await stale.make_way(handle.summary().remote_addr)

    async def unregister(self, token: str, handle: SessionHandle | None = None) -> None:
        found = self._by_token.get(token)
        if found is not None and (handle is None or found is handle):
            self._remove(found)

    async def lookup(self, token: str) -> OwnHandle:
        handle = self._alive(self._by_token.get(token))
        if handle is None:
            raise SessionNotFound("no live session has this token")
        if self.expire_after is not None and self._silence(handle) > self.expire_after:
            raise SessionExpired(
                f"the session of device {handle.device!r} was silent for more than "
                f"{self.expire_after:g} s"
            )
        return handle

    async def exists(self, token: str) -> bool:
        try:
            await self.lookup(token)
        except (SessionNotFound, SessionExpired):
            return False
        return True

    async def list(self) -> builtins.list[SessionSummary]:
        handles = [h for h in self._by_device.values() if not h.is_closed]
        return [h.summary() for h in sorted(handles, key=lambda h: h.device)]

    async def heartbeat(self, token: str) -> None:
        handle = self._alive(self._by_token.get(token))
        if handle is None:
            raise SessionNotFound("no live session has this token")
        handle.record_heartbeat(self._clock())

    async def cleanup_expired(self, expire_after: float) -> int:
        silent = [h for h in self._by_device.values() if self._silence(h) > expire_after]
        for handle in silent:
            await handle.close(f"it was silent for more than {expire_after:g} s")
            self._remove(handle)
        return len(silent)

    async def find_device(self, name: str) -> SessionHandle | None:
        return self.live_device(name)

    def own_device(self, name: str) -> OwnHandle | None:
        """The live session of this device in this process."""
        return self._alive(self._by_device.get(name))

    def live_device(self, name: str) -> SessionHandle | None:
        return self._alive(self._by_device.get(name))

    async def wait_for_device(self, name: str, until: float) -> SessionHandle | None:
        while (handle := await self.find_device(name)) is None:
            arrival = self._arrivals.setdefault(name, trio.Event())
            try:
                with trio.move_on_at(until):
                    await arrival.wait()
            finally:
                # The last waiter to give up removes the event: waiting leaves nothing behind.
                if arrival.statistics().tasks_waiting == 0 and self._arrivals.get(name) is arrival:
                    del self._arrivals[name]
            if not arrival.is_set():
                return None
        return handle

    def last_seen(self, name: str) -> datetime | None:
        if (handle := self._alive(self._by_device.get(name))) is not None:
            return handle.summary().last_heartbeat
        lost = self._lost.get(name)
        return lost.last_seen if lost else None

    def lost_at(self, name: str) -> float | None:
        self._alive(self._by_device.get(name))
        lost = self._lost.get(name)
        return lost.at if lost else None

    def offline_reason(self, name: str) -> str:
        self._alive(self._by_device.get(name))
        lost = self._lost.get(name)
        return lost.reason if lost else ""

    def presence(self) -> dict[str, Presence]:
        """Facts about every device that is or was online, for `restore` in the next process. A
        device that this process has been waiting for since its start still counts as online.
        """
        now = trio.current_time()
        found = {
            name: Presence(
                online=lost.is_awaited_until > now, last_seen=lost.last_seen, reason=lost.reason
            )
            for name, lost in self._lost.items()
        }
        for name, handle in self._by_device.items():
            if not handle.is_closed:
                found[name] = Presence(online=True, last_seen=handle.summary().last_heartbeat)
        return found

    def restore(self, known: Mapping[str, Presence], wait: float) -> None:
        """Take over the facts of the previous process; those that this process has already stay.

        Devices that were online count as lost now, and as online for `wait` seconds more.
        """
        now = trio.current_time()
        for name, one in known.items():
            if name in self._by_device or name in self._lost:
                continue
            if one.online:
                reason = "it has not come back since the proxy was restarted"
                self._lost[name] = _Lost(now, one.last_seen, reason, now + wait)
            else:
                self._lost[name] = _Lost(-math.inf, one.last_seen, one.reason)

    def forget_device(self, name: str) -> None:
        """Drop the facts about an offline device, because it may not connect any more."""
        self._lost.pop(name, None)

    def _alive(self, handle: OwnHandle | None) -> OwnHandle | None:
        # A session is over a moment before its task unregisters it.
        if handle is None or not handle.is_closed:
            return handle
        self._remove(handle)
        return None

    def _silence(self, handle: OwnHandle) -> float:
        return (self._clock() - handle.summary().last_heartbeat).total_seconds()

    def _remove(self, handle: OwnHandle, *, replaced: bool = False) -> None:
        if self._by_token.get(handle.token) is handle:
            del self._by_token[handle.token]
        if self._by_device.get(handle.device) is handle:
            del self._by_device[handle.device]
            summary = handle.summary()
            self._lost[handle.device] = _Lost(
                trio.current_time(), summary.last_heartbeat, handle.end_reason
            )
            # A session that was closed already ended before it was replaced.
            if self._events is not None and not (replaced and not handle.is_closed):
                self._events.record("lost", summary, handle.end_reason)
