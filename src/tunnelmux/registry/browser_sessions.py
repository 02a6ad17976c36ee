"""The sessions of people's browsers, and what is pending in them."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from datetime import datetime

from tunnelmux.config import Secret
from tunnelmux.registry.people import Role

__all__ = ["BrowserSession", "BrowserSessions", "NewBrowserSession", "SignedIn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """One browser. Without a user it only carries logins that are under way."""

    id: str
    user_id: str | None
    tenant_id: str | None
    """The tenant the person works in at the moment."""
    role: Role | None
    """The person's role there as far as this session's secret gives it; see `change_secret`."""
    issuer: str
    provider_session: str
    """The provider's `sid`, for back-channel logout; empty when it gives none."""
    pending: bytes = field(repr=False)
    """The logins under way, as the API wrote them; opaque here."""
    tokens: bytes = field(repr=False)
    """The provider's tokens, encrypted by the API; opaque here."""
    version: int
    """Grows with each change; `save` compares it."""
    address: str
    user_agent: str
    created: datetime
    last_seen: datetime
    idle_ends: datetime
    ends: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """Who has just signed in in a browser, as its session is to hold it."""

    user_id: str
    tenant_id: str | None
    role: Role | None
    """The role in that tenant, for which the new secret is made."""
    issuer: str
    provider_session: str
    tokens: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBrowserSession:
    """A session and the secret that its cookie carries."""

    session: BrowserSession
    secret: Secret


class BrowserSessions(abc.ABC):
    """All browser sessions. Found by the SHA-256 of their secret only."""

    @abc.abstractmethod
    async def begin(
        self, *, idle: float, lifetime: float, pending: bytes, address: str, user_agent: str
    ) -> NewBrowserSession:
        """A session of no user yet; it ends after `idle` seconds without use, `lifetime` at all.

        Raises RegistryRefused `too_many_sign_ins` when its address began too many lately.
        """

    @abc.abstractmethod
    async def find(self, secret: Secret) -> BrowserSession | None:
        """The session of a cookie; None when there is none, it has ended, or its user is disabled.

        Being found counts as use, written at most once a minute.
        """

    @abc.abstractmethod
    async def save(
        self,
        session: BrowserSession,
        *,
        pending: bytes | None = None,
        tokens: bytes | None = None,
    ) -> BrowserSession | None:
        """Write what is given, unless the session was written since it was read: then None."""

    @abc.abstractmethod
    async def set_place(
        self, session: BrowserSession, *, tenant_id: str | None, role: Role | None
    ) -> BrowserSession | None:
        """Put the session into a tenant, with a role there that gives no more than before.

        None when the session was written since it was read.
        """

    @abc.abstractmethod
    async def renew(
        self,
        session: BrowserSession,
        signed_in: SignedIn,
        *,
        pending: bytes,
        idle: float,
        lifetime: float,
    ) -> NewBrowserSession | None:
        """Put a signed-in session in the place of this one, under a new secret (session fixation).

        The old secret is worth nothing from then on. None when the old one has ended meanwhile.
        """

    @abc.abstractmethod
    async def change_secret(
        self, session: BrowserSession, *, tenant_id: str | None, role: Role
    ) -> NewBrowserSession | None:
        """Give a session whose person has a higher role from now on another secret.

        The old one is worth nothing from then on. None when the session has ended meanwhile, or
        its tenant or role was changed since it was read: of two requests, one gets the secret.
        """

    @abc.abstractmethod
    async def claim_refresh(self, session: BrowserSession, seconds: float) -> bool:
        """Whether the caller is the one to refresh this session's tokens for the next `seconds`.
        False when the session was written since it was read: its tokens may be new ones."""

    @abc.abstractmethod
    async def of_user(self, user_id: str) -> list[BrowserSession]:
        """The living sessions of a user, the newest first."""

    @abc.abstractmethod
    async def end(self, session_id: str, *, user_id: str | None = None) -> bool:
        """End a session, only if it is this user's where one is given; whether there was one."""

    @abc.abstractmethod
    async def end_for_provider(
        self, *, issuer: str, subject: str | None, provider_session: str | None
    ) -> int:
        """End what a back-channel logout names (OpenID Connect Back-Channel Logout 1.0, 2.6)."""

    @abc.abstractmethod
    async def use_once(self, key: str, until: datetime) -> bool:
        """Whether this key (a token's `jti`) is new; it is remembered until then."""
