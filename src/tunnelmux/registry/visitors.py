"""Who may visit which service: rules, links, and the state of visitors' sign-ins for proxies."""

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
    """Empty for the device's own rule, which holds for services without one."""
    rule: AccessRule
    changed: datetime
    changed_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChange:
    """A change that may end visits. `change` is its number, for `Changes.effects`."""

    rules: list[DeviceRule]
    """All rules of the device after the change."""
    change: int


class VisitorRules(abc.ABC):
    """The rules of this tenant's devices. Without a rule, members who sign in may visit a
    device."""

    @abc.abstractmethod
    async def of(self, device_id: str) -> list[DeviceRule]:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def set(self, device_id: str, service: str, rule: AccessRule) -> RuleChange:
        """Raises NoSuchRecord, and RegistryRefused `too_many`."""

    @abc.abstractmethod
    async def remove(self, device_id: str, service: str) -> RuleChange:
        """Harmless when there is none; raises NoSuchRecord for the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLink:
    """A link that lets its holder visit one service of one device, for a time."""

    id: str
    device_id: str
    label: str
    """The device's label in host names."""
    service: str
    """Empty for the device's default service."""
    note: str
    once: bool
    """Whether it admits one browser only."""
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
        """The links of a device, the newest first."""

    @abc.abstractmethod
    async def revoke(self, device_id: str, link_id: str) -> tuple[ServiceLink, int]:
        """Revoke a link, and end all visits by it. Returns the link and the change's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantState:
    """The current state of what admits a visitor: a sign-in or a link."""

    kind: Literal["session", "link"]
    id: str
    is_living: bool
    ends: float = 0.0
    """Unix time; a session's moves while it is used."""
    user_id: str = ""
    name: str = ""
    email: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    """For a session: the person's role by tenant name, in each tenant that is enabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """The public key (Ed25519) of one of our programs that signs texts."""

    id: str
    maker: Literal["proxy", "api"]
    public: bytes
    url: str
    """For a tunnelmux-api: the URL at which people sign in."""


class Visitors(abc.ABC):
    """What proxies and tunnelmux-api share about visitors, of all tenants."""

    @abc.abstractmethod
    async def look_up(
        self, grants: Sequence[tuple[str, str]], *, used: Sequence[tuple[str, str]] = ()
    ) -> list[GrantState]:
        """The current state of these grants, given by kind and id. Those in `used` are noted as
        used, which extends the idle time of a session. A grant that does not exist is not
        living."""

    @abc.abstractmethod
    async def use_ticket(self, ticket_id: str, until: float) -> bool:
        """Whether this ticket is new; it is remembered until then (Unix time)."""

    @abc.abstractmethod
    async def use_link(self, link_id: str, label: str, service: str) -> bool:
        """Whether this link admits one more browser to this service; if so, it is counted."""

    @abc.abstractmethod
    async def publish_key(
        self, key_id: str, public: bytes, *, maker: Literal["proxy", "api"], url: str = ""
    ) -> None:
        """Publish a key, which the other programs trust for a day. Call it again before that."""

    @abc.abstractmethod
    async def withdraw_keys(self, maker: Literal["proxy", "api"], but: Sequence[str]) -> None:
        """Withdraw all keys of this maker but these."""

    @abc.abstractmethod
    async def keys(self) -> list[SigningKey]:
        """The trusted keys, the oldest first."""
