"""Finds who makes a request: a person by the cookie, or a program by the access token."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from starlette.requests import HTTPConnection

from tunnelmux.api.access import Principal, Role, is_public
from tunnelmux.api.browser_sessions.cookie import shown_cookie
from tunnelmux.api.browser_sessions.sign_in import SignIn
from tunnelmux.api.problems import Refused, registry_refusal
from tunnelmux.config import Secret
from tunnelmux.errors import RegistryError
from tunnelmux.registry import Actor, BrowserSession, Registry
from tunnelmux.registry.people import Role as RoleName

__all__ = ["Identification", "actor_of", "credential_of", "session_of"]

_TOKEN_LENGTH = 512
# Characters: ours are much shorter, and a longer one need not be looked up in the registry.


class Identification:
    """Finds the Principal of a request. An access token is looked at before the cookie."""

    def __init__(self, registry: Registry, sign_in: SignIn) -> None:
        self._registry = registry
        self._sign_in = sign_in

    async def __call__(
        self, connection: HTTPConnection, proven: Callable[[], object] = lambda: None
    ) -> Principal | None:
        """The Principal; None without valid credentials. `proven` is called as soon as the
        credential is known to be good: to find the role can take longer. Raises Refused when that
        cannot be found out now."""
        try:
            authorization = connection.headers.get("authorization")
            if authorization is not None:
                return await self._of_token(connection, authorization)
            return await self._of_cookie(connection, proven)
        except RegistryError as exc:
            raise registry_refusal(exc) from exc

    async def _of_token(self, connection: HTTPConnection, authorization: str) -> Principal | None:
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token.isascii() or len(token) > _TOKEN_LENGTH:
            return None
        address = _address_of(connection)
        proven = await self._registry.prove_token(Secret(token), address=address)
        if proven is None:
            return None
        return Principal(
            user_id=proven.token.user_id,
            tenant_id=proven.tenant_id,
            role=min(Role.parse(proven.token.role), Role.parse(proven.user_role)),
            scopes=frozenset(proven.token.scopes),
            token_id=proven.token.id,
            name=proven.token.name,
            address=address,
        )

    async def _of_cookie(
        self, connection: HTTPConnection, proven: Callable[[], object]
    ) -> Principal | None:
        session = await self._sign_in.session_of(shown_cookie(connection))
        if session is None:
            return None
        proven()  # the provider may take its time now
        if not await self._sign_in.keep_fresh(session):
            return None
        followed = await self._sign_in.follow_role(
            session,
            await self._role_of(session),
            # Not for a WebSocket: its refusal may have no fields, and so no cookie. Not for public
            # paths: a shared cache may keep the answer, and signing in reads the cookie itself.
            can_set_cookie=connection.scope["type"] == "http"
            and not is_public(connection.url.path),
        )
        role = followed.role
        connection.scope["state"]["browser_session"] = followed.session
        if followed.cookie is not None:
            connection.scope["state"]["new_cookie"] = followed.cookie
        return Principal(
            user_id=session.user_id,
            tenant_id=session.tenant_id if role is not None else None,
            role=Role.parse(role) if role is not None else None,
            session_id=session.id,
            name=session.user_name,
            address=_address_of(connection),
        )

    async def _role_of(self, session: BrowserSession) -> RoleName | None:
        """Read from the registry for each request, so that a revoked role ends at once."""
        if session.tenant_id is None:
            return None
        tenant = self._registry.tenant(session.tenant_id, Actor.program("tunnelmux-api"))
        return await tenant.members.role_of(session.user_id)


def credential_of(connection: HTTPConnection) -> bytes | None:
    """The digest of the credential in a request, which may be invalid; None without one."""
    shown = connection.headers.get("authorization") or shown_cookie(connection)
    return hashlib.sha256(shown.encode("utf-8", "replace")).digest() if shown else None


def actor_of(principal: Principal) -> Actor:
    """The same caller as an actor of the audit."""
    if principal.token_id is not None:
        return Actor(
            kind="token",
            id=principal.token_id,
            behind=principal.user_id,
            name=principal.name,
            address=principal.address,
        )
    return Actor(kind="user", id=principal.user_id, name=principal.name, address=principal.address)


def _address_of(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client is not None else ""


def session_of(connection: HTTPConnection) -> BrowserSession:
    """The browser session of a request that came by cookie. Raises Refused for a program."""
    session: BrowserSession | None = connection.scope["state"].get("browser_session")
    if session is None:
        message = "This is for a person in a browser; an access token has no session."
        raise Refused(403, "no_browser_session", message)
    return session
