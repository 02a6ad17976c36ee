"""Password hashes: scrypt (RFC 7914) in the PHC string format."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from tunnelmux.config.access import PASSWORD_HASH

__all__ = ["DECOY", "MAX_PASSWORD", "hash_password", "is_password"]

MAX_PASSWORD = 256
"""Bytes of a password; a longer one is always refused."""

_LOG_N, _R, _P = 14, 8, 1
# 16 MiB and some 40 ms: what RFC 7914 section 2 suggests for interactive logins.

_MAX_LOG_N, _MAX_R, _MAX_P = 17, 16, 4
# What a hash in a configuration may ask for: 256 MiB.

_SALT_BYTES = 16


def hash_password(password: str) -> str:
    """`$scrypt$ln=14,r=8,p=1$salt$hash` of this password, with a new salt; some 40 ms."""
    salt = os.urandom(_SALT_BYTES)
    digest = _scrypt(password.encode(), salt, _LOG_N, _R, _P, 32)
    return f"$scrypt$ln={_LOG_N},r={_R},p={_P}${_text(salt)}${_text(digest)}"


def is_password(password: bytes, kept: str) -> bool:
    """Whether `kept` is a hash of this password. Takes equally long either way."""
    match = PASSWORD_HASH.fullmatch(kept)
    if match is None or len(password) > MAX_PASSWORD:
        return False
    log_n, r, p = (int(match[index]) for index in (1, 2, 3))
    if not 1 <= log_n <= _MAX_LOG_N or not 1 <= r <= _MAX_R or not 1 <= p <= _MAX_P:
        return False
    salt, wanted = _bytes(match[4]), _bytes(match[5])
    return hmac.compare_digest(_scrypt(password, salt, log_n, r, p, len(wanted)), wanted)


def _scrypt(password: bytes, salt: bytes, log_n: int, r: int, p: int, size: int) -> bytes:
    n = 1 << log_n
    return hashlib.scrypt(
        password, salt=salt, n=n, r=r, p=p, dklen=size, maxmem=256 * r * (n + p + 2)
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


DECOY = f"$scrypt$ln={_LOG_N},r={_R},p={_P}${'A' * 22}${'A' * 43}"
"""A hash that no password matches: checked for unknown names, so that they take as long as known
ones.
"""
