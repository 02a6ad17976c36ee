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
    """False: its devices are turned away and its people see why; nothing is lost."""
    created: datetime


class Tenants(abc.ABC):
    """All tenants, for those who run the installation: not bound to one."""

    @abc.abstractmethod
    async def add(self, name: str, *, display_name: str = "", owner: str | None = None) -> Tenant:
        """A new tenant, and the user with the id `owner` its first member, where one is given.
        Raises RegistryRefused, `taken` when there is a tenant of that name, or a device of the
        default tenant that host names could take it for."""

    @abc.abstractmethod
    async def find(self, tenant_id: str) -> Tenant:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def find_named(self, name: str) -> Tenant:
        """Raises NoSuchRecord. The one named `default` is always there."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[Tenant]:
        """Tenants by name."""

    @abc.abstractmethod
    async def change(
        self, tenant_id: str, *, display_name: str | None = None, enabled: bool | None = None
    ) -> Tenant:
        """Change what is given, and leave the rest. Disabling ends its devices' sessions. Raises
        RegistryRefused `default_tenant` for disabling that one: its owners run the installation."""
