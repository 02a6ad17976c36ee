"""The SSH keys by which devices that have nothing but OpenSSH connect, each for a stated time."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.config import Secret

__all__ = ["DeviceSshKey", "DeviceSshKeys", "SshDevice", "SshDevices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSshKey:
    """A public key that a device logs in to the gateway with, until `expires`."""

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
        """Let a device in with this key for `lifetime` seconds; one that it has already gets this
        end. Raises NoSuchRecord; RegistryRefused `invalid`, `taken` where another device has it,
        `too_many`."""

    @abc.abstractmethod
    async def of(self, device_id: str) -> list[DeviceSshKey]:
        """Those that have not expired, the newest first; raises NoSuchRecord."""

    @abc.abstractmethod
    async def remove(self, device_id: str, key_id: str) -> int:
        """Take a key back, and end what the device holds by it; the change's number. Raises
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
        """Whether this is its serial number or one of its names; case does not count."""
        return text.casefold() in {
            name.casefold() for name in (self.name, self.label, self.serial) if name
        }


class SshDevices(abc.ABC):
    """Devices with an SSH key, of all tenants, for the gateway that lets them in."""

    @abc.abstractmethod
    async def find(self, fingerprint: str) -> SshDevice | None:
        """The device of this key; None where the key is not known or over, or the device may not
        connect."""

    @abc.abstractmethod
    async def begin(self, key_id: str, address: str) -> Secret | None:
        """The device has logged in: a token that its tunnel connects with, told this once. What it
        had by an earlier log-in ends. None where the key is over."""

    @abc.abstractmethod
    async def end(self, token: Secret, reason: str) -> None:
        """The log-in is over, and what it connected with is worth nothing any more."""
