"""Who may visit which service: rules, links, and what proxies ask about those who come."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tunnelmux.config.access import AccessRule
from tunnelmux.registry.ids import Page

__all__ = [
    "DeviceRule",
    "GrantState",
    "RuleChange",
    "ServiceLink",
    "ServiceLinks",
    "SigningKey",
    "VisitorRules",
    "Visitors",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRule:
    """The rule of a device, or of one service on it."""

    device_id: str
    service: str
    """Empty is the device's own rule: for services that have none."""
    rule: AccessRule
    changed: datetime
    changed_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChange:
    """A change that may end visits. `change` is its number, for `Changes.effects`."""

    rules: list[DeviceRule]
    """All rules of the device after it."""
    change: int


class VisitorRules(abc.ABC):
    """The rules of this tenant's devices. A device without one is for members who sign in."""

    @abc.abstractmethod
    async def of(self, device_id: str) -> list[DeviceRule]:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def set(self, device_id: str, service: str, rule: AccessRule) -> RuleChange:
        """Raises NoSuchRecord, and RegistryRefused `too_many`."""

    @abc.abstractmethod
    async def remove(self, device_id: str, service: str) -> RuleChange:
        """Harmless where there is none; raises NoSuchRecord for the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLink:
    """A link that lets its holder visit one service of one device, for a time."""

    id: str
    device_id: str
    label: str
    """The device's label in host names."""
    service: str
    """Empty is the device's default service."""
    note: str
    once: bool
    """Whether it lets in one browser, and no second one."""
    uses: int
    last_used: datetime | None
    created: datetime
    created_by: str
    ends: datetime
    revoked: datetime | None


class ServiceLinks(abc.ABC):
    """The links to services of this tenant's devices."""

    @abc.abstractmethod
    async def add(
        self, device_id: str, service: str, *, lifetime: float, once: bool, note: str = ""
    ) -> ServiceLink:
        """Raises NoSuchRecord, and RegistryRefused `too_many`."""

    @abc.abstractmethod
    async def page(
        self, device_id: str, *, limit: int = 50, after: str | None = None
    ) -> Page[ServiceLink]:
        """Those of a device, the newest first."""

    @abc.abstractmethod
    async def revoke(self, device_id: str, link_id: str) -> tuple[ServiceLink, int]:
        """Take it back, and end all visits that came by it; the number of the change too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantState:
    """What a visitor may come by, as it is now."""

    kind: Literal["session", "link"]
    id: str
    is_living: bool
    ends: float = 0.0
    """Unix time; a session's moves while it is used."""
    user_id: str = ""
    name: str = ""
    email: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Of a session: the person's role by the name of each tenant that is not disabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """The public half of a key (Ed25519) by which one of our programs signs."""

    id: str
    maker: Literal["proxy", "api"]
    public: bytes
    url: str
    """Of a tunnelmux-api: where people sign in."""


class Visitors(abc.ABC):
    """What proxies and tunnelmux-api must know of each other's visitors, of all tenants."""

    @abc.abstractmethod
    async def look_up(
        self, grants: Sequence[tuple[str, str]], *, used: Sequence[tuple[str, str]] = ()
    ) -> list[GrantState]:
        """What these grants, by kind and id, are now; `used` are noted as used, which puts the idle
        end of a session off. What does not exist is not living."""

    @abc.abstractmethod
    async def use_ticket(self, ticket_id: str, until: float) -> bool:
        """Whether this ticket is new; it is remembered until then (Unix time)."""

    @abc.abstractmethod
    async def use_link(self, link_id: str, label: str, service: str) -> bool:
        """Whether this link lets one more browser into this service; it is counted then."""

    @abc.abstractmethod
    async def publish_key(
        self, key_id: str, public: bytes, *, maker: Literal["proxy", "api"], url: str = ""
    ) -> None:
        """Have a key believed from now on, for a day; to be called again before."""

    @abc.abstractmethod
    async def withdraw_keys(self, maker: Literal["proxy", "api"], but: Sequence[str]) -> None:
        """Have no key of this maker believed any more but these."""

    @abc.abstractmethod
    async def keys(self) -> list[SigningKey]:
        """The keys that are believed, the oldest first."""
