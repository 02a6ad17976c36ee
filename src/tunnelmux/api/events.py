"""The events of a tenant: changes in the registry, and tunnels that begin and end.

One task of the process follows the registry, and one follows each proxy. Each reader has its own
position in the last events of its tenant; those of other tenants neither wake it nor push these
out. Ids contain the process's epoch: a reader that comes back to another process, or too late, is
told of a gap and must read the lists again.
"""

from __future__ import annotations

import secrets
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import NoReturn

import trio

from tunnelmux.backend import ApiCallFailed, ProxyClient
from tunnelmux.backend.proxies import Proxies
from tunnelmux.errors import ConnectError, RegistryError
from tunnelmux.observability import get_logger
from tunnelmux.registry import Change, ChangeWatch, FleetDevice, Registry
from tunnelmux.registry.ids import format_time
from tunnelmux.sessions import SessionEvent

__all__ = ["EventHub", "TenantEvent"]

_log = get_logger("api.events")

_HISTORY = 1000
# Events of each tenant that are kept for readers who come back: minutes of a busy fleet.

_MOST_TOLD = 10_000
# Ids of proxies' events that are known: as many as the nodes of a cluster can be apart.

_RETRY = 1.0
# Seconds after which a registry or proxy that was away is asked again.

_LOOK = 3.0
# Seconds between two checks for new proxies.


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantEvent:
    """One event. `object_id` is the id of the device, pairing and so on that it is about."""

    number: int
    tenant_id: str
    kind: str
    """`device.changed` and so on; `device.connected`, `device.replaced`, `device.lost`."""
    object_id: str
    at: str
    name: str = ""
    """The device's label, in events about tunnels."""
    reason: str = ""

    def to_json(self) -> dict[str, str]:
        """The JSON for readers, without empty fields."""
        said = {"object_id": self.object_id, "at": self.at}
        more = {"name": self.name, "reason": self.reason}
        return said | {key: value for key, value in more.items() if value}


class _Recent:
    """The last events of one tenant."""

    def __init__(self) -> None:
        self.events: deque[TenantEvent] = deque(maxlen=_HISTORY)
        self.forgotten = 0
        """The number of the last event that is not kept any more; 0 for none."""
        self.news = trio.Event()

    def add(self, event: TenantEvent) -> None:
        if len(self.events) == _HISTORY:
            self.forgotten = self.events[0].number
        self.events.append(event)
        self.tell()

    def tell(self) -> None:
        """Wake all who wait."""
        self.news.set()
        self.news = trio.Event()


class EventHub:
    """The last events. `run` collects them until it is cancelled."""

    def __init__(self, registry: Registry, proxies: Proxies) -> None:
        self.epoch = secrets.token_hex(4)
        self.last_number = 0
        self.is_over = False
        """Whether the API is ending, so that no more events come."""
        self._registry = registry
        self._proxies = proxies
        self._recent: defaultdict[str, _Recent] = defaultdict(_Recent)
        self._devices: dict[str, FleetDevice] = {}
        self._told: dict[str, None] = {}  # the ids of the proxies' last events

    async def run(self) -> NoReturn:
        """Follow the registry and the proxies."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_registry)
                nursery.start_soon(self._follow_proxies, nursery)
                await trio.sleep_forever()
        finally:
            self.is_over = True
            for recent in self._recent.values():
                recent.tell()

    def after(self, number: int, tenant_id: str) -> tuple[list[TenantEvent], bool]:
        """A tenant's events after this number, and whether some of them were dropped already."""
        recent = self._recent[tenant_id]
        newest = takewhile(lambda event: event.number > number, reversed(recent.events))
        return list(newest)[::-1], number < recent.forgotten

    async def wait_after(self, number: int, tenant_id: str) -> None:
        """Return when there is an event of this tenant after this number, or the API ends."""
        recent = self._recent[tenant_id]
        while not self.is_over and (not recent.events or recent.events[-1].number <= number):
            await recent.news.wait()

    def _record(self, tenant_id: str, kind: str, object_id: str, at: datetime, **more: str) -> None:
        self.last_number += 1
        self._recent[tenant_id].add(
            TenantEvent(
                number=self.last_number,
                tenant_id=tenant_id,
                kind=kind,
                object_id=object_id,
                at=format_time(at),
                **more,
            )
        )

    # The registry

    async def _follow_registry(self) -> NoReturn:
        while True:
            try:
                number = await self._registry.changes.latest()
                await self._read_devices()
                async with self._registry.changes.watch() as watch:
                    await self._follow_changes(number, watch)
            # An error within a watch arrives in the exception group of its nursery.
            except* RegistryError as group:
                _log.warning("events wait for the registry", problem=str(group.exceptions[0]))
            await trio.sleep(_RETRY)

    async def _follow_changes(self, number: int, watch: ChangeWatch) -> None:
        """Follow until some changes were deleted before they were read; then start again."""
        while (changes := await self._registry.changes.after(number)) is not None:
            for change in changes:
                number = change.number
                await self._take(change)
            if not changes:
                await watch.wait()

    async def _take(self, change: Change) -> None:
        if change.kind == "device":
            for device in await self._registry.fleet.devices_with_ids([change.object_id]):
                self._devices[device.label] = device
        self._record(change.tenant_id, f"{change.kind}.changed", change.object_id, change.at)

    async def _read_devices(self) -> None:
        after = ""
        while devices := await self._registry.fleet.devices(after=after):
            self._devices |= {device.label: device for device in devices}
            after = devices[-1].device_id

    # The proxies

    async def _follow_proxies(self, nursery: trio.Nursery) -> NoReturn:
        followed: set[ProxyClient] = set()

        async def follow(client: ProxyClient) -> None:
            try:
                await self._follow_proxy(client)
            finally:
                followed.discard(client)

        while True:
            try:
                for client in await self._proxies.clients():
                    if client not in followed:
                        followed.add(client)
                        nursery.start_soon(follow, client)
            except RegistryError:
                pass  # _follow_registry logs it
            await trio.sleep(_LOOK)

    async def _follow_proxy(self, client: ProxyClient) -> None:
        """Follow until the proxy ends the stream or is lost; `_follow_proxies` starts again."""
        try:
            async with client.events() as events:
                async for event_id, event in events:
                    if event is not None and self._is_new(event_id):
                        self._take_session(event)
        except (ConnectError, ApiCallFailed) as exc:
            _log.info("events of a proxy ended", problem=str(exc))

    def _is_new(self, event_id: str) -> bool:
        """Whether no other proxy has told this one: all nodes of a cluster tell the same events,
        with the same ids."""
        if event_id in self._told:
            return False
        self._told[event_id] = None
        if len(self._told) > _MOST_TOLD:
            del self._told[next(iter(self._told))]
        return True

    def _take_session(self, event: SessionEvent) -> None:
        device = self._devices.get(event.device_id)
        if device is not None:  # else it is a device of proxy.toml, which has no tenant
            self._record(
                device.tenant_id,
                f"device.{event.type}",
                device.device_id,
                event.time.astimezone(UTC),
                name=event.device_id,
                reason=event.reason,
            )
