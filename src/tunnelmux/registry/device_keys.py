"""SSH keys of devices that have no agent and connect by OpenSSH; each key has an end."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.config import Secret

__all__ = ["DeviceSshKey", "DeviceSshKeys", "SshDevice", "SshDevices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSshKey:
    """A public key with which a device may log in to the gateway, until `expires`."""

    id: str
    device_id: str
    fingerprint: str
    line: str
    created: datetime
    expires: datetime
    last_used: datetime | None
    last_address: str


class DeviceSshKeys(abc.ABC):
    """The SSH keys of this tenant's devices."""

    @abc.abstractmethod
    async def add(self, device_id: str, key: str, lifetime: float) -> DeviceSshKey:
        """Accept this key of a device for `lifetime` seconds; a key that it has already gets this
        end. Raises NoSuchRecord; RegistryRefused `invalid`, `taken` (another device has it),
        `too_many`."""

    @abc.abstractmethod
    async def of(self, device_id: str) -> list[DeviceSshKey]:
        """The keys that have not expired, the newest first; raises NoSuchRecord."""

    @abc.abstractmethod
    async def remove(self, device_id: str, key_id: str) -> int:
        """Remove a key, and end the sessions that it opened; returns the change's number. Raises
        NoSuchRecord."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshDevice:
    """A device, found by its key."""

    key: DeviceSshKey
    tenant_id: str
    name: str
    label: str
    serial: str

    def is_called(self, text: str) -> bool:
        """Whether this is its serial number or one of its names, in any case."""
        return text.casefold() in {
            name.casefold() for name in (self.name, self.label, self.serial) if name
        }


class SshDevices(abc.ABC):
    """Devices with an SSH key, of all tenants, for the gateway."""

    @abc.abstractmethod
    async def find(self, fingerprint: str) -> SshDevice | None:
        """The device of this key; None when the key is unknown or expired, or the device may not
        connect."""

    @abc.abstractmethod
    async def begin(self, key_id: str, address: str) -> Secret | None:
        """A device has logged in: make a token for its tunnel, returned only this once. The token
        of its earlier log-in ends. None when the key has expired."""

    @abc.abstractmethod
    async def end(self, token: Secret, reason: str) -> None:
        """The log-in is over: its token is invalid from now on."""
