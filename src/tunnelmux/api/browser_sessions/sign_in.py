"""Signing in, staying signed in, and signing out: the browser's side of OpenID Connect.

A signed-in browser holds one cookie, `__Host-tunnelmux`: an opaque id under an HMAC. The id changes
when a person signs in or gets a higher role (session fixation, OWASP ASVS V3.2.1), and the old one
is worth nothing from then on. Until then a sign-in is in the browser only (`begun.BegunSignIn`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from tunnelmux.api.browser_sessions.begun import SIGN_IN_TIME, BegunSignIn
from tunnelmux.api.browser_sessions.cookie import ended_cookie, session_cookie
from tunnelmux.api.browser_sessions.keys import KeyRing
from tunnelmux.api.browser_sessions.state import KeptTokens
from tunnelmux.api.oidc.claims import memberships_of
from tunnelmux.api.oidc.provider import Attempt, OIDCError, Provider, ProviderAway, Tokens
from tunnelmux.api.problems import Refused
from tunnelmux.config import Secret
from tunnelmux.config.api import BrowserSessionConfig, OIDCConfig
from tunnelmux.errors import RegistryError, RegistryRefused
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.registry import (
    ROLES,
    Actor,
    BrowserSession,
    Membership,
    NewBrowserSession,
    Registry,
)
from tunnelmux.registry.browser_sessions import SignedIn
from tunnelmux.registry.people import Role
from tunnelmux.transports.admission import source_of

__all__ = ["Followed", "Landing", "Shown", "SignIn"]

_log = get_logger("api.sign_in")

_LOCAL_PATH = re.compile(r"/(?![/\\])[^\x00-\x20\\\x7f]*")
# A path on this server and nothing that a browser could read as another host.

_REFRESH_AHEAD = 30.0
# Seconds before a token ends at which it is refreshed.

_REFRESH_CLAIM = 30.0
# Seconds for which one process has the right to refresh; more than the provider's time limit.

_SAVES = 20
# Attempts at a change when other requests change the same session at the same moment.

_MOST_RETURN = 2048
# Bytes: a browser takes 4096 of a cookie, and a sealed one is half as long again.


@dataclass(frozen=True, slots=True)
class Shown:
    """What a browser shows of itself: the session's cookie, those of sign-ins it began (by name),
    its address and its `User-Agent`."""

    cookie: str | None
    begun: Mapping[str, str] = field(repr=False)
    address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a browser goes next, with the Set-Cookie fields that it gets."""

    url: str
    set_cookies: list[str] = field(default_factory=list, repr=False)
    is_new: bool = False
    """Whether it has a new session."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A session, the role that it gives, and a new value for `COOKIE`, if its browser gets one."""

    session: BrowserSession
    role: Role | None
    cookie: str | None = None


class SignIn:
    """All browsers' sessions of one installation."""

    def __init__(
        self,
        registry: Registry,
        provider: Provider,
        keys: KeyRing,
        oidc: OIDCConfig,
        config: BrowserSessionConfig,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._installation = registry.installation(Actor.program("tunnelmux-api"))
        self._sessions = self._installation.browser_sessions
        self.provider = provider
        """The OpenID provider."""
        self._keys = keys
        self._oidc = oidc
        self._config = config
        self._now = now
        self._lines_refused = RepeatedLines("sign-in refused")
        self._lines_away = RepeatedLines("provider away")
        self._finishing: set[str] = set()  # states: the provider must not see a code twice

    async def session_of(self, cookie: str | None) -> BrowserSession | None:
        """The living session of a cookie's value."""
        secret = self._keys.check(cookie) if cookie else None
        return await self._sessions.find(Secret(secret)) if secret else None

    async def begin(self, shown: Shown, return_to: str) -> Landing:
        """The provider's page for a new sign-in. `return_to` is where the browser goes after it;
        what is no path on this server counts as `/`. Nothing of it is kept here."""
        too_long = len(return_to.encode("utf-8", "replace")) > _MOST_RETURN
        if too_long or not _LOCAL_PATH.fullmatch(return_to):
            return_to = "/"
        attempt = Attempt.new()
        try:
            url = await self.provider.authorization_url(attempt)
        except ProviderAway as exc:
            raise self._provider_away(exc) from exc
        begun = BegunSignIn(attempt.state, attempt.nonce, attempt.verifier, return_to, self._now())
        return Landing(url, begun.set_cookies(shown.begun, self._keys))

    async def finish(self, shown: Shown, query: Mapping[str, str]) -> Landing:
        """Sign the person in with the provider's answer.

        Raises Refused: `stale_sign_in` when this browser began no such sign-in or has ended it,
        `sign_in_failed` when the answer must not be believed, `provider_away`, `user_disabled`.
        """
        session = await self.session_of(shown.cookie)
        begun = BegunSignIn.found(shown.begun, query.get("state", ""), self._now(), self._keys)
        if begun is not None and begun.state not in self._finishing:
            self._finishing.add(begun.state)
            try:
                landing = await self._finish(session, shown, query, begun)
            finally:
                self._finishing.discard(begun.state)
            if landing is not None:
                return landing
        if session is not None:
            return Landing("/")  # a valid session wins over a stale state
        message = (
            "This sign-in was not begun in this browser, or has ended, or took too long: begin "
            "again at /api/auth/login."
        )
        raise Refused(400, "stale_sign_in", message)

    async def _finish(
        self,
        session: BrowserSession | None,
        shown: Shown,
        query: Mapping[str, str],
        begun: BegunSignIn,
    ) -> Landing | None:
        """Exchange the provider's answer; None when this sign-in was used before. The use is
        written down only after the provider has named a person, so that strangers add no rows."""
        try:
            tokens, claims = await self.provider.exchange(query, begun.attempt)
        except ProviderAway as exc:
            raise self._provider_away(exc) from exc
        except OIDCError as exc:
            if self._lines_refused.may_write(source_of(shown.address)):
                _log.warning("sign-in refused", address=shown.address, problem=str(exc))
            raise Refused(400, "sign_in_failed", f"The sign-in failed: {exc}.") from exc
        until = _moment(begun.begun + 2 * SIGN_IN_TIME)
        if not await self._sessions.use_once(f"sign-in {begun.state}", until):
            return None
        try:
            user = await self._installation.users.sign_in(
                issuer=self.provider.issuer,
                subject=claims["sub"],
                email=_verified_email(claims),
                name=_text(claims, "name") or _text(claims, "preferred_username"),
                claims=memberships_of(claims, self._oidc),
            )
            memberships = await self._installation.users.memberships(user.id)
            tenant_id = _choose(memberships, session.tenant_id if session is not None else None)
            new = await self._sessions.begin(
                SignedIn(
                    user_id=user.id,
                    tenant_id=tenant_id,
                    role=_open_roles(memberships).get(tenant_id or ""),
                    issuer=self.provider.issuer,
                    provider_session=_whole_text(claims, "sid"),
                    tokens=KeptTokens.of(tokens, claims["sub"], self._now()).sealed(self._keys),
                ),
                idle=self._config.idle,
                lifetime=self._config.lifetime,
                address=shown.address,
                user_agent=shown.user_agent,
                earlier=session,
            )
        except RegistryRefused as exc:
            raise Refused(403, exc.code, f"{exc}.") from exc
        _log.info("signed in", user=user.id, session=new.session.id)
        fields = [session_cookie(self._cookie(new)), ended_cookie(begun.name)]
        return Landing(begun.return_to, fields, is_new=True)

    async def keep_fresh(self, session: BrowserSession) -> bool:
        """Refresh the session's tokens when they end soon; whether the session goes on.

        One caller of all processes does it and the others go on meanwhile. It is not cut by its
        caller: a provider that has rotated the refresh token would not take the old one again.
        """
        kept = KeptTokens.opened(session.tokens, self._keys)
        if kept is None or kept.refresh_token is None:
            return True
        if kept.expires - self._now() > _REFRESH_AHEAD:
            return True
        if not await self._sessions.claim_refresh(session, _REFRESH_CLAIM):
            return True
        return await self._refresh(session, kept, kept.refresh_token)

    async def _refresh(self, session: BrowserSession, kept: KeptTokens, refresh_token: str) -> bool:
        with trio.CancelScope(shield=True):  # bounded by the time limits of provider and registry
            try:
                tokens = await self.provider.refresh(refresh_token)
                await self._take_over_claims(tokens, kept.subject)
            except ProviderAway as exc:
                _log.warning("tokens not refreshed", session=session.id, problem=str(exc))
                return True  # the session has ends of its own
            except (OIDCError, RegistryRefused) as exc:
                _log.info("session ended by the provider", session=session.id, problem=str(exc))
                await self._sessions.end(session.id)
                return False
            await self._keep(session, kept.renewed(tokens, self._now()))
        return True

    async def _keep(self, session: BrowserSession, kept: KeptTokens) -> None:
        """Write new tokens, also when a tab changed the session since it was read."""
        sealed = kept.sealed(self._keys)
        current: BrowserSession | None = session
        for _ in range(_SAVES):
            if current is None or await self._sessions.save(current, tokens=sealed) is not None:
                return
            living = await self._sessions.of_user(session.user_id)
            current = next((item for item in living if item.id == session.id), None)

    async def _take_over_claims(self, tokens: Tokens, subject: str) -> None:
        """Roles that the provider took back are gone with the next refresh."""
        if tokens.id_token is None:
            return
        claims = await self.provider.check_refreshed(tokens.id_token, subject)
        await self._installation.users.sign_in(
            issuer=self.provider.issuer,
            subject=subject,
            email=_verified_email(claims),
            name=_text(claims, "name") or _text(claims, "preferred_username"),
            claims=memberships_of(claims, self._oidc),
        )

    async def choose_tenant(self, session: BrowserSession, tenant_id: str) -> str | None:
        """Go on in another tenant of which the person is a member: the cookie to set, where they
        may more there. Raises Refused 404."""
        memberships = await self._installation.users.memberships(session.user_id)
        roles = _open_roles(memberships)
        if tenant_id not in roles:
            raise Refused(404, "not_found", "There is no such tenant, or you are no member of it.")
        role = roles[tenant_id]
        if _is_higher(role, session.role):
            return await self.rise(session, tenant_id, role)
        if await self._sessions.set_place(session, tenant_id=tenant_id, role=role) is None:
            raise Refused(409, "changed_meanwhile", "The session changed meanwhile: try again.")
        return None

    async def rise(self, session: BrowserSession, tenant_id: str, role: Role) -> str:
        """Go on in this tenant with more rights than before, under another id (ASVS V3.2.1): the
        cookie to set. Raises Refused when the session has ended."""
        new = await self._sessions.change_secret(session, tenant_id=tenant_id, role=role)
        if new is None:
            raise Refused(409, "changed_meanwhile", "The session changed meanwhile: try again.")
        return self._cookie(new)

    async def follow_role(
        self, session: BrowserSession, role: Role | None, *, can_set_cookie: bool
    ) -> Followed:
        """What a session gives whose person now has `role` in its tenant.

        A lower role counts at once. A higher one comes with another id, which the old one gives
        way to: the cookie to set. Until a request can set it, the role of before goes on.
        """
        if role == session.role:
            return Followed(session, role)
        try:
            if not _is_higher(role, session.role):
                lowered = await self._sessions.set_place(
                    session, tenant_id=session.tenant_id, role=role
                )
                return Followed(lowered or session, role)
            if role is None or not can_set_cookie:
                return Followed(session, session.role)
            new = await self._sessions.change_secret(
                session, tenant_id=session.tenant_id, role=role
            )
        except RegistryError as exc:
            _log.warning("role of a browser session not written", problem=str(exc))
            lower = session.role if _is_higher(role, session.role) else role
            return Followed(session, lower)
        if new is None:
            return Followed(session, session.role)
        _log.info("id of browser session renewed", session=session.id, role=role)
        return Followed(new.session, role, self._cookie(new))

    async def end(self, session: BrowserSession) -> str | None:
        """Sign out here; the page at which the browser signs out at the provider, if it has one."""
        await self._sessions.end(session.id)
        _log.info("signed out", user=session.user_id, session=session.id)
        kept = KeptTokens.opened(session.tokens, self._keys)
        try:
            return await self.provider.logout_url(kept.id_token if kept is not None else None)
        except ProviderAway:
            return None

    async def end_for_provider(self, logout_token: str) -> int:
        """Back-channel logout; how many sessions ended. Raises Refused 400."""
        try:
            claims = await self.provider.check_logout_token(logout_token)
        except ProviderAway as exc:
            raise self._provider_away(exc) from exc
        except OIDCError as exc:
            raise Refused(400, "logout_token_refused", f"{exc}.") from exc
        until = _moment(float(claims["exp"]) + self._oidc.clock_skew)
        if not await self._sessions.use_once(f"logout {claims['jti']}", until):
            raise Refused(400, "logout_token_refused", "This logout token was used already.")
        return await self._sessions.end_for_provider(
            issuer=self.provider.issuer,
            subject=_whole_text(claims, "sub") or None,
            provider_session=_whole_text(claims, "sid") or None,
        )

    def _provider_away(self, exc: ProviderAway) -> Refused:
        if self._lines_away.may_write(self.provider.issuer):
            _log.warning("provider away", problem=str(exc))
        message = "The sign-in provider does not answer: try again in a moment."
        return Refused(502, "provider_away", message, headers={"retry-after": "5"})

    def _cookie(self, new: NewBrowserSession) -> str:
        return self._keys.sign(new.secret.reveal())


def _open_roles(memberships: list[Membership]) -> dict[str, Role]:
    return {item.tenant_id: item.role for item in memberships if item.tenant_enabled}


def _is_higher(role: Role | None, than: Role | None) -> bool:
    """Whether a role gives more than another; None is no role at all."""
    return role is not None and (than is None or ROLES.index(role) > ROLES.index(than))


def _choose(memberships: list[Membership], wish: str | None) -> str | None:
    """The tenant a person works in after signing in: the last one, or the first there is."""
    open_ones = [item.tenant_id for item in memberships if item.tenant_enabled]
    return wish if wish in open_ones else next(iter(open_ones), None)


def _text(claims: Mapping[str, object], name: str) -> str:
    return _whole_text(claims, name)[:320]


def _whole_text(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) else ""


def _verified_email(claims: Mapping[str, object]) -> str:
    """The e-mail address of a person, where the provider has verified it; else empty. Many
    providers let people enter any address."""
    return _text(claims, "email") if claims.get("email_verified") is True else ""


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
