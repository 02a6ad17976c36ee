"""The sessions of people's browsers, and the logins that are under way in them."""

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
    user_name: str
    """What its person is called: their name, else their e-mail address, else their subject at the
    provider; empty without a user."""
    tenant_id: str | None
    """The tenant that the person works in now."""
    role: Role | None
    """The role there for which this session's secret was made; see `change_secret`."""
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
    """A sign-in that was just completed in a browser, for its session."""

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
    """All browser sessions. A session can only be found by the SHA-256 of its secret."""

    @abc.abstractmethod
    async def begin(
        self, *, idle: float, lifetime: float, pending: bytes, address: str, user_agent: str
    ) -> NewBrowserSession:
        """A session without a user. It ends after `idle` seconds without use, and in any case after
        `lifetime` seconds.

        Raises RegistryRefused `too_many_sign_ins` when this address has begun too many recently.
        """

    @abc.abstractmethod
    async def find(self, secret: Secret) -> BrowserSession | None:
        """The session of a cookie; None when there is none, it has ended, or its user is disabled.

        Finding it counts as use, which is written at most once a minute.
        """

    @abc.abstractmethod
    async def save(
        self,
        session: BrowserSession,
        *,
        pending: bytes | None = None,
        tokens: bytes | None = None,
    ) -> BrowserSession | None:
        """Write the given fields. None, and nothing written, if the session was changed since it
        was read."""

    @abc.abstractmethod
    async def set_place(
        self, session: BrowserSession, *, tenant_id: str | None, role: Role | None
    ) -> BrowserSession | None:
        """Move the session to a tenant, with a role there that allows no more than before.

        None when the session was changed since it was read.
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
        """Replace this session by a signed-in one, with a new secret (against session fixation).

        The old secret is invalid from then on. None when the old session has ended meanwhile.
        """

    @abc.abstractmethod
    async def change_secret(
        self, session: BrowserSession, *, tenant_id: str | None, role: Role
    ) -> NewBrowserSession | None:
        """Give a session a new secret because the person's role is higher from now on.

        The old secret is invalid from then on. None when the session has ended meanwhile, or its
        tenant or role was changed since it was read: of two requests, one gets the secret.
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
        """End a session; with a `user_id`, only if it is that user's. True when one was ended."""

    @abc.abstractmethod
    async def end_for_provider(
        self, *, issuer: str, subject: str | None, provider_session: str | None
    ) -> int:
        """End the sessions that a back-channel logout names (OpenID Connect Back-Channel Logout
        1.0, 2.6). Returns how many."""

    @abc.abstractmethod
    async def use_once(self, key: str, until: datetime) -> bool:
        """Whether this key (a token's `jti`) is new; it is remembered until then."""
