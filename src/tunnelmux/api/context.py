"""The objects that routes use: one `Api` for the application, and views of it for a caller."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from tunnelmux.api.access import Principal, public, signed_in
from tunnelmux.api.browser_sessions.sign_in import SignIn
from tunnelmux.api.commands import CommandBook
from tunnelmux.api.events import EventHub
from tunnelmux.api.identity import Identification, actor_of
from tunnelmux.api.metrics import Metrics
from tunnelmux.api.terminals import Terminals
from tunnelmux.api.visitors import VisitorProofs
from tunnelmux.backend.proxies import Proxies
from tunnelmux.config.api import ApiConfig
from tunnelmux.registry import Actor, Installation, Registry, TenantRegistry

__all__ = [
    "Api",
    "ApiDependency",
    "MaybeSignedIn",
    "Places",
    "SignedIn",
    "installation_for",
    "tenant_for",
]


class Places:
    """Bounds how many callers may do something at once, in all and for each person."""

    def __init__(self, limit: int, per_person: int) -> None:
        self.limit = limit
        self.per_person = per_person
        self.taken = 0
        self._by_person: Counter[str] = Counter()

    def has_room(self, person: str) -> bool:
        """Whether this person may take another place."""
        return self._by_person[person] < self.per_person

    def take(self, person: str) -> bool:
        """Take a place, until `give_back`. False when there is none."""
        if self.taken >= self.limit or not self.has_room(person):
            return False
        self.taken += 1
        self._by_person[person] += 1
        return True

    def give_back(self, person: str) -> None:
        """Give a place of this person back."""
        self.taken -= 1
        self._by_person[person] -= 1
        if not self._by_person[person]:
            del self._by_person[person]


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
    visitors: VisitorProofs
    followers: Places
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
