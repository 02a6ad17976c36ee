"""How a device gets its credential: pairing codes, both ways, and install keys."""

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
    """The numbers of pairing. Times in seconds."""

    lifetime: float = 600.0
    """How long a code is good for: time to walk to the device and type eight letters."""
    max_guesses: int = 5
    """Wrong second halves for one first half, after which the codes that begin so are burnt
    (RFC 8628 section 5.1: five guesses at 20^8 are 2^-32)."""
    address_budget: int = 20
    """Wrong codes from one address, of IPv6 from one /64, within `budget_period`; more are refused
    unseen."""
    tenant_budget: int = 100
    """Wrong codes by people of one tenant within `budget_period`."""
    budget_period: float = 600.0
    max_waiting: int = 1000
    """Devices that wait at once and are no tenant's yet. Anybody may ask, so the places are shared
    out: where all are taken, the block of addresses (/24, of IPv6 /48) that has most gives way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """One code. From the console: an operator made it. From the device: it waits for approval."""

    id: str
    kind: Literal["console", "device"]
    state: PairingState
    name: str
    """The device's name, wished for or fixed; may be empty until it is approved or used."""
    serial: str
    labels: dict[str, str]
    address: str
    """Where the device asked from."""
    fingerprint: str
    """The device's key, or empty: shown on both screens to compare."""
    agent_version: str
    created_by: str
    created: datetime
    expires: datetime
    decided_by: str
    device_id: str | None
    """The device that came of it."""
    replaces: str | None
    """The id of the device whose place it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A device that is let in: what it is and the token it connects with, told this once."""

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
    """Only these may use it; empty: any."""
    max_uses: int
    uses: int
    created_by: str
    created: datetime
    expires: datetime
    last_used: datetime | None
    revoked: datetime | None


class Pairings(abc.ABC):
    """Pairing as this tenant's operators see it."""

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
        """A code that a device exchanges for its credential, `BCDF-GHJK`; told this once.

        `replace` is the id of a device whose place the new one takes, as in `approve`; `lifetime`
        is in seconds, by default that of the rules. Raises NoSuchRecord, RegistryRefused `taken`,
        `serial_taken`, `invalid`.
        """

    @abc.abstractmethod
    async def find_request(self, code: str) -> Pairing:
        """The device that shows this code and waits. The code finds; it gives no right.

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
        """Let a waiting device in, under this name; it fetches its credential itself.

        `replace` is the id of a device that was installed anew: it keeps its id, name and history,
        and its old credentials end. Raises NoSuchRecord, RegistryRefused: `taken`, `serial_taken`,
        `pairing_over`.
        """

    @abc.abstractmethod
    async def deny(self, pairing_id: str) -> None:
        """Turn a waiting device away, or take a code back before it is used."""

    @abc.abstractmethod
    async def find(self, pairing_id: str) -> Pairing:
        """One of this tenant's; raises NoSuchRecord."""

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
        """A new key, told this once."""

    @abc.abstractmethod
    async def find(self, key_id: str) -> InstallKey:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[InstallKey]:
        """The newest first."""

    @abc.abstractmethod
    async def revoke(
        self, key_id: str, *, devices: Literal["keep", "disable"]
    ) -> tuple[InstallKey, list[str], int]:
        """End it, and say what happens to devices that used it.

        Answers the key, the ids of the devices that were disabled, and the change's number.
        """


class Joining(abc.ABC):
    """Pairing as the device sees it: not signed in, so nothing here names a tenant."""

    @abc.abstractmethod
    async def exchange(
        self, code: str, *, address: str, name: str = "", serial: str = "", agent_version: str = ""
    ) -> Arrival:
        """Use a code from the console up. The code and the credential change in one step or not.

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
        """A device asks to be let in: the pairing, the code it shows, and the secret it polls with.

        Raises RegistryRefused `too_many_requests`.
        """

    @abc.abstractmethod
    async def poll(self, secret: Secret, *, fingerprint: str = "") -> Arrival | Pairing:
        """What became of a request: still the pairing while it waits; the credential, once.
        `fingerprint` is that of the key it is for, where there is one: that which was approved.

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
        """Use an install key. With approval: the pairing, and the secret to poll with.

        Raises RegistryRefused: `key_unknown`, `key_expired`, `key_revoked`, `key_used_up`,
        `wrong_serial`, `taken`, `serial_taken`, `too_many_guesses`.
        """
