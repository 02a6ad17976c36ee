"""Users, their roles in tenants, and invitations."""

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
"""From the lowest to the highest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person, identified by (issuer, subject) of an OIDC provider, never by the e-mail."""

    id: str
    issuer: str
    subject: str
    email: str
    name: str
    enabled: bool
    created: datetime
    last_sign_in: datetime | None

    @property
    def called(self) -> str:
        """What people call it; where the provider tells neither name nor e-mail, the subject."""
        return (self.name or self.email or self.subject)[:255]


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A user's role in one tenant."""

    tenant_id: str
    tenant_name: str
    tenant_enabled: bool
    role: Role
    source: Literal["grant", "claim"]
    """`claim`: the provider states the role at each sign-in, and may stop doing so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of the tenant in question."""

    user: User
    role: Role
    source: Literal["grant", "claim"]
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A role for a person who has not accepted it yet."""

    id: str
    email: str
    role: Role
    issuer: str | None
    """If given, a sign-in there with this verified e-mail gives the role without the link."""
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
        """The user of this issuer and subject; created at the first sign-in.

        `claims` are the roles that the provider gives, by tenant name. They replace all earlier
        roles from claims; unknown tenants are left out. Invitations for this issuer and e-mail are
        redeemed if the provider has verified the e-mail. Raises RegistryRefused `user_disabled`.
        """

    @abc.abstractmethod
    async def find(self, user_id: str) -> User:
        """Raises NoSuchRecord."""

    @abc.abstractmethod
    async def memberships(self, user_id: str) -> list[Membership]:
        """This user's roles in all tenants, sorted by tenant name."""

    @abc.abstractmethod
    async def set_enabled(self, user_id: str, enabled: bool) -> User:
        """Enable or disable a user. A disabled one cannot sign in, and all browser sessions and
        access tokens end."""

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
        """Give a role although no member of the tenant does: by subject at once, or by verified
        e-mail at the next sign-in. The first owner of a tenant is made so.

        Raises RegistryRefused `has_owner` when the tenant has an owner and `force` is not set.
        """

    @abc.abstractmethod
    async def accept_invitation(self, user_id: str, secret: Secret) -> Membership:
        """Redeem the link of an invitation for this user, once. It never lowers a role.

        Raises RegistryRefused: `invitation_unknown`, `invitation_expired`, `invitation_used`.
        """


class Members(abc.ABC):
    """The members of this tenant."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[Member]:
        """Members in the order in which they joined."""

    @abc.abstractmethod
    async def role_of(self, user_id: str) -> Role | None:
        """This user's role here; None when the user has none, or is disabled."""

    @abc.abstractmethod
    async def set_role(self, user_id: str, role: Role) -> Member:
        """Raises NoSuchRecord when the user is no member, RegistryRefused `last_owner`."""

    @abc.abstractmethod
    async def remove(self, user_id: str) -> None:
        """Remove a member, and end the member's access tokens of this tenant; raises like
        `set_role`."""


class Invitations(abc.ABC):
    """Invitations of people into this tenant."""

    @abc.abstractmethod
    async def add(
        self, email: str, role: Role, *, lifetime: float, issuer: str | None = None
    ) -> tuple[Invitation, Secret]:
        """A new invitation and the secret of its link, valid for `lifetime` seconds and one
        person."""

    @abc.abstractmethod
    async def page(self, *, limit: int = 50, after: str | None = None) -> Page[Invitation]:
        """The newest first, also used and expired ones."""

    @abc.abstractmethod
    async def revoke(self, invitation_id: str) -> None:
        """Revoke an invitation; a used one does not change. Raises NoSuchRecord."""
