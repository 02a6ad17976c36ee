"""What a browser session holds beside its columns: the provider's tokens.

They are kept in the registry as sealed bytes (`keys.KeyRing`), so that a copy of the database gives
no token away.
"""

from __future__ import annotations

import msgspec

from tunnelmux.api.browser_sessions.keys import KeyRing, SealedValueRefused
from tunnelmux.api.oidc.provider import Tokens
from tunnelmux.json_text import BadJson, read_json

__all__ = ["KeptTokens"]


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
