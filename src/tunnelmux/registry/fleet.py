"""The part of the registry that proxies read and write."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.config import Secret
from tunnelmux.config.access import AccessRule
from tunnelmux.registry.assist import AssistState
from tunnelmux.registry.changes import Effect
from tunnelmux.registry.leases import Lease

__all__ = [
    "Fleet",
    "FleetDevice",
    "FleetLease",
    "Proxy",
    "SessionBegan",
    "SessionEnded",
    "Sighting",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDevice:
    """All that a proxy needs to know about a device."""

    device_id: str
    tenant_id: str
    label: str
    """The name by which visitors and callers find it: `name`, or `name--tenant`."""
    digests: dict[str, str]
    """The id of each credential, by the SHA-256 of its token in hexadecimal."""
    labels: dict[str, str]
    serial: str
    """Its serial number, or empty: visitors and callers find it by that too."""
    refused: str
    """Why it may not connect (disabled, in quarantine, its tenant disabled); else empty."""
    paired_by: str
    rotation_wanted: bool
    rules: dict[str, AccessRule]
    """Who may visit, by service; the rule of the empty name is for all other services."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLease:
    """A lease and its tenant."""

    tenant_id: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBegan:
    """A session began."""

    session_id: str
    device_id: str
    at: datetime
    address: str
    agent_version: str
    rival: str = ""
    """The address of another machine with the same credential, if the two replace each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """A session ended."""

    session_id: str
    device_id: str
    at: datetime
    reason: str
    bytes_to_device: int
    bytes_from_device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A device was seen. `services` is None when its agent has not reported them."""

    device_id: str
    at: datetime
    services: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that runs, or ran."""

    id: str
    name: str
    internal_url: str
    """The URL of its internal API; empty when it has none."""
    version: str
    started: datetime
    beat: datetime
    living: bool
    """Whether its last beat is less than 15 s old."""


class Fleet(abc.ABC):
    """The devices of all tenants, for the proxies that serve them."""

    @abc.abstractmethod
    async def devices(self, *, after: str = "", limit: int = 1000) -> list[FleetDevice]:
        """Devices in the order of their ids, after this id; fewer than `limit` at the end."""

    @abc.abstractmethod
    async def devices_with_ids(self, device_ids: list[str]) -> list[FleetDevice]:
        """Those of these devices that exist."""

    @abc.abstractmethod
    async def devices_of_tenant(self, tenant_id: str) -> list[FleetDevice]:
        """All devices of one tenant."""

    @abc.abstractmethod
    async def identify(self, digest: str) -> FleetDevice | None:
        """The device with a credential of this SHA-256 (hexadecimal), also one that may not
        connect."""

    @abc.abstractmethod
    async def report(
        self,
        proxy_id: str,
        *,
        began: list[SessionBegan],
        ended: list[SessionEnded],
        seen: list[Sighting],
    ) -> None:
        """Write what the proxy saw since its last report. Sightings of unknown devices are left
        out. There is no entry in the audit, because no person or program made a change."""

    @abc.abstractmethod
    async def hello(self, proxy_id: str, *, name: str, internal_url: str, version: str) -> None:
        """A proxy starts. Sessions that it had under this id before are over."""

    @abc.abstractmethod
    async def move(self, proxy_id: str, *, internal_url: str) -> None:
        """The URL of a proxy's internal API has changed."""

    @abc.abstractmethod
    async def beat(self, proxy_id: str, *, applied: int, effects: dict[int, Effect]) -> None:
        """A proxy is alive, has applied all changes up to this number, and ended so much for each
        of these changes."""

    @abc.abstractmethod
    async def goodbye(self, proxy_id: str) -> None:
        """A proxy ends in order."""

    @abc.abstractmethod
    async def proxies(self) -> list[Proxy]:
        """All proxies, living ones first."""

    @abc.abstractmethod
    async def begin_credential(self, device_id: str) -> tuple[str, Secret] | None:
        """Make a second credential for a device whose rotation is wanted. Returns its id, and the
        token for the agent, only this once. None when the rotation is no longer wanted.

        Earlier new credentials stay valid until one of them is used, because the agent may have
        stored one; the oldest ends when there are more than three."""

    @abc.abstractmethod
    async def drop_credential(self, credential_id: str, reason: str) -> None:
        """End a new credential that the agent certainly did not store; others are left alone."""

    @abc.abstractmethod
    async def prove_credential(self, credential_id: str) -> bool:
        """The agent has used the new token: it is the device's only one from now on.

        False when it is not `new` (it has ended, or was used already)."""

    # -- leases -----------------------------------------------------------------------------------

    @abc.abstractmethod
    async def leases(self, *, after: str = "", limit: int = 1000) -> list[FleetLease]:
        """Leases that are not over, in the order of their ids, after this id; fewer than `limit` at
        the end."""

    @abc.abstractmethod
    async def leases_with_ids(self, lease_ids: list[str]) -> list[FleetLease]:
        """Those of these leases that exist, also ones that are over."""

    @abc.abstractmethod
    async def answer_lease(
        self, lease_id: str, device_id: str, *, given: bool, reason: str = ""
    ) -> None:
        """Take the device's answer to a requested lease; a refusal ends it. A lease that is over
        does not change."""

    @abc.abstractmethod
    async def end_lease(self, lease_id: str, device_id: str, reason: str) -> None:
        """The device itself has ended a lease."""

    @abc.abstractmethod
    async def open_code_lease(
        self,
        lease_id: str,
        device_id: str,
        *,
        services: tuple[str, ...],
        starts: datetime,
        ends: datetime,
        key_fingerprint: str = "",
    ) -> None:
        """The device has made a lease for the holder of its code, whose key has this fingerprint. A
        lease that is known already gets this end. Raises RegistryRefused `invalid`."""

    @abc.abstractmethod
    async def code_lease(self, key_fingerprint: str) -> FleetLease | None:
        """The running lease by code whose holder has this key."""

    @abc.abstractmethod
    async def use_lease(
        self, lease_id: str, device_id: str, address: str, details: dict[str, object]
    ) -> None:
        """Count one use of a lease from this address, for example by a browser, and note `details`
        in the audit. Raises RegistryRefused `lease_over` when it is not running."""

    @abc.abstractmethod
    async def report_assist(self, device_id: str, state: AssistState) -> None:
        """Keep what a device reports about its switch for assistance."""

    @abc.abstractmethod
    async def report_serial(self, device_id: str, serial: str) -> str:
        """The serial number that a device says it has. It is taken over where the registry has
        none; else the answer is why not, or empty."""

    @abc.abstractmethod
    async def report_host_keys(self, device_id: str, keys: Sequence[str]) -> str:
        """The host keys that a device's SSH server has, as its agent read them. The first are
        pinned; of others the answer says what a person has to do, else it is empty. Raises
        NoSuchRecord."""
