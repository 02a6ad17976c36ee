"""Tenants: the organisations that everything belongs to."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.registry.ids import Page

__all__ = ["Tenant", "Tenants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An organisation. `name` is its part of host names and never changes."""

    id: str
    name: str
    display_name: str
    enabled: bool
    """When False, its devices cannot connect and its people are told why; no data is lost."""
    created: datetime


class Tenants(abc.ABC):
    """All tenants, for the people who run the installation."""

    @abc.abstractmethod
    async def add(self, name: str, *, display_name: str = "", owner: str | None = None) -> Tenant:
        """A new tenant. The user with the id `owner`, if given, becomes its first member. Raises
        RegistryRefused `taken` when a tenant, or a device of the default tenant, has that name."""

    @abc.abstractmethod
    async def find(self, tenant_id: str) -> Tenant:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def find_named(self, name: str) -> Tenant:
        """Raises NoSuchRecord. The tenant `default` always exists."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[Tenant]:
        """Tenants by name."""

    @abc.abstractmethod
    async def change(
        self, tenant_id: str, *, display_name: str | None = None, enabled: bool | None = None
    ) -> Tenant:
        """Change the given fields only. Disabling a tenant ends its devices' sessions. Raises
        RegistryRefused `default_tenant` when that one would be disabled: its owners run the
        installation."""
