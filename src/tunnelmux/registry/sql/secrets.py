"""Random secrets, which are shown once, and the digests that are kept of them."""

from __future__ import annotations

import hashlib
import secrets

from tunnelmux.config import Secret, hash_token

__all__ = [
    "CODE_LETTERS",
    "digest_of",
    "half_of",
    "new_code",
    "new_secret",
    "normal_code",
]

CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""RFC 8628 section 6.1: no vowels, so no words; no letters that are easily confused."""

_GROUP = 4
_SECRET_BYTES = 32


def new_secret(prefix: str) -> tuple[Secret, str]:
    """A secret of 256 bits and its SHA-256. The prefix shows the kind of a secret that was
    leaked."""
    secret = Secret(f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}")
    return secret, hash_token(secret)


def digest_of(secret: Secret) -> str:
    """The SHA-256 by which a secret is found."""
    return hash_token(secret)


def new_code() -> Secret:
    """A code to read out and type: eight letters in two groups, `BCDF-GHJK` (34 bits)."""
    letters = [secrets.choice(CODE_LETTERS) for _ in range(2 * _GROUP)]
    return Secret("".join(letters[:_GROUP]) + "-" + "".join(letters[_GROUP:]))


def normal_code(code: str) -> str | None:
    """The canonical form of a code as typed (lower case, with spaces); None if it is no code."""
    letters = "".join(code.split()).replace("-", "").upper()
    if len(letters) != 2 * _GROUP or any(letter not in CODE_LETTERS for letter in letters):
        return None
    return letters[:_GROUP] + "-" + letters[_GROUP:]


def half_of(code: str) -> str:
    """The SHA-256 of a code's first half, by which wrong guesses at the second are counted."""
    return hashlib.sha256(code[:_GROUP].encode()).hexdigest()
