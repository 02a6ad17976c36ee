"""The objects that routes use: one `Api` for the application, and views of it for a caller."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends
from starlette.requests import HTTPConnection

from tunnelmux.api.access import Principal, public, signed_in
from tunnelmux.api.browser_sessions.sign_in import SignIn
from tunnelmux.api.commands import CommandBook
from tunnelmux.api.events import EventHub
from tunnelmux.api.identity import Identification, actor_of
from tunnelmux.api.metrics import Metrics
from tunnelmux.api.rights import Rights
from tunnelmux.api.terminals import Terminals
from tunnelmux.api.visitors import VisitorProofs
from tunnelmux.backend.proxies import Proxies
from tunnelmux.config.api import ApiConfig
from tunnelmux.limits import most_of_one_tenant
from tunnelmux.registry import DEFAULT_TENANT, Actor, Installation, Registry, TenantRegistry

__all__ = [
    "Api",
    "ApiDependency",
    "MaybeSignedIn",
    "Places",
    "Shares",
    "SignedIn",
    "installation_for",
    "tenant_for",
]


class Shares:
    """Tells tenants that have a share of the places from the default tenant, which may take all
    (`limits.most_of_one_tenant`)."""

    def __init__(self, registry: Registry) -> None:
        self._tenants = registry.installation(Actor.program("tunnelmux-api")).tenants
        self._default = ""

    async def whose(self, principal: Principal) -> str:
        """The id of the caller's tenant; empty for the default one. Raises RegistryError."""
        if not self._default:  # it never gets another one
            self._default = (await self._tenants.find_named(DEFAULT_TENANT)).id
        tenant = principal.tenant_id
        return "" if tenant is None or tenant == self._default else tenant


class Places:
    """Bounds how many callers may do something at once, in all, and for each person and tenant."""

    def __init__(self, limit: int, per_person: int) -> None:
        self.limit = limit
        self.per_person = per_person
        self.taken = 0
        self.per_tenant = most_of_one_tenant(limit)
        self._by_person: Counter[str] = Counter()
        self._by_tenant: Counter[str] = Counter()

    def take(self, person: str, tenant: str) -> Literal["", "person", "tenant", "all"]:
        """Take a place, until `give_back`. Answers who has no place left; empty where it is taken.
        `tenant` is empty for the default one."""
        if self._by_person[person] >= self.per_person:
            return "person"
        if tenant and self._by_tenant[tenant] >= self.per_tenant:
            return "tenant"
        if self.taken >= self.limit:
            return "all"
        self.taken += 1
        self._by_person[person] += 1
        self._by_tenant[tenant] += 1
        return ""

    def give_back(self, person: str, tenant: str) -> None:
        """Give a place of this person back."""
        self.taken -= 1
        for count, key in ((self._by_person, person), (self._by_tenant, tenant)):
            count[key] -= 1
            if not count[key]:
                del count[key]


@dataclass(frozen=True, slots=True)
class Api:
    """The parts of a running API."""

    config: ApiConfig
    registry: Registry
    sign_in: SignIn
    proxies: Proxies
    commands: CommandBook
    hub: EventHub
    identification: Identification
    rights: Rights
    visitors: VisitorProofs
    followers: Places
    shares: Shares
    metrics: Metrics
    terminals: Terminals

    @property
    def installation(self) -> Installation:
        """The registry's records that belong to no tenant, for reading."""
        return self.registry.installation(Actor.program("tunnelmux-api"))


async def _api(connection: HTTPConnection) -> Api:
    api: Api = connection.app.state.api
    return api


ApiDependency = Annotated[Api, Depends(_api)]
"""For a parameter of a route: the running API."""

MaybeSignedIn = Annotated[Principal | None, public()]
SignedIn = Annotated[Principal, signed_in()]


def tenant_for(api: Api, principal: Principal) -> TenantRegistry:
    """The registry of the caller's tenant, with the caller as the actor."""
    assert principal.tenant_id is not None  # `need(role, …)` has checked it
    return api.registry.tenant(principal.tenant_id, actor_of(principal))


def installation_for(api: Api, principal: Principal) -> Installation:
    """The registry's records that belong to no tenant, with the caller as the actor."""
    return api.registry.installation(actor_of(principal))
