"""What a proxy reads of the registry, and what it writes back."""

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
    """All a proxy needs to know of a device."""

    device_id: str
    tenant_id: str
    label: str
    """The name by which visitors and callers find it: `name`, or `name--tenant`."""
    digests: dict[str, str]
    """The SHA-256 of each token it may connect with, in hexadecimal, and the credential's id."""
    serial: str
    """Its serial number, or empty: visitors and callers find it by that too."""
    refused: str
    """Why it may not connect (disabled, in quarantine, its tenant disabled); else empty."""
    paired_by: str
    rotation_wanted: bool
    rules: dict[str, AccessRule]
    """Who may visit, by service; empty is the device's own rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLease:
    """A lease, and whose it is."""

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
    """A device was heard from. `services` is None where the agent has not said."""

    device_id: str
    at: datetime
    services: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that is, or was, at work."""

    id: str
    name: str
    internal_url: str
    """Where its internal API is called; empty when it has none."""
    version: str
    started: datetime
    beat: datetime
    living: bool
    """Heard from within the last 15 s."""


class Fleet(abc.ABC):
    """The devices of all tenants, for the proxies that serve them."""

    @abc.abstractmethod
    async def devices(self, *, after: str = "", limit: int = 1000) -> list[FleetDevice]:
        """Devices by id, from behind this one; fewer than `limit` at the end."""

    @abc.abstractmethod
    async def devices_with_ids(self, device_ids: list[str]) -> list[FleetDevice]:
        """Those of these devices that exist."""

    @abc.abstractmethod
    async def devices_of_tenant(self, tenant_id: str) -> list[FleetDevice]:
        """All devices of one tenant."""

    @abc.abstractmethod
    async def identify(self, digest: str) -> FleetDevice | None:
        """The device one of whose credentials has this SHA-256 (hexadecimal); refused ones too."""

    @abc.abstractmethod
    async def report(
        self,
        proxy_id: str,
        *,
        began: list[SessionBegan],
        ended: list[SessionEnded],
        seen: list[Sighting],
    ) -> None:
        """Write down what was seen since the last report. Sightings of unknown devices are left
        out. No entry of the audit: nothing was changed by anybody."""

    @abc.abstractmethod
    async def hello(self, proxy_id: str, *, name: str, internal_url: str, version: str) -> None:
        """A proxy starts. Sessions that it held under this id before are over."""

    @abc.abstractmethod
    async def move(self, proxy_id: str, *, internal_url: str) -> None:
        """From now on others call its internal API there."""

    @abc.abstractmethod
    async def beat(self, proxy_id: str, *, applied: int, effects: dict[int, Effect]) -> None:
        """It is alive, has applied all changes up to this number, and ended so much for these."""

    @abc.abstractmethod
    async def goodbye(self, proxy_id: str) -> None:
        """It ends in order."""

    @abc.abstractmethod
    async def proxies(self) -> list[Proxy]:
        """All proxies, living ones first."""

    @abc.abstractmethod
    async def begin_credential(self, device_id: str) -> tuple[str, Secret] | None:
        """A second credential for a device whose rotation is wanted: its id, and the token to give
        to the agent, told this once. None when the rotation is not wanted any more.

        Those that were begun before and not proved stay good until one is, because the agent may
        have written one down; the oldest ends when there are more than three."""

    @abc.abstractmethod
    async def drop_credential(self, credential_id: str, reason: str) -> None:
        """End a new credential that the agent has certainly not taken; others stay as they are."""

    @abc.abstractmethod
    async def prove_credential(self, credential_id: str) -> bool:
        """The agent has shown the new token: it is the device's only one from now on.

        False when it is not a new one (it ended, or was proved already)."""

    # -- leases -----------------------------------------------------------------------------------

    @abc.abstractmethod
    async def leases(self, *, after: str = "", limit: int = 1000) -> list[FleetLease]:
        """Leases that are not over, by id, from behind this one; fewer than `limit` at the end."""

    @abc.abstractmethod
    async def leases_with_ids(self, lease_ids: list[str]) -> list[FleetLease]:
        """Those of these leases that exist, the ones that are over too."""

    @abc.abstractmethod
    async def answer_lease(
        self, lease_id: str, device_id: str, *, given: bool, reason: str = ""
    ) -> None:
        """The device's answer to a lease that was asked for; a refusal ends it. One that is over
        stays as it is."""

    @abc.abstractmethod
    async def end_lease(self, lease_id: str, device_id: str, reason: str) -> None:
        """The device has ended a lease of its own accord."""

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
        """The device has made a lease for the holder of its code, who has the key of this
        fingerprint; one that is known gets this end. Raises RegistryRefused `invalid`."""

    @abc.abstractmethod
    async def code_lease(self, key_fingerprint: str) -> FleetLease | None:
        """The running lease by code whose holder has this key."""

    @abc.abstractmethod
    async def use_lease(
        self, lease_id: str, device_id: str, address: str, details: dict[str, object]
    ) -> None:
        """Its holder uses a lease from this address, as by a browser that is let in: count it and
        write down `details`. Raises RegistryRefused `lease_over` where it does not run."""

    @abc.abstractmethod
    async def report_assist(self, device_id: str, state: AssistState) -> None:
        """What a device says of its switch for assistance."""

    @abc.abstractmethod
    async def report_serial(self, device_id: str, serial: str) -> str:
        """The serial number that a device says it has. It is taken over where the registry has
        none; else the answer is why not, or empty."""

    @abc.abstractmethod
    async def report_host_keys(self, device_id: str, keys: Sequence[str]) -> str:
        """The host keys that a device's SSH server has, as its agent read them. The first are
        pinned; of others the answer says what a person has to do, else it is empty. Raises
        NoSuchRecord."""
