"""The sessions of the browsers in which people have signed in."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from datetime import datetime

from tunnelmux.config import Secret
from tunnelmux.registry.people import Role

__all__ = ["BrowserSession", "BrowserSessions", "NewBrowserSession", "SignedIn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """One browser in which a person is signed in."""

    id: str
    user_id: str
    user_name: str
    """What its person is called: their name, else their e-mail address, else their subject at the
    provider."""
    tenant_id: str | None
    """The tenant that the person works in now."""
    role: Role | None
    """The role there for which this session's secret was made; see `change_secret`."""
    issuer: str
    provider_session: str
    """The provider's `sid`, for back-channel logout; empty when it gives none."""
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
        self,
        signed_in: SignedIn,
        *,
        idle: float,
        lifetime: float,
        address: str,
        user_agent: str,
        earlier: BrowserSession | None = None,
    ) -> NewBrowserSession:
        """A session with a new secret. It ends after `idle` seconds without use, and in any case
        after `lifetime` seconds. `earlier`, the browser's session until now, ends with its secret.
        Raises RegistryRefused `user_disabled`, or `session_ended` when the provider has ended its
        session already.
        """

    @abc.abstractmethod
    async def find(self, secret: Secret) -> BrowserSession | None:
        """The session of a cookie; None when there is none, it has ended, or its user is disabled.

        Finding it counts as use, which is written at most once a minute.
        """

    @abc.abstractmethod
    async def save(self, session: BrowserSession, *, tokens: bytes) -> BrowserSession | None:
        """Write the provider's new tokens. None, and nothing written, if the session was changed
        since it was read."""

    @abc.abstractmethod
    async def set_place(
        self, session: BrowserSession, *, tenant_id: str | None, role: Role | None
    ) -> BrowserSession | None:
        """Move the session to a tenant, with a role there that allows no more than before.

        None when the session was changed since it was read.
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
        """Whether this key (a token's `jti`, a sign-in's `state`) is new; it is remembered until
        then."""
