"""The access rules of routes. A route without one cannot be registered.

Two rules hold everywhere. A request without a proven identity gets 401 on every path that is not in
`PUBLIC_PATHS`; the gate (`gate.py`) checks that before any routing. And each route names the lowest
role that may call it, with exactly one `need(…)`; `AccessRoute` raises an error without one.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection

from tunnelmux.api.problems import Refused
from tunnelmux.api.route_tree import leaves

__all__ = [
    "PUBLIC_PATHS",
    "SCOPES",
    "AccessRoute",
    "Need",
    "Principal",
    "Role",
    "is_public",
    "need",
    "public",
    "require",
    "required_access",
    "seal",
    "signed_in",
]

PUBLIC_PATHS = frozenset(
    {
        "/api/auth/login",
        "/api/auth/callback",
        "/api/auth/backchannel-logout",
        "/api/auth/terminal",
        "/api/auth/terminal/poll",
        "/terminal",
        "/invitation",
        "/static/{version}/{name}",
        "/api/access/keys",
        "/api/access/sign-in",
        "/api/pairing/exchange",
        "/api/pairing/install",
        "/api/pairing/requests",
        "/api/pairing/requests/poll",
        "/api/health",
        "/api/ready",
        "/api/openapi.json",
    }
)
"""Paths that need no identity: signing in, pairing (which needs a code), health, public keys, the
page of an invitation's link, and the console's files."""

_ASSET = re.compile(r"/static/[0-9a-f]{12}/[a-z0-9.-]+")

_DEVICE_KEY = re.compile(r"/api/devices/[^/]+/ssh-keys")
# A device's SSH key comes with a proof in the body, which the route checks.

SCOPES = {
    "self": "who the token is, and where it may work",
    "tenant": "read and change the tenant's own settings",
    "tenants": "list, make and disable tenants, for an owner of the tenant default",
    "members": "list, invite and remove people, and change their roles",
    "devices:read": "list devices and look at them",
    "access": "say who may visit the services of devices, and make links to them",
    "devices:write": "add, change, disable, revoke and remove devices",
    "pairing": "let devices in: codes, requests, install keys",
    "leases": "ask for, approve, end and read leases",
    "recordings": "list recordings of SSH sessions and look at them",
    "sessions": "list and close the tunnels of devices",
    "forward": "reach the services of devices",
    "exec": "run commands on devices",
    "events": "follow what happens",
    "requests": "watch the requests of visitors to devices",
    "logs": "read the logs of devices' agents",
    "inspect": "keep requests to a service for a while, with heads and bodies, and repeat them",
    "tokens": "list and revoke access tokens",
    "audit": "read the audit",
}
"""What an access token may be limited to, and what each scope means."""


class Role(enum.IntEnum):
    """What a person may do in a tenant; each role may do all that the lower ones may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3
    OWNER = 4

    @classmethod
    def parse(cls, name: str) -> Role:
        """The role of this lower-case name; raises KeyError."""
        return cls[name.upper()]

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The caller: a person in a browser, or a program with an access token."""

    user_id: str
    tenant_id: str | None
    """The tenant it acts in; None for a person without any membership."""
    role: Role | None
    scopes: frozenset[str] | None = None
    """The scopes of an access token; None for a person in a browser, who is not limited so."""
    session_id: str | None = None
    """The browser session, when the caller came by cookie."""
    token_id: str | None = None
    """The access token, when the caller came by one."""
    name: str = ""
    """Its name in the audit."""
    address: str = ""
    """The address of the caller, found past trusted proxies."""

    @property
    def is_browser(self) -> bool:
        """Whether it came by cookie, which a browser adds to every request."""
        return self.session_id is not None


class Need:
    """A dependency: the caller has at least this role, and its access token this scope."""

    def __init__(self, role: Role | None, scope: str | None) -> None:
        assert scope is None or scope in SCOPES, scope
        self.role = role
        self.scope = scope

    async def __call__(self, connection: HTTPConnection) -> Principal | None:
        principal: Principal | None = connection.scope["state"].get("principal")
        if self.role is None and self.scope is None:
            return principal
        return require(principal, self.role, self.scope)


def require(principal: Principal | None, role: Role | None, scope: str | None) -> Principal:
    """The caller, if it may do this; raises Refused otherwise. For public routes that accept an
    identity as one of several proofs; all other routes use `need`."""
    if principal is None:
        raise Refused(401, "not_signed_in", "Sign in, or send an access token.")
    if scope is not None and principal.scopes is not None:
        _check_scope(scope, principal.scopes)
    if role is not None:
        _check_role(role, principal)
    return principal


def _check_scope(scope: str, scopes: frozenset[str]) -> None:
    if scope not in scopes:
        message = f'This access token lacks the scope "{scope}": make one that has it.'
        raise Refused(403, "insufficient_scope", message)


def _check_role(least: Role, principal: Principal) -> None:
    if principal.role is None:
        message = "You are signed in, and a member of no tenant: ask an owner for an invitation."
        raise Refused(403, "no_tenant", message)
    if principal.role < least:
        message = f"This needs the role {least}; yours is {principal.role}."
        raise Refused(403, "insufficient_role", message)


def need(role: Role, scope: str) -> Any:
    """For a parameter of a route: the Principal, who has at least this role and, with an access
    token, this scope."""
    return Depends(Need(role, scope))


def signed_in(scope: str = "self") -> Any:
    """For a parameter of a route: the Principal, member of a tenant or not."""
    return Depends(Need(None, scope))


def public() -> Any:
    """For a parameter of a route on `PUBLIC_PATHS`: the Principal, or None."""
    return Depends(Need(None, None))


def is_public(path: str) -> bool:
    """Whether this path of a request needs no identity."""
    patterns = (_ASSET, _DEVICE_KEY)
    return path in PUBLIC_PATHS or any(pattern.fullmatch(path) for pattern in patterns)


class AccessRoute(APIRoute):
    """A route with an access rule, whose functions all run on Trio, not in threads.

    Raises TypeError when it is made without one, or with a synchronous function.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        check_access(path, self.dependant)


def check_access(path: str, dependant: Dependant) -> None:
    """Raise TypeError unless exactly one `need(…)` is among the route's dependencies."""
    called = [inner.call for inner in _tree(dependant) if inner.call is not None]
    needs = [call for call in called if isinstance(call, Need)]
    if len(needs) != 1:
        raise TypeError(f"{path}: say who may call it, by exactly one need(…)")
    is_open = needs[0].role is None and needs[0].scope is None
    if is_open != is_public(path):
        raise TypeError(f"{path}: it is public, or on PUBLIC_PATHS, but not both")
    for call in called:
        if not _is_asynchronous(call):
            raise TypeError(f"{path}: {call!r} is synchronous and would run in Trio's own threads")


def required_access(route: object) -> Need:
    """The access rule of a registered route."""
    dependant: Dependant = route.dependant  # type: ignore[attr-defined]
    return next(inner.call for inner in _tree(dependant) if isinstance(inner.call, Need))


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _tree(inner)


def _is_asynchronous(call: Any) -> bool:
    method = getattr(call, "__call__", None)  # noqa: B004  an instance's, to look at it
    return (
        inspect.isclass(call)
        or inspect.iscoroutinefunction(call)
        or inspect.isasyncgenfunction(call)
        or inspect.iscoroutinefunction(method)
        or inspect.isasyncgenfunction(method)
    )


def seal(app: FastAPI) -> FastAPI:
    """Return the app after a check that all its routes are AccessRoutes; raises TypeError."""
    for route in leaves(app.routes):
        if isinstance(route, APIWebSocketRoute):
            check_access(route.path, route.dependant)
        elif not isinstance(route, AccessRoute):
            raise TypeError(f"{route!r} was not registered as an AccessRoute")
    return app
