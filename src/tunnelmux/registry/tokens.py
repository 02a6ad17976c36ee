"""Access tokens, by which programs authenticate."""

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
    """A token for a program, made by a member and limited to the member's role."""

    id: str
    name: str
    user_id: str
    scopes: tuple[str, ...]
    """What it may do, in the API's names."""
    role: Role
    """Its highest role; it never has a higher one than its user has now."""
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    last_address: str
    revoked: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenToken:
    """A valid token, with its tenant and its user's current role there."""

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
        """A new token and its text, returned only this once. Raises RegistryRefused `too_much` when
        the user's role is lower than this one, NoSuchRecord when the user is no member."""

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
