"""Users, what they may do in which tenant, and how they are invited."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunnelmux.config import Secret
from tunnelmux.registry.ids import Page

__all__ = [
    "ROLES",
    "Invitation",
    "Invitations",
    "Member",
    "Members",
    "Membership",
    "Role",
    "User",
    "Users",
]

Role = Literal["viewer", "operator", "admin", "owner"]

ROLES: tuple[Role, ...] = ("viewer", "operator", "admin", "owner")
"""From the least to the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person, as one OIDC provider knows them: (issuer, subject). The e-mail proves nothing."""

    id: str
    issuer: str
    subject: str
    email: str
    name: str
    enabled: bool
    created: datetime
    last_sign_in: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a user is in one tenant."""

    tenant_id: str
    tenant_name: str
    tenant_enabled: bool
    role: Role
    source: Literal["grant", "claim"]
    """`claim`: the provider says so at each sign-in, and may take it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A user as a member of the tenant that was asked."""

    user: User
    role: Role
    source: Literal["grant", "claim"]
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A role that waits for the person it is meant for."""

    id: str
    email: str
    role: Role
    issuer: str | None
    """With it, signing in there with this verified e-mail gives the role, without a link."""
    created: datetime
    expires: datetime
    used_by: str | None
    revoked: bool


class Users(abc.ABC):
    """All users: a person may be in several tenants."""

    @abc.abstractmethod
    async def sign_in(
        self,
        *,
        issuer: str,
        subject: str,
        email: str = "",
        name: str = "",
        claims: dict[str, Role] | None = None,
    ) -> User:
        """The user of this issuer and subject, made at the first sign-in.

        `claims` are the roles that the provider gives, by tenant name: they replace all that came
        from claims before; names of no tenant are left out. Invitations for this issuer and e-mail
        are redeemed when the provider has verified the e-mail. Raises RegistryRefused
        `user_disabled`.
        """

    @abc.abstractmethod
    async def find(self, user_id: str) -> User:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def memberships(self, user_id: str) -> list[Membership]:
        """In which tenants this user is what, by tenant name."""

    @abc.abstractmethod
    async def set_enabled(self, user_id: str, enabled: bool) -> User:
        """A disabled user cannot sign in; all browser sessions and access tokens end."""

    @abc.abstractmethod
    async def grant(
        self,
        tenant_id: str,
        role: Role,
        *,
        issuer: str,
        subject: str | None = None,
        email: str | None = None,
        force: bool = False,
    ) -> User | Invitation:
        """Give a role from outside, by subject or (at the next sign-in) by verified e-mail.

        For the first owner: raises RegistryRefused `has_owner` when the tenant has one and `force`
        is not set.
        """

    @abc.abstractmethod
    async def accept_invitation(self, user_id: str, secret: Secret) -> Membership:
        """Redeem the link of an invitation for this user, once.

        Raises RegistryRefused: `invitation_unknown`, `invitation_expired`, `invitation_used`.
        A role the user has already is never lowered by it.
        """


class Members(abc.ABC):
    """Who belongs to this tenant."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[Member]:
        """Members in the order in which they joined."""

    @abc.abstractmethod
    async def role_of(self, user_id: str) -> Role | None:
        """What this user is here; None when nothing, or disabled."""

    @abc.abstractmethod
    async def set_role(self, user_id: str, role: Role) -> Member:
        """Raises NoSuchRecord when the user is no member, RegistryRefused `last_owner`."""

    @abc.abstractmethod
    async def remove(self, user_id: str) -> None:
        """Ends the user's access tokens of this tenant too; raises as `set_role`."""


class Invitations(abc.ABC):
    """Invitations of people into this tenant."""

    @abc.abstractmethod
    async def add(
        self, email: str, role: Role, *, lifetime: float, issuer: str | None = None
    ) -> tuple[Invitation, Secret]:
        """A new one and the secret of its link, good for `lifetime` seconds and one person."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[Invitation]:
        """The newest first, used and expired ones included."""

    @abc.abstractmethod
    async def revoke(self, invitation_id: str) -> None:
        """Raises NoSuchRecord; one that was used already stays as it is."""
