"""Access tokens: how programs prove who they are."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.config import Secret
from tunnelmux.registry.ids import Page
from tunnelmux.registry.people import Role

__all__ = ["AccessToken", "AccessTokens", "ProvenToken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A token of a program, made by a member who stands behind it."""

    id: str
    name: str
    user_id: str
    scopes: tuple[str, ...]
    """What it may, as the API names it."""
    role: Role
    """The most it may; never more than its user may at the moment."""
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    last_address: str
    revoked: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenToken:
    """A token that is good, with the tenant it is for and what its user is there now."""

    tenant_id: str
    token: AccessToken
    user_role: Role


class AccessTokens(abc.ABC):
    """The access tokens of this tenant."""

    @abc.abstractmethod
    async def add(
        self,
        name: str,
        *,
        user_id: str,
        role: Role,
        scopes: tuple[str, ...] = (),
        lifetime: float | None = None,
    ) -> tuple[AccessToken, Secret]:
        """A new token, told this once. Raises RegistryRefused `too_much` when the user has less
        than this role, NoSuchRecord when the user is no member."""

    @abc.abstractmethod
    async def page(
        self, *, user_id: str | None = None, limit: int = 50, after: str | None = None
    ) -> Page[AccessToken]:
        """The newest first; of one user only, or of all."""

    @abc.abstractmethod
    async def find(self, token_id: str) -> AccessToken:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def revoke(self, token_id: str) -> AccessToken:
        """End it now; raises NoSuchRecord."""
