"""Signing a terminal in: it shows a code, and the person confirms it in a browser.

The flow is RFC 8628's, with tunnelmux-api as the authorization server. The secret that the terminal
polls with becomes its access token at the moment of the approval, so no token is ever sent.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tunnelmux.config import Secret
from tunnelmux.registry.people import Role
from tunnelmux.registry.tokens import AccessToken

__all__ = ["TerminalApprovals", "TerminalRequest", "TerminalRequests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalRequest:
    """A terminal that wants to be signed in."""

    id: str
    state: Literal["open", "approved", "denied"]
    client: str
    """Its description of itself, `ada@laptop`: for people to read, not proof of anything."""
    address: str
    """The address that it asked from."""
    created: datetime
    expires: datetime


class TerminalRequests(abc.ABC):
    """Signing in, for the terminal; no call names a person."""

    @abc.abstractmethod
    async def ask(
        self, *, client: str, address: str, earlier: Secret | None = None
    ) -> tuple[TerminalRequest, Secret, Secret]:
        """A new request, the code to show, and the secret to poll with.

        `earlier` is the token of the terminal's last sign-in, which may have expired: then the
        budget is that of the person, so that no neighbour at the same address uses it up.

        Raises RegistryRefused `too_many_requests`.
        """

    @abc.abstractmethod
    async def poll(self, secret: Secret) -> TerminalRequest:
        """The state of the request. When `approved`, the secret is now an access token.

        Raises RegistryRefused: `access_denied`, `expired_token`, `request_unknown`.
        """


class TerminalApprovals(abc.ABC):
    """Signing in, for a person who works in this tenant."""

    @abc.abstractmethod
    async def find(self, code: str) -> TerminalRequest:
        """The request of the waiting terminal that shows this code.

        Raises RegistryRefused: `code_unknown`, `code_expired`, `code_used`, `too_many_guesses`.
        """

    @abc.abstractmethod
    async def approve(
        self, code: str, *, user_id: str, role: Role, scopes: tuple[str, ...], lifetime: float
    ) -> AccessToken:
        """Make the terminal's secret an access token of this member, for `lifetime` seconds; raises
        like `find`."""

    @abc.abstractmethod
    async def deny(self, code: str) -> None:
        """Refuse the terminal; raises like `find`."""
