"""How a device gets its credential: by a pairing code, in either direction, or an install key."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunnelmux.config import Secret
from tunnelmux.registry.devices import Device
from tunnelmux.registry.ids import Page

__all__ = [
    "Arrival",
    "InstallKey",
    "InstallKeys",
    "Joining",
    "Pairing",
    "PairingRules",
    "PairingState",
    "Pairings",
]

PairingState = Literal["open", "approved", "used", "denied", "cancelled", "burnt", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingRules:
    """The limits of pairing. Times are in seconds."""

    lifetime: float = 600.0
    """How long a code is valid: time to walk to the device and type eight letters."""
    max_guesses: int = 5
    """After so many wrong second halves for one first half, all codes with that first half are
    invalid (RFC 8628 section 5.1: five guesses at 20^8 are 2^-32)."""
    address_budget: int = 20
    """Wrong codes from one address (IPv6: from one /64; 4 and 16 times as many from a /56 and /48,
    256 times from a provider, see `wider_networks`), or of one person who has signed in, within
    `budget_period`; further ones are refused without a look. So many requests for a code may come
    from one address in 2 s, and 5 times as many wait."""
    tenant_budget: int = 100
    """Wrong codes by people of one tenant within `budget_period`."""
    budget_period: float = 600.0
    max_waiting: int = 1000
    """Devices without a tenant that may wait at once; as many of each tenant, with an install key,
    and as many terminals that wait for a sign-in. Anybody may ask, so the places are shared:
    when all are taken, the block of addresses (/24, IPv6: /48) that has most of them loses one, or
    where none has more than others, the provider (/16, IPv6: /32)."""
    key_budget: int = 1000
    """Uses of one install key within `budget_period`, half of them at most from one block of
    addresses: so a thief of the key leaves some to its owner, who has time to revoke it."""
    max_devices: int = 100_000
    """Devices of one tenant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """One code. `console`: an operator made it. `device`: the device waits for approval."""

    id: str
    kind: Literal["console", "device"]
    state: PairingState
    name: str
    """The device's name, proposed or fixed; it may be empty until approval or use."""
    serial: str
    labels: dict[str, str]
    address: str
    """The address that the device asked from."""
    fingerprint: str
    """The fingerprint of the device's key, or empty: both screens show it, to compare."""
    agent_version: str
    created_by: str
    created: datetime
    expires: datetime
    decided_by: str
    device_id: str | None
    """The device that was paired."""
    replaces: str | None
    """The id of the device that it replaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A device that was paired, and its token, which is returned only this once."""

    tenant_id: str
    device: Device
    token: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallKey:
    """A key for many devices."""

    id: str
    name: str
    labels: dict[str, str]
    needs_approval: bool
    serials: tuple[str, ...]
    """Only devices with these serial numbers may use it; empty: any."""
    max_uses: int
    uses: int
    created_by: str
    created: datetime
    expires: datetime
    last_used: datetime | None
    revoked: datetime | None


class Pairings(abc.ABC):
    """Pairing, for the operators of this tenant."""

    @abc.abstractmethod
    async def make_code(
        self,
        *,
        name: str = "",
        serial: str = "",
        labels: dict[str, str] | None = None,
        replace: str | None = None,
        lifetime: float | None = None,
    ) -> tuple[Pairing, Secret]:
        """A code (`BCDF-GHJK`) that a device exchanges for its credential; returned only this once.

        `replace` is the id of a device that the new one replaces, as in `approve`. `lifetime` is in
        seconds, by default that of the rules. Raises NoSuchRecord, RegistryRefused `taken`,
        `serial_taken`, `invalid`.
        """

    @abc.abstractmethod
    async def find_request(self, code: str) -> Pairing:
        """The request of the waiting device that shows this code. The code alone allows nothing.

        Raises RegistryRefused: `code_unknown`, `code_expired`, `code_burnt`, `too_many_guesses`.
        """

    @abc.abstractmethod
    async def approve(
        self,
        pairing_id: str,
        *,
        name: str,
        labels: dict[str, str] | None = None,
        replace: str | None = None,
    ) -> Device:
        """Accept a waiting device under this name; it fetches its credential itself.

        `replace` is the id of a device that was reinstalled: it keeps its id, name and history, and
        its old credentials end. Raises NoSuchRecord, RegistryRefused: `taken`, `serial_taken`,
        `pairing_over`.
        """

    @abc.abstractmethod
    async def deny(self, pairing_id: str) -> None:
        """Refuse a waiting device, or cancel a code before it is used."""

    @abc.abstractmethod
    async def find(self, pairing_id: str) -> Pairing:
        """One pairing of this tenant; raises NoSuchRecord."""

    @abc.abstractmethod
    async def page(
        self, *, waiting: bool = False, limit: int = 50, after: str | None = None
    ) -> Page[Pairing]:
        """The newest first; `waiting`: only those that can still be decided or used."""


class InstallKeys(abc.ABC):
    """The install keys of this tenant."""

    @abc.abstractmethod
    async def add(
        self,
        name: str,
        *,
        lifetime: float,
        max_uses: int,
        needs_approval: bool = False,
        serials: tuple[str, ...] = (),
        labels: dict[str, str] | None = None,
    ) -> tuple[InstallKey, Secret]:
        """A new key and its text, which is returned only this once."""

    @abc.abstractmethod
    async def find(self, key_id: str) -> InstallKey:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[InstallKey]:
        """The newest first."""

    @abc.abstractmethod
    async def revoke(
        self, key_id: str, *, devices: Literal["keep", "disable", "remove"]
    ) -> tuple[InstallKey, list[str], int]:
        """End it, and keep, disable or remove the devices that used it.

        Returns the key, the ids of the devices that were disabled or removed, and the change's
        number. First the key is ended, then one part of the devices after the other: after an error
        the same call goes on with the others.
        """


class Joining(abc.ABC):
    """Pairing, for devices. They are not signed in, so that no call names a tenant."""

    @abc.abstractmethod
    async def exchange(
        self, code: str, *, address: str, name: str = "", serial: str = "", agent_version: str = ""
    ) -> Arrival:
        """Exchange a code from the console for a credential, in one transaction.

        Raises RegistryRefused: `code_unknown`, `code_expired`, `code_used`, `code_burnt`,
        `too_many_guesses`, `taken`, `serial_taken`, `name_needed`, `wrong_serial`.
        """

    @abc.abstractmethod
    async def request(
        self,
        *,
        address: str,
        name: str = "",
        serial: str = "",
        fingerprint: str = "",
        agent_version: str = "",
    ) -> tuple[Pairing, Secret, Secret]:
        """A device asks to be paired. Returns the pairing, the code it shows, and the secret it
        polls with.

        Raises RegistryRefused `too_many_requests`.
        """

    @abc.abstractmethod
    async def poll(self, secret: Secret, *, fingerprint: str = "") -> Arrival | Pairing:
        """The state of a request: the pairing while it waits; once approved, the credential, once.
        `fingerprint` is that of the device's key, if it has one, and must be the approved one.

        Raises RegistryRefused: `wrong_key`, `pairing_unknown`, `pairing_denied`, `pairing_expired`,
        `pairing_used`, `pairing_burnt`.
        """

    @abc.abstractmethod
    async def install(
        self,
        key: Secret,
        *,
        address: str,
        name: str,
        serial: str = "",
        fingerprint: str = "",
        agent_version: str = "",
    ) -> Arrival | tuple[Pairing, Secret]:
        """Use an install key. If it needs approval: the pairing, and the secret to poll with.

        Raises RegistryRefused: `key_unknown`, `key_expired`, `key_revoked`, `key_used_up`,
        `wrong_serial`, `taken`, `serial_taken`, `too_many_guesses`, `too_many_requests`.
        """
