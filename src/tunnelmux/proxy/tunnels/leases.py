"""The current leases, as this proxy knows them; each is ended here in time. The registry has the
leases, the device agrees to each, and this proxy ends the visits. Each of the three ends a lease by
its own clock, independently of the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Literal, NoReturn

import trio

from tunnelmux.clock_watch import LOOK_INTERVAL, ClockWatch, earlier
from tunnelmux.errors import NoSuchRecord, RegistryError, RegistryRefused
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import BoundedLines, get_logger
from tunnelmux.proxy.tunnels.assistance import (
    AgentEvent,
    AssistFailed,
    follow_agent,
    offer_lease,
    tell_end,
)
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.registry import AssistState, FleetLease, Lease, Registry
from tunnelmux.sessions import LocalHandle
from tunnelmux.sessions.handle import utc_now

__all__ = ["LeaseBook"]

_log = get_logger("proxy.leases")

_RETRY = 5.0
# Seconds until the next try after a failed call to an agent or the registry.

_LONGEST = 43_200.0
# Seconds, as of every lease.

_WORDS_AT_ONCE = 60
_WORDS_PER_SECOND = 1.0
# Events of one agent that are taken at once, and how many more each second. Each is written into
# the registry, some for good; a person at the device makes some in a minute.

_MOST_OFFERED = 900
# Leases that a new session is told of, of the 1,000 words that may wait.

CutVisits = Callable[[str, str, str], int]
"""`cut(device label, lease id, reason)` ends the visits under the lease; returns how many."""


class _Known:
    """A lease, and its end on Trio's clock."""

    __slots__ = ("lease", "tenant_id", "until")

    def __init__(self, found: FleetLease, now: datetime) -> None:
        self.lease = found.lease
        self.tenant_id = found.tenant_id
        self.until = trio.current_time() + (found.lease.ends - now) / timedelta(seconds=1)


class LeaseBook:
    """All current leases. `run` ends them in time and calls the agents. `cut` ends visits."""

    def __init__(
        self,
        devices: DeviceRegister,
        cut: CutVisits,
        limits: IngressLimits,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._devices = devices
        self._cut = cut
        self._limits = limits
        self._clock = clock
        self._clock_watch = ClockWatch(lambda: clock().timestamp(), trio.current_time)
        self._leases: dict[str, _Known] = {}
        self._by_device: dict[str, dict[str, _Known]] = {}
        self._due: list[tuple[float, str]] = []
        self._timer = trio.CancelScope()
        self._sessions: dict[str, tuple[LocalHandle, trio.MemorySendChannel[str | AgentEvent]]] = {}
        self._registry: Registry | None = None
        self._speaking: trio.Nursery | None = None
        self._lines = BoundedLines("proxy.leases")

    # -- queries ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._leases)

    def running(self, lease_id: str, device: str) -> Lease | None:
        """The lease of this id, if it is for the device of this label and runs now."""
        known = self._leases.get(lease_id)
        if known is None or self._label_of(known.lease.device_id) != device:
            return None
        return known.lease if self._is_running(known) else None

    def goes_on(self, lease_id: str, device: str) -> Lease | None:
        """The lease of this id, if it is for the device of this label and visits under it may go
        on: it runs, or has no uses left.
        """
        known = self._leases.get(lease_id)
        if known is None or self._label_of(known.lease.device_id) != device:
            return None
        lease = known.lease
        # One that has not begun has no visits, and `take` removes those that have ended.
        return lease if known.until > trio.current_time() else None

    def running_for(self, holder: str, device: str) -> list[Lease]:
        """The running leases of this user for the device of this label."""
        found = self._devices.find(device)
        registration = found.registration if found is not None else None
        if registration is None:
            return []
        return [
            known.lease
            for known in self._by_device.get(registration.device_id, {}).values()
            if known.lease.holder == holder
            and known.lease.kind == "person"
            and self._is_running(known)
        ]

    def _is_running(self, known: _Known) -> bool:
        lease = known.lease
        if known.until <= trio.current_time():
            return False
        # Only `_look_at_clock` lets a wall clock that was set end a lease.
        return lease.state(min(self._clock(), lease.ends - timedelta(microseconds=1))) == "running"

    def _label_of(self, device_id: str) -> str | None:
        device = self._devices.registered.get(device_id)
        return device.name if device is not None else None

    # -- changes of the registry -------------------------------------------------------------------

    def take(self, found: Iterable[FleetLease], *, everything: bool = False) -> dict[str, int]:
        """Update these leases from the registry; with `everything` all others are removed. Returns,
        for each that has ended, how many visits were cut.
        """
        fresh = {one.lease.id: one for one in found}
        gone = set(self._leases) - set(fresh) if everything else set()
        cut = {lease_id: self._forget(lease_id, "the registry has removed it") for lease_id in gone}
        now = self._clock()
        for lease_id, one in fresh.items():
            state = one.lease.state(now)
            if state in ("ended", "expired"):
                # One without uses left stays: visits under it may go on until its end.
                reason = one.lease.end_reason or "its time is over"
                cut[lease_id] = self._forget(lease_id, f"the lease has ended: {reason}", one.lease)
            else:
                self._keep(_Known(one, now))
        return cut

    def _keep(self, known: _Known) -> None:
        lease = known.lease
        before = self._leases.get(lease.id)
        self._leases[lease.id] = known
        self._by_device.setdefault(lease.device_id, {})[lease.id] = known
        self._end_at(known, known.until)
        if before is None or before.lease != lease:
            self._notify(lease.device_id, lease.id)

    def _forget(self, lease_id: str, reason: str, lease: Lease | None = None) -> int:
        known = self._leases.pop(lease_id, None)
        if known is not None:
            lease = lease or known.lease
            group = self._by_device[known.lease.device_id]
            del group[lease_id]
            if not group:
                del self._by_device[known.lease.device_id]
        if lease is None:
            return 0
        label = self._label_of(lease.device_id)
        count = self._cut(label, lease_id, reason) if label is not None else 0
        if known is not None or count:
            self._lines.write(
                "lease ended",
                label or lease.device_id,
                device=label,
                lease=lease_id,
                visits=count,
                reason=reason,
            )
        self._notify(lease.device_id, lease_id)
        return count

    def _notify(self, device_id: str, what: str | AgentEvent) -> None:
        session = self._sessions.get(device_id)
        if session is not None:
            try:
                session[1].send_nowait(what)
            except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                # The agent gets all leases when it next connects.
                device, event = session[0].device, "agent not told of a lease"
                self._lines.write(event, device, level="warning", device=device, lease=str(what))

    def _tell_of(
        self,
        event: str,
        handle: LocalHandle,
        error: Exception,
        *,
        level: Literal["info", "warning"] = "info",
    ) -> None:
        device = handle.device
        self._lines.write(event, device, level=level, device=device, cause=str(error))

    # -- sessions ---------------------------------------------------------------------------------

    def session_began(self, handle: LocalHandle, device_id: str, *, assists: bool) -> None:
        """A device has connected; `assists`: its agent takes leases, or may later."""
        if self._speaking is not None:
            self._speaking.start_soon(self._speak, handle, device_id, assists)

    def session_ended(self, handle: LocalHandle, device_id: str) -> None:
        """The session has ended."""
        session = self._sessions.get(device_id)
        if session is not None and session[0] is handle:
            del self._sessions[device_id]
            session[1].close()

    async def _speak(self, handle: LocalHandle, device_id: str, assists: bool) -> None:
        """Keep an agent and the registry in step about the leases of a device."""
        news, work = trio.open_memory_channel[str | AgentEvent](1000)
        self.session_ended_if_other(device_id)
        self._sessions[device_id] = handle, news
        try:
            async with trio.open_nursery() as nursery:
                if assists:
                    nursery.start_soon(self._follow, handle, device_id, news.clone())
                else:
                    self._offer_all(device_id, news)
                allowance = _Allowance()
                async for what in work:
                    if isinstance(what, AgentEvent):
                        await allowance.wait()
                    await self._patiently(handle, device_id, what, assists)
                nursery.cancel_scope.cancel(reason="the session is over")
        except Exception:  # noqa: BLE001 - a bug met with one device must not end the others
            _log.exception("unhandled error about leases", device=handle.device)
        finally:
            self.session_ended(handle, device_id)

    def session_ended_if_other(self, device_id: str) -> None:
        """Stop the task of the session that this one has replaced."""
        session = self._sessions.pop(device_id, None)
        if session is not None:
            session[1].close()

    def _offer_all(self, device_id: str, news: trio.MemorySendChannel[str | AgentEvent]) -> None:
        for lease_id in list(self._by_device.get(device_id, {}))[:_MOST_OFFERED]:
            news.send_nowait(lease_id)

    async def _follow(
        self,
        handle: LocalHandle,
        device_id: str,
        news: trio.MemorySendChannel[str | AgentEvent],
    ) -> None:
        is_told = False

        def take(event: AgentEvent) -> None:
            nonlocal is_told
            try:
                news.send_nowait(event)
            except trio.WouldBlock:
                if is_told:
                    return
                is_told = True
                what, device = "agent tells too much of leases", handle.device
                self._lines.write(what, device, level="warning", device=device)

        with news:
            # All leases first, so that the agent's events are about known leases.
            self._offer_all(device_id, news)
            try:
                await follow_agent(handle, self._limits, take)
            except AssistFailed as error:
                self._tell_of("agent tells nothing of leases", handle, error)
            except trio.BrokenResourceError:
                pass  # the session is over

    async def _patiently(
        self, handle: LocalHandle, device_id: str, what: str | AgentEvent, assists: bool
    ) -> None:
        """Call `action`; again while the registry is away, as long as the session lives."""
        while handle.session.error is None:
            try:
                if isinstance(what, AgentEvent):
                    await self._heard(device_id, handle, what)
                else:
                    await self._tell(handle, device_id, what, assists)
            except (NoSuchRecord, RegistryRefused) as error:
                self._tell_of("registry takes no word", handle, error, level="warning")
                return
            except RegistryError as error:
                _log.debug("registry not written", cause=str(error))
            except AssistFailed as error:
                self._tell_of("agent not asked about a lease", handle, error)
                return
            else:
                return
            await trio.sleep(_RETRY)

    async def _tell(
        self, handle: LocalHandle, device_id: str, lease_id: str, assists: bool
    ) -> None:
        known = self._leases.get(lease_id)
        registry = self._registry
        if known is None:
            if assists:
                await tell_end(handle, lease_id, "it was ended", self._limits)
            return
        lease = known.lease
        if lease.approval == "asked" or registry is None:
            return
        if not assists:
            reason = "its agent takes no leases: set assist.mode there, or update it"
            await self._refuse(registry, lease, device_id, reason)
            return
        if lease.kind == "code":
            return  # the device itself has ended it
        reply = await offer_lease(handle, lease, self._clock(), self._limits)
        if reply.state == "refused":
            await self._refuse(registry, lease, device_id, reply.reason)
        elif reply.state == "given" and lease.consent == "asked":
            await registry.fleet.answer_lease(lease.id, device_id, given=True)

    async def _refuse(self, registry: Registry, lease: Lease, device_id: str, reason: str) -> None:
        if lease.consent == "asked":
            await registry.fleet.answer_lease(lease.id, device_id, given=False, reason=reason)
        else:
            await registry.fleet.end_lease(lease.id, device_id, reason)

    def _switched_on_until(self, event: AgentEvent) -> datetime | None:
        """When assistance goes off again that a person at the device switched on."""
        if not 0 < event.on_for <= _LONGEST:
            return None
        return (self._clock() + timedelta(seconds=event.on_for)).replace(microsecond=0)

    async def _heard(self, device_id: str, handle: LocalHandle, event: AgentEvent) -> None:
        registry = self._registry
        if registry is None:
            return
        fleet = registry.fleet
        match event.type:
            case "state" if event.mode in ("off", "ask", "allow"):
                await fleet.report_assist(
                    device_id,
                    AssistState(
                        mode=event.mode,  # type: ignore[arg-type]  # it is one of them
                        services=_names_in(event.services),
                        longest=max(0.0, min(_LONGEST, event.longest)),
                        hours=_printable(event.hours[:64]),
                        until=self._switched_on_until(event),
                    ),
                )
            case "answer":
                reason = event.reason[:255]
                await fleet.answer_lease(event.lease, device_id, given=event.given, reason=reason)
            case "end":
                # Ended here at once: the registry may be away.
                known = self._leases.get(event.lease)
                if known is not None and known.lease.device_id == device_id:
                    self._forget(event.lease, f"the device ended it: {event.reason[:255]}")
                await fleet.end_lease(event.lease, device_id, event.reason[:255])
            case "open":
                now = self._clock()
                await fleet.open_code_lease(
                    event.lease,
                    device_id,
                    services=_names_in(event.services),
                    starts=now + timedelta(seconds=max(-_LONGEST, min(0.0, event.began))),
                    ends=now + timedelta(seconds=max(0.0, min(_LONGEST, event.seconds))),
                    key_fingerprint=event.key,
                )
            case _:
                _log.debug("agent told of a lease", device=handle.device, what=event.type)

    # -- times ------------------------------------------------------------------------------------

    async def run(self, registry: Registry) -> None:
        """End leases in time, and call the agents of new sessions; until cancelled."""
        self._registry = registry
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._watch)
                watching.start_soon(self._look_at_clock)
                async with trio.open_nursery() as self._speaking:
                    await trio.sleep_forever()  # until `fall_silent`
        finally:
            self._speaking = None

    def fall_silent(self) -> None:
        """Make no more calls to agents, because the proxy drains. Leases still end in time."""
        if self._speaking is not None:
            self._speaking.cancel_scope.cancel(reason="the proxy is draining")
            self._speaking = None

    async def _watch(self) -> NoReturn:
        while True:
            due = self._due[0][0] if self._due else float("inf")
            # No deadline while there is no lease: `_keep` sets it.
            with trio.CancelScope(deadline=due) as self._timer:
                await trio.sleep_forever()
            for lease_id in self._over(trio.current_time()):
                self._forget(lease_id, "the lease has ended: its time is over")

    async def _look_at_clock(self) -> NoReturn:
        """End leases earlier that would end late, as the clock was behind when they came."""
        while True:
            ahead = self._clock_watch.look()
            if ahead is not None:
                self._move_ends(ahead)
            await trio.sleep(LOOK_INTERVAL)

    def _move_ends(self, ahead: float) -> None:
        for known in self._leases.values():
            until = earlier(known.until, known.lease.ends.timestamp(), ahead)
            if until is not None:
                self._end_at(known, until)

    def _end_at(self, known: _Known, until: float) -> None:
        known.until = until
        heapq.heappush(self._due, (until, known.lease.id))
        self._timer.deadline = min(self._timer.deadline, until)

    def _over(self, now: float) -> Iterator[str]:
        while self._due and self._due[0][0] <= now:
            _, lease_id = heapq.heappop(self._due)
            known = self._leases.get(lease_id)
            if known is not None and known.until <= now:
                yield lease_id


class _Allowance:
    """How often an agent is heard."""

    def __init__(self) -> None:
        self._left = float(_WORDS_AT_ONCE)
        self._at = trio.current_time()

    async def wait(self) -> None:
        """Return when one more word may be taken."""
        now = trio.current_time()
        self._left = min(_WORDS_AT_ONCE, self._left + (now - self._at) * _WORDS_PER_SECOND)
        self._at = now
        self._left -= 1
        if self._left < 0:
            await trio.sleep(-self._left / _WORDS_PER_SECOND)


def _names_in(services: list[str]) -> tuple[str, ...]:
    return tuple(_printable(service[:63]) for service in services[:64])


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())
