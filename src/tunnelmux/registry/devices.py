"""Devices and their credentials."""

from __future__ import annotations

import abc
from collections.abc import Sequence
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
    "DeviceHostKeys",
    "DeviceSession",
    "DeviceState",
    "Devices",
    "Revocation",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """The state of a device as the proxies last saw it; they write it in batches, seconds later."""

    online: bool = False
    proxy_id: str | None = None
    """The proxy that holds its session, or held the last one."""
    since: datetime | None = None
    """When it last went online or offline."""
    last_seen: datetime | None = None
    address: str = ""
    agent_version: str = ""
    services: tuple[str, ...] = ()
    """The names of the services its agent offers."""
    reason: str = ""
    """Why the last session ended."""
    rival: str = ""
    """The address of another machine with this device's credential, for example a cloned disk: the
    two replace each other's session. Empty when none was seen."""
    rival_seen: datetime | None = None
    assist: AssistState | None = None
    """What it last reported about remote assistance; None when it never did."""


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
    """Why it is in quarantine; empty when it is not."""
    paired_by: str
    """The id of the user who paired it; empty when no person did."""
    paired_by_name: str
    install_key_id: str | None
    rotation_wanted: bool
    """Whether the device is to get a new credential."""
    created: datetime
    state: DeviceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A device's token, of which only the SHA-256 is kept."""

    id: str
    device_id: str
    state: Literal["active", "new", "ended"]
    """`new`: made by a rotation and not used yet; it is as valid as an active one."""
    created: datetime
    proved: datetime | None
    ended: datetime | None
    end_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Selects devices for a list; fields that are None or empty do not matter."""

    name: str = ""
    """A part of the name or the serial number."""
    labels: tuple[tuple[str, str], ...] = ()
    """The device must have all of these labels with these values."""
    online: bool | None = None
    enabled: bool | None = None
    quarantined: bool | None = None
    asks_for_help: bool | None = None
    """Whether a person at the device has assistance switched on now."""
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
class DeviceHostKeys:
    """The host keys of a device's SSH server, each as a line `TYPE BASE64`."""

    pinned: tuple[str, ...] = ()
    """Those that the gateway accepts; empty until the first are known."""
    reported: tuple[str, ...] = ()
    """Others that were reported or seen since, and wait for a person's word; empty where none
    do."""


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
        """A new device and its token, which is returned only this once.

        Raises RegistryRefused: `taken` (the name, or its host name, belongs to another device),
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
        """The device of this name, else of this serial number, in any case; raises NoSuchRecord."""

    @abc.abstractmethod
    async def page(
        self, *, where: DeviceFilter | None = None, limit: int = 50, after: str | None = None
    ) -> Page[Device]:
        """Devices by name."""

    @abc.abstractmethod
    async def count(self, where: DeviceFilter | None = None) -> int:
        """How many devices match."""

    @abc.abstractmethod
    async def change(
        self,
        device_id: str,
        *,
        name: str | None = None,
        serial: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Device:
        """Change the given fields. A new name ends the session, because its host names change."""

    @abc.abstractmethod
    async def set_enabled(self, device_id: str, enabled: bool) -> Revocation:
        """Enable or disable a device. A disabled one cannot connect."""

    @abc.abstractmethod
    async def set_quarantine(self, device_id: str, reason: str) -> Revocation:
        """Put a device into quarantine, with a reason that people read; an empty one ends it."""

    @abc.abstractmethod
    async def host_keys(self, device_id: str) -> DeviceHostKeys:
        """The host keys of the device's SSH server. Raises NoSuchRecord."""

    @abc.abstractmethod
    async def pin_host_key(self, device_id: str, key: str) -> DeviceHostKeys:
        """Pin the key that the device's SSH server showed to the gateway, where none is pinned.
        Raises NoSuchRecord."""

    @abc.abstractmethod
    async def report_host_keys(self, device_id: str, keys: Sequence[str]) -> DeviceHostKeys:
        """Keys that the device's SSH server has now: they are pinned where none are, and wait for
        a person's word where one of them is new. Raises NoSuchRecord."""

    @abc.abstractmethod
    async def accept_host_keys(self, device_id: str, fingerprints: Sequence[str]) -> DeviceHostKeys:
        """Pin the keys that were reported, in place of those before. Raises NoSuchRecord,
        RegistryRefused `changed_meanwhile` where other keys than those were reported meanwhile."""

    @abc.abstractmethod
    async def forget_host_keys(self, device_id: str) -> DeviceHostKeys:
        """Pin the next keys that are reported or met. Raises NoSuchRecord."""

    @abc.abstractmethod
    async def remove(self, device_id: str) -> Revocation:
        """Delete a device, its credentials and its history. The audit keeps its data."""

    @abc.abstractmethod
    async def sessions(
        self, device_id: str, *, limit: int = 50, after: str | None = None
    ) -> Page[DeviceSession]:
        """The sessions of a device, the newest first."""


class Credentials(abc.ABC):
    """The credentials of this tenant's devices."""

    @abc.abstractmethod
    async def of(self, device_id: str) -> list[Credential]:
        """All credentials of the device, also ended ones, the newest first; raises NoSuchRecord."""

    @abc.abstractmethod
    async def replace(self, device_id: str) -> tuple[Revocation, Secret]:
        """End all credentials of a device and make a new one, which a person brings to it."""

    @abc.abstractmethod
    async def revoke(self, device_id: str) -> Revocation:
        """End all credentials of a device: it stays known, and cannot connect."""

    @abc.abstractmethod
    async def rotate(self, device_id: str) -> Device:
        """Ask for a new credential. The proxy that holds the device's session makes it and gives it
        to the agent, now or when the device next connects. The old one ends once the agent has used
        the new one. Raises RegistryRefused `not_enabled` for a device that may not connect.
        """

    @abc.abstractmethod
    async def cancel_rotation(self, device_id: str) -> Revocation:
        """Cancel the rotation, and end a new credential that was not used yet."""
