"""A value that is never shown: tokens, passwords, join strings."""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["Secret", "hash_token"]


class Secret:
    """A string that `repr`, `str`, formatting and pickling never give away.

    `reveal()` is the only way to the text; call it only where the bytes go to the wire or into a
    hash. Two secrets compare in constant time.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Never put it into a message, a log or an exception."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret cannot be pickled or copied: pass the object itself")


def hash_token(token: Secret | str) -> str:
    """The lower-case hexadecimal SHA-256 of a token, as `token_sha256` in proxy.toml holds it.

    Compare two of these with `hmac.compare_digest`.
    """
    text = token.reveal() if isinstance(token, Secret) else token
    return hashlib.sha256(text.encode()).hexdigest()
