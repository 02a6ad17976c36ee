"""Devices and their credentials."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunnelmux.config import Secret
from tunnelmux.registry.assist import AssistState
from tunnelmux.registry.ids import Page

__all__ = [
    "Credential",
    "Credentials",
    "Device",
    "DeviceFilter",
    "DeviceSession",
    "DeviceState",
    "Devices",
    "Revocation",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What the proxies last saw of a device; they write it in batches, some seconds late."""

    online: bool = False
    proxy_id: str | None = None
    """The proxy that holds its session, or held the last one."""
    since: datetime | None = None
    """When it last came or went."""
    last_seen: datetime | None = None
    address: str = ""
    agent_version: str = ""
    services: tuple[str, ...] = ()
    """The names of the services its agent offers."""
    reason: str = ""
    """Why the last session ended."""
    rival: str = ""
    """The address of another machine that has this device's credential, as after cloning a disk:
    the two replaced each other in turn. Empty when none was seen."""
    rival_seen: datetime | None = None
    assist: AssistState | None = None
    """What it said last of its switch for remote assistance; None when it never did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine that may connect, when it is enabled and not in quarantine."""

    id: str
    name: str
    label: str
    """Its label in host names, and the name by which proxies know it: `name` or `name--tenant`."""
    serial: str
    labels: dict[str, str]
    enabled: bool
    quarantine: str
    """Why it is held back; empty while it is not."""
    paired_by: str
    """The id of the user who let it in; empty when no person did."""
    paired_by_name: str
    install_key_id: str | None
    rotation_wanted: bool
    """A new credential is on its way to the device."""
    created: datetime
    state: DeviceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A device's token, of which only the SHA-256 is kept."""

    id: str
    device_id: str
    state: Literal["active", "new", "ended"]
    """`new`: made by a rotation and not proved yet; it is as good as an active one meanwhile."""
    created: datetime
    proved: datetime | None
    ended: datetime | None
    end_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Which devices a list is to hold; what is None or empty does not count."""

    name: str = ""
    """A part of the name or the serial number."""
    labels: tuple[tuple[str, str], ...] = ()
    """All of these labels with these values."""
    online: bool | None = None
    enabled: bool | None = None
    quarantined: bool | None = None
    install_key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSession:
    """One session that a device had, or has."""

    id: str
    proxy_id: str
    started: datetime
    ended: datetime | None
    address: str
    agent_version: str
    reason: str
    bytes_to_device: int
    bytes_from_device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A change that ends sessions. `change` is its number: `Changes.effects` says what it ended."""

    device: Device
    change: int


class Devices(abc.ABC):
    """The devices of this tenant."""

    @abc.abstractmethod
    async def add(
        self,
        name: str,
        *,
        serial: str = "",
        labels: dict[str, str] | None = None,
        paired_by: str = "",
        paired_by_name: str = "",
    ) -> tuple[Device, Secret]:
        """A new device and the token it connects with, which is told this once.

        Raises RegistryRefused: `taken` (the name, or a name that host names could take it for),
        `serial_taken`, `invalid`.
        """

    @abc.abstractmethod
    async def find(self, device_id: str) -> Device:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def find_named(self, name: str) -> Device:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def find_called(self, text: str) -> Device:
        """The device of this name, else of this serial number, in whatever case; raises
        NoSuchRecord."""

    @abc.abstractmethod
    async def page(
        self, *, where: DeviceFilter | None = None, limit: int = 50, after: str | None = None
    ) -> Page[Device]:
        """Devices by name."""

    @abc.abstractmethod
    async def count(self, where: DeviceFilter | None = None) -> int:
        """How many devices the filter lets through."""

    @abc.abstractmethod
    async def change(
        self,
        device_id: str,
        *,
        name: str | None = None,
        serial: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Device:
        """Change what is given. A new name ends the session: host names lead elsewhere now."""

    @abc.abstractmethod
    async def set_enabled(self, device_id: str, enabled: bool) -> Revocation:
        """Turn a device away, or let it in again."""

    @abc.abstractmethod
    async def set_quarantine(self, device_id: str, reason: str) -> Revocation:
        """Hold a device back with a reason that people read; an empty one lets it out."""

    @abc.abstractmethod
    async def host_key(self, device_id: str) -> str:
        """The host key of the device's SSH server, as a line without a comment; empty where no
        gateway has met it. Raises NoSuchRecord."""

    @abc.abstractmethod
    async def pin_host_key(self, device_id: str, key: str) -> str:
        """Keep the key that the device's SSH server showed at the first meeting; answers the one
        that is kept, which is another one where another gateway was first. Raises NoSuchRecord."""

    @abc.abstractmethod
    async def forget_host_key(self, device_id: str) -> Device:
        """Trust the next key that the device's SSH server shows: it was installed anew. Raises
        NoSuchRecord."""

    @abc.abstractmethod
    async def remove(self, device_id: str) -> Revocation:
        """Forget a device, its credentials and its history. The audit keeps what it was."""

    @abc.abstractmethod
    async def sessions(
        self, device_id: str, *, limit: int = 50, after: str | None = None
    ) -> Page[DeviceSession]:
        """The sessions of a device, the newest first."""


class Credentials(abc.ABC):
    """The credentials of this tenant's devices."""

    @abc.abstractmethod
    async def of(self, device_id: str) -> list[Credential]:
        """All that the device has and had, the newest first; raises NoSuchRecord."""

    @abc.abstractmethod
    async def replace(self, device_id: str) -> tuple[Revocation, Secret]:
        """End all credentials of a device and make one, for a person to carry to it."""

    @abc.abstractmethod
    async def revoke(self, device_id: str) -> Revocation:
        """End all credentials of a device: it stays known, and cannot connect."""

    @abc.abstractmethod
    async def rotate(self, device_id: str) -> Device:
        """Ask for a new credential. The proxy that holds the device's session makes it and gives it
        to the agent, now or when the device next connects; the old one ends once the agent has
        proved the new one. Raises RegistryRefused `not_enabled` for a device that is turned away.
        """

    @abc.abstractmethod
    async def cancel_rotation(self, device_id: str) -> Revocation:
        """Take the wish back, and end a new credential that was not proved."""
