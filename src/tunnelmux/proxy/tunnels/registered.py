"""The proxy's copy of the registry's devices, kept up to date by following its changes. All devices
are read at the start, then numbered changes. So tokens are checked in memory, and known devices can
connect while the registry is away. An unknown token triggers one more read of changes, shared by
all that wait: even a flood of wrong tokens causes only a few reads per second.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

import tunnelmux
from tunnelmux.errors import (
    NoSuchRecord,
    RegistryAway,
    RegistryError,
    RegistryFailed,
    RegistryRefused,
)
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import BoundedLines, get_logger
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice, Registration
from tunnelmux.proxy.tunnels.leases import LeaseBook
from tunnelmux.proxy.tunnels.rotation import deliver
from tunnelmux.registry import (
    Change,
    ChangeWatch,
    Effect,
    FleetDevice,
    FleetLease,
    Registry,
    SessionBegan,
    SessionEnded,
    Sighting,
    new_id,
)
from tunnelmux.sessions import LocalHandle
from tunnelmux.sessions.handle import utc_now

if TYPE_CHECKING:
    from tunnelmux.proxy.access.follower import AccessFollower

__all__ = ["Ended", "ProxyIdentity", "RegisteredDevices"]

_log = get_logger("proxy.registry")

UNKNOWN_FOR = 5.0
"""Seconds for which an unknown token is cached as unknown."""

_MAX_UNKNOWN = 10_000
# Unknown tokens in the cache, under 200 bytes each; the oldest makes room.

_LEAST_GAP = 0.1
# Seconds between two reads of changes, for all callers together.

_CATCH_UP = 3.0
# Seconds that a handshake with an unknown token waits for the registry.

_RETRY = 0.5
_REPORT = 2.0
_BEAT = 5.0
_SIGHTINGS = 30.0
# Seconds between two of each.

_RETRY_ROTATION = 60.0
_LOOK_FOR_ROTATIONS = 30.0
# Seconds until a device that has not used its new token gets it again, and between two checks.

_MAX_ROTATIONS = 16
# Devices that rotate at once: each dials the proxy to prove its new token.

_MAX_EVENTS = 20_000
# Session reports that wait for the registry, under 400 bytes each.

_PART = 500
# Rows of one transaction, read or written: some 50 ms of the database's time.

_GOODBYE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyIdentity:
    """This proxy's entry in the registry."""

    id: str
    """The same after a restart; the registry ends the sessions of its previous start."""
    name: str
    internal_url: str
    """The URL of its internal API; empty while it is not known, or without one."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The visits that a change ended."""

    sessions: int
    visits: int


class _Waiting:
    """A caller that waits for the next read of changes."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: RegistryError | None = None


class RegisteredDevices:
    """Follows the registry while `run` runs.

    `open_source` opens it; `end_device(name, reason)` ends the session and the visits of a device
    and returns how many.
    """

    def __init__(
        self,
        open_source: Callable[[], AbstractAsyncContextManager[Registry]],
        devices: DeviceRegister,
        end_device: Callable[[str, str], Awaitable[Ended]],
        identity: ProxyIdentity,
        limits: IngressLimits,
        leases: LeaseBook,
        access: AccessFollower | None = None,
    ) -> None:
        self._open = open_source
        self._devices = devices
        self._end_device = end_device
        self._identity = identity
        self._limits = limits
        self._access = access
        self._registry: Registry | None = None
        self._applied: int | None = None
        self._effects: dict[int, Effect] = {}
        self._is_greeted = False
        self._told_url = ""
        self._away: RegistryError | None = RegistryAway("the registry was not read yet")
        self._is_told = False
        self._loaded = trio.Event()
        self._wake = trio.Event()
        self._waiting: list[_Waiting] = []
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._began: deque[SessionBegan] = deque(maxlen=_MAX_EVENTS)
        self._ended: deque[SessionEnded] = deque(maxlen=_MAX_EVENTS)
        self._services: dict[str, Sighting] = {}
        self._live: dict[LocalHandle, tuple[str, str]] = {}
        self._lines = BoundedLines("proxy.registry")
        self._serials: dict[str, tuple[LocalHandle, str]] = {}
        self._host_keys: dict[str, tuple[LocalHandle, tuple[str, ...]]] = {}
        self.is_followed = False
        """Whether another program has the place of this proxy in the registry by now."""
        self._rotations = trio.CapacityLimiter(_MAX_ROTATIONS)
        self._rotation_due = trio.Event()
        self._next_try: dict[LocalHandle, float] = {}
        self.leases = leases
        """The registry's leases."""

    # -- for the tunnels ------------------------------------------------------------------------

    @property
    def away(self) -> RegistryError | None:
        """Why the copy is not up to date, or None."""
        return self._away

    async def wait_loaded(self, timeout: float) -> None:
        """Return once all devices are read, or after `timeout` seconds."""
        with trio.move_on_after(timeout):
            await self._loaded.wait()

    def say_where(self, internal_url: str) -> None:
        """Publish the URL of this proxy's internal API, as soon as the registry answers."""
        if internal_url != self._identity.internal_url:
            self._identity = replace(self._identity, internal_url=internal_url)
            self._wake.set()

    async def look_up(self, token: str) -> KnownDevice | None:
        """The device of a token that is not in the register yet; None when the registry does not
        know it. Raises RegistryAway or RegistryFailed when the registry cannot be asked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        until = self._unknown.get(digest)
        if until is not None and trio.current_time() < until:
            return None
        await self.catch_up()
        device = self._devices.identify(token)
        if device is None:
            self._unknown[digest] = trio.current_time() + UNKNOWN_FOR
            self._unknown.move_to_end(digest)
            if len(self._unknown) > _MAX_UNKNOWN:
                self._unknown.popitem(last=False)
        return device

    async def catch_up(self) -> None:
        """Return once all changes up to now are applied; raises RegistryError when that fails."""
        if self._away is not None:
            raise self._away
        waiting = _Waiting()
        self._waiting.append(waiting)
        self._wake.set()
        with trio.move_on_after(_CATCH_UP):
            await waiting.done.wait()
        if not waiting.done.is_set():
            raise RegistryAway("the registry did not answer in time")
        if waiting.error is not None:
            raise waiting.error

    async def prove(self, device: KnownDevice, token: str) -> None:
        """The agent has used this token: if it is a new one, the older ones become void. Raises
        RegistryError when this cannot be stored; the token stays valid.
        """
        known = device.registration
        if known is None or not known.rotation_wanted or self._registry is None:
            return
        credential_id = known.credentials.get(hashlib.sha256(token.encode()).digest())
        if credential_id is None:
            return
        if await self._registry.fleet.prove_credential(credential_id):
            self._lines.write("credential rotated", device.name, device=device.name)
            await self.catch_up()

    def session_began(
        self,
        handle: LocalHandle,
        device: KnownDevice,
        *,
        agent: str,
        services: tuple[str, ...],
        rival: str,
        serial: str = "",
        host_keys: tuple[str, ...] = (),
        assists: bool = False,
    ) -> None:
        """Queue a report that a device has connected. `assists`: it takes leases."""
        if device.registration is None:
            return
        device_id, session_id = device.registration.device_id, new_id()
        self._live[handle] = device_id, session_id
        self._began.append(
            SessionBegan(
                session_id=session_id,
                device_id=device_id,
                at=utc_now(),
                address=handle.remote_address,
                agent_version=agent,
                rival=rival,
            )
        )
        self._services[device_id] = Sighting(device_id=device_id, at=utc_now(), services=services)
        if serial:
            self._serials[device_id] = handle, serial
        if host_keys:
            self._host_keys[device_id] = handle, host_keys
        self.leases.session_began(handle, device_id, assists=assists)
        self._rotation_due.set()

    def session_ended(self, handle: LocalHandle) -> None:
        """Queue a report that a device has disconnected."""
        found = self._live.pop(handle, None)
        if found is None:
            return
        device_id, session_id = found
        self._services.pop(device_id, None)
        self._serials.pop(device_id, None)
        self._host_keys.pop(device_id, None)
        self.leases.session_ended(handle, device_id)
        self._next_try.pop(handle, None)
        self._ended.append(
            SessionEnded(
                session_id=session_id,
                device_id=device_id,
                at=utc_now(),
                reason=handle.end_reason or "the agent closed it",
                bytes_to_device=handle.session.bytes_sent,
                bytes_from_device=handle.session.bytes_received,
            )
        )

    # -- the tasks --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the registry until cancelled; retries for ever while it is away."""
        async with AsyncExitStack() as stack:
            self._registry = registry = await self._open_patiently(stack)
            watch = await stack.enter_async_context(registry.changes.watch())
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, watch)
                    nursery.start_soon(self._follow, registry)
                    nursery.start_soon(self._report, registry)
                    nursery.start_soon(self._rotate, registry)
                    nursery.start_soon(self.leases.run, registry)
                    if self._access is not None:
                        nursery.start_soon(self._access.run, registry)
            finally:
                await self._say_goodbye(registry)

    async def _open_patiently(self, stack: AsyncExitStack) -> Registry:
        while True:
            try:
                return await stack.enter_async_context(self._open())
            except RegistryError as error:
                self._note_away(error)
            await trio.sleep(_RETRY)

    async def _listen(self, watch: ChangeWatch) -> None:
        while True:
            await watch.wait()
            self._wake.set()

    async def _follow(self, registry: Registry) -> None:
        while True:
            self._wake = trio.Event()
            waiting, self._waiting = self._waiting, []
            error: RegistryError | None = None
            try:
                await self._look(registry)
            except Exception as problem:  # noqa: BLE001 - a bug here must not end the tunnels
                error = self._as_away(problem)
                self._note_away(error)
                # Callers that came meanwhile would only wait as long again for the same answer.
                waiting += self._waiting
                self._waiting = []
            else:
                self._note_back()
            for one in waiting:
                one.error = error
                one.done.set()
            await trio.sleep(_LEAST_GAP if error is None else _RETRY)
            if error is None:
                # The watch sets it at least once a second.
                await self._wake.wait()

    async def _look(self, registry: Registry) -> None:
        """Apply all changes up to now."""
        url = self._identity.internal_url
        if not self._is_greeted:
            await registry.fleet.hello(
                self._identity.id,
                name=self._identity.name,
                internal_url=url,
                version=tunnelmux.__version__,
            )
            self._is_greeted = True
        elif url != self._told_url:
            await registry.fleet.move(self._identity.id, internal_url=url)
        self._told_url = url
        if self._access is not None and self._away is not None:
            await self._access.greet(registry)
        changes = None
        if self._applied is not None:
            changes = await registry.changes.after(self._applied, limit=_PART)
        if changes is None:
            await self._load(registry)
        elif changes:
            await self._apply(registry, changes)
            if len(changes) == _PART:
                self._wake.set()
        if changes is None or changes:
            self._rotation_due.set()
            await self._beat(registry)

    async def _load(self, registry: Registry) -> None:
        # The number first: changes during the read are then read again.
        number = await registry.changes.latest()
        found: dict[str, FleetDevice] = {}
        after = ""
        while True:
            part = await registry.fleet.devices(after=after, limit=_PART)
            found |= {device.device_id: device for device in part}
            if len(part) < _PART:
                break
            after = part[-1].device_id
        stale = self._devices.replace_registered(
            {device_id: _known(device) for device_id, device in found.items()}, everything=True
        )
        for name, reason in stale.values():
            await self._end_device(name, reason)
        await self._load_leases(registry)
        if self._access is not None:
            await self._access.reload(registry)
        self._applied = number

    async def _load_leases(self, registry: Registry) -> None:
        found: list[FleetLease] = []
        while True:
            last = found[-1].lease.id if found else ""
            part = await registry.fleet.leases(after=last, limit=_PART)
            found += part
            if len(part) < _PART:
                break
        self.leases.take(found, everything=True)

    async def _apply(self, registry: Registry, changes: list[Change]) -> None:
        ids = {change.object_id for change in changes if change.kind == "device"}
        numbers: dict[str, list[int]] = {}
        for change in changes:
            if change.kind == "device":
                numbers.setdefault(change.object_id, []).append(change.number)
        devices = await registry.fleet.devices_with_ids(sorted(ids))
        for change in changes:
            if change.kind == "tenant":
                for device in await registry.fleet.devices_of_tenant(change.object_id):
                    devices.append(device)
                    numbers.setdefault(device.device_id, []).append(change.number)
        fresh: dict[str, KnownDevice | None] = dict.fromkeys(ids)
        fresh |= {device.device_id: _known(device) for device in devices}
        self._unknown.clear()
        stale = self._devices.replace_registered(fresh)
        for device_id, (name, reason) in stale.items():
            ended = await self._end_device(name, reason)
            # Report for each change what it ended, so that its author learns it.
            for number in numbers[device_id]:
                self._add_effect(number, ended)
        await self._apply_leases(registry, changes)
        if self._access is not None:
            await self._judge_again(registry, self._access, changes, numbers)
        self._applied = changes[-1].number

    async def _apply_leases(self, registry: Registry, changes: list[Change]) -> None:
        numbers = {change.object_id: change.number for change in changes if change.kind == "lease"}
        if not numbers:
            return
        found = await registry.fleet.leases_with_ids(sorted(numbers))
        for lease_id, visits in self.leases.take(found).items():
            self._add_effect(numbers[lease_id], Ended(sessions=0, visits=visits))

    async def _judge_again(
        self,
        registry: Registry,
        access: AccessFollower,
        changes: list[Change],
        numbers: dict[str, list[int]],
    ) -> None:
        """Check visitors' access again after changes."""
        if numbers:
            cut = access.devices_changed()
            for number in {number for some in numbers.values() for number in some}:
                self._add_effect(number, Ended(sessions=0, visits=cut))
        for change in changes:
            cut = await access.apply(registry, change)
            self._add_effect(change.number, Ended(sessions=0, visits=cut))

    def _add_effect(self, number: int, ended: Ended) -> None:
        if not ended.sessions and not ended.visits:
            return
        before = self._effects.get(number)
        self._effects[number] = Effect(
            proxy_id=self._identity.id,
            proxy_name=self._identity.name,
            sessions=ended.sessions + (before.sessions if before else 0),
            visits=ended.visits + (before.visits if before else 0),
        )

    async def _beat(self, registry: Registry) -> None:
        if self._applied is not None:
            effects = dict(self._effects)
            await registry.fleet.beat(self._identity.id, applied=self._applied, effects=effects)
            for number in effects:
                del self._effects[number]

    # -- rotations --------------------------------------------------------------------------------

    async def _rotate(self, registry: Registry) -> None:
        """Give a new token to each device that is due for one and connected here."""
        async with trio.open_nursery() as nursery:
            while True:
                self._rotation_due = trio.Event()
                now = trio.current_time()
                for handle, (device_id, _) in list(self._live.items()):
                    device = self._devices.registered.get(device_id)
                    known = device.registration if device is not None else None
                    if known is None or not known.rotation_wanted:
                        continue
                    if self._next_try.get(handle, now) <= now:
                        self._next_try[handle] = now + _RETRY_ROTATION
                        nursery.start_soon(self._rotate_one, registry, handle, device_id)
                with trio.move_on_after(_LOOK_FOR_ROTATIONS):
                    await self._rotation_due.wait()

    async def _rotate_one(self, registry: Registry, handle: LocalHandle, device_id: str) -> None:
        async with self._rotations:
            try:
                begun = await registry.fleet.begin_credential(device_id)
                if begun is None:
                    return
                credential_id, token = begun
                # This proxy must know the token before the agent uses it.
                await self.catch_up()
                delivery = await deliver(handle, token, self._limits)
                if delivery.refused:
                    await registry.fleet.drop_credential(credential_id, "the agent refused it")
            except Exception as error:  # noqa: BLE001 - a bug here must not end the tunnels
                cause = str(self._as_away(error))
            else:
                cause = delivery.cause
        if cause:
            self._lines.write(
                "credential not rotated",
                handle.device,
                level="warning",
                device=handle.device,
                cause=cause,
                retry_in=_RETRY_ROTATION,
            )

    # -- reports ----------------------------------------------------------------------------------

    async def _report(self, registry: Registry) -> None:
        beat_due = sightings_due = trio.current_time()
        while True:
            await trio.sleep(_REPORT)
            now = trio.current_time()
            if not self._is_greeted:
                continue
            try:
                await self._report_events(registry)
                if now >= sightings_due:
                    await self._report_sightings(registry)
                    sightings_due = now + _SIGHTINGS
                if now >= beat_due:
                    await self._beat(registry)
                    beat_due = now + _BEAT
            except Exception as error:  # noqa: BLE001 - a bug here must not end the tunnels
                # Unwritten reports wait for the next try; `_follow` logs that the registry is away.
                _log.debug("registry not written", cause=str(self._as_away(error)))

    async def _report_events(self, registry: Registry) -> None:
        await self._report_serials(registry)
        await self._report_host_keys(registry)
        while self._began or self._ended or self._services:
            began = [self._began[index] for index in range(min(_PART, len(self._began)))]
            # Report the end of a session after its begin.
            told_all = len(began) == len(self._began)
            ends = min(_PART, len(self._ended)) if told_all else 0
            ended = [self._ended[index] for index in range(ends)]
            seen = list(self._services.values())[:_PART] if told_all else []
            await registry.fleet.report(self._identity.id, began=began, ended=ended, seen=seen)
            for _ in began:
                self._began.popleft()
            for _ in ended:
                self._ended.popleft()
            for sight in seen:
                if self._services.get(sight.device_id) is sight:
                    del self._services[sight.device_id]

    async def _report_serials(self, registry: Registry) -> None:
        for device_id, (handle, serial) in list(self._serials.items()):
            try:
                problem = await registry.fleet.report_serial(device_id, serial)
            except NoSuchRecord:
                problem = ""  # the device is gone
            if problem:
                self._warn_of("serial number not taken", handle, serial=serial, cause=problem)
            self._serials.pop(device_id, None)

    async def _report_host_keys(self, registry: Registry) -> None:
        for device_id, (handle, keys) in list(self._host_keys.items()):
            try:
                problem = await registry.fleet.report_host_keys(device_id, keys)
            except NoSuchRecord:
                problem = ""  # the device is gone
            except RegistryRefused as error:
                problem = str(error)  # not tried again: the reports of other devices come after it
            if problem:
                self._warn_of("host keys not taken", handle, cause=problem)
            if self._host_keys.get(device_id) == (handle, keys):
                del self._host_keys[device_id]

    def _warn_of(self, event: str, handle: LocalHandle, **fields: str) -> None:
        self._lines.write(event, handle.device, level="warning", device=handle.device, **fields)

    async def _report_sightings(self, registry: Registry) -> None:
        seen = [
            Sighting(device_id=device_id, at=handle.summary().last_heartbeat)
            for handle, (device_id, _) in list(self._live.items())
        ]
        for first in range(0, len(seen), _PART):
            part = seen[first : first + _PART]
            await registry.fleet.report(self._identity.id, began=[], ended=[], seen=part)

    async def _say_goodbye(self, registry: Registry) -> None:
        if not self._is_greeted or self._away is not None or self.is_followed:
            return
        with trio.move_on_after(_GOODBYE, shield=True):
            try:
                await self._report_events(registry)
                await registry.fleet.goodbye(self._identity.id)
            except RegistryError as error:
                _log.warning("registry not told of the end", cause=str(error))

    # -- away and back ----------------------------------------------------------------------------

    def _as_away(self, problem: Exception) -> RegistryError:
        """The failure as RegistryAway, to be retried; a bug is logged with its traceback."""
        if isinstance(problem, RegistryError):
            return problem
        _log.exception("unhandled error in the registry", effect="known devices go on")
        return RegistryFailed(f"unhandled error: {type(problem).__name__}")

    def _note_away(self, error: RegistryError) -> None:
        if not self._is_told:
            effect = "known devices go on; new ones wait"
            _log.error("registry away", cause=str(error), effect=effect)
        self._is_told = True
        self._away = error
        if self._access is not None:
            self._access.note_away()

    def _note_back(self) -> None:
        if self._away is not None:
            _log.info("registry read", devices=len(self._devices.registered))
        self._away, self._is_told = None, False
        self._loaded.set()


def _known(device: FleetDevice) -> KnownDevice:
    digests = {bytes.fromhex(digest): number for digest, number in device.digests.items()}
    first, *others = sorted(digests) or [b""]
    return KnownDevice(
        name=device.label,
        token_sha256=first,
        also_sha256=tuple(others),
        enabled=not device.refused,
        labels=device.labels,
        registration=Registration(
            device_id=device.device_id,
            tenant_id=device.tenant_id,
            refused=device.refused,
            paired_by=device.paired_by,
            rotation_wanted=device.rotation_wanted,
            credentials=digests,
            rules=device.rules,
            serial=device.serial,
        ),
    )
