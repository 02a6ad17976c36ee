"""What a browser session holds beside its columns: sign-ins under way, and the provider's tokens.

Both are kept in the registry as sealed bytes (`keys.KeyRing`), so that a copy of the database
gives neither a code verifier nor a token away.
"""

from __future__ import annotations

import msgspec

from tunnelmux.api.browser_sessions.keys import KeyRing, SealedValueRefused
from tunnelmux.api.oidc.provider import Attempt, Tokens
from tunnelmux.json_text import BadJson, read_json

__all__ = ["ATTEMPT_LIFETIME", "KeptTokens", "PendingSignIn", "PendingSignIns"]

ATTEMPT_LIFETIME = 600.0
"""Seconds in which a person has to sign in at the provider."""

_MOST_PENDING = 8
# Tabs of one browser that may be signing in at once; the oldest gives way.


class PendingSignIn(msgspec.Struct, frozen=True):
    """One sign-in that was begun in some tab."""

    state: str
    nonce: str
    verifier: str
    return_to: str
    begun: float
    """Unix time."""

    @property
    def attempt(self) -> Attempt:
        """What the provider's answer has to prove."""
        return Attempt(self.state, self.nonce, self.verifier)


class PendingSignIns:
    """The sign-ins under way in one browser, the oldest first."""

    def __init__(self, items: list[PendingSignIn]) -> None:
        self._items = items

    @classmethod
    def opened(cls, sealed: bytes, keys: KeyRing) -> PendingSignIns:
        """From a session's `pending`; what cannot be opened any more counts as none."""
        if not sealed:
            return cls([])
        try:
            content = keys.open(sealed, "pending")
            return cls(read_json(content, list[PendingSignIn]))
        except (SealedValueRefused, BadJson):
            return cls([])

    def sealed(self, keys: KeyRing) -> bytes:
        """For a session's `pending`."""
        return keys.seal(msgspec.json.encode(self._items), "pending")

    def with_new(self, attempt: Attempt, return_to: str, now: float) -> PendingSignIns:
        """With one more, without the expired ones and without the oldest of too many."""
        new = PendingSignIn(attempt.state, attempt.nonce, attempt.verifier, return_to, now)
        return PendingSignIns([*self._living(now), new][-_MOST_PENDING:])

    def take(self, state: str, now: float) -> tuple[PendingSignIn | None, PendingSignIns]:
        """The one with this state, if it is still good, and the others: each is good once."""
        living = self._living(now)
        found = next((item for item in living if item.state == state), None)
        return found, PendingSignIns([item for item in living if item is not found])

    def _living(self, now: float) -> list[PendingSignIn]:
        return [item for item in self._items if 0 <= now - item.begun < ATTEMPT_LIFETIME]


class KeptTokens(msgspec.Struct, frozen=True):
    """The provider's tokens of a signed-in session."""

    access_token: str
    refresh_token: str | None
    id_token: str | None
    subject: str
    expires: float
    """Unix time at which the access token ends."""

    def __repr__(self) -> str:
        return "<KeptTokens>"

    @classmethod
    def of(cls, tokens: Tokens, subject: str, now: float) -> KeptTokens:
        """What a token answer gave, for keeping."""
        return cls(
            tokens.access_token,
            tokens.refresh_token,
            tokens.id_token,
            subject,
            now + tokens.lifetime,
        )

    @classmethod
    def opened(cls, sealed: bytes, keys: KeyRing) -> KeptTokens | None:
        """From a session's `tokens`; None when there are none that can be opened."""
        if not sealed:
            return None
        try:
            return read_json(keys.open(sealed, "tokens"), cls)
        except (SealedValueRefused, BadJson):
            return None

    def sealed(self, keys: KeyRing) -> bytes:
        """For a session's `tokens`."""
        return keys.seal(msgspec.json.encode(self), "tokens")

    def renewed(self, tokens: Tokens, now: float) -> KeptTokens:
        """After a refresh: what the answer leaves out stays (RFC 6749 section 6)."""
        return KeptTokens(
            tokens.access_token,
            tokens.refresh_token or self.refresh_token,
            tokens.id_token or self.id_token,
            self.subject,
            now + tokens.lifetime,
        )
