"""A code that a person reads out, and the SSH key that is derived from it.

The device shows the code and puts the public half of the key into an account; the person who is
told the code derives the private half. Nothing else passes between the two, and no server learns
either. 80 bits and scrypt (RFC 7914 section 2) make guessing expensive even with the public half.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass, field

from tunnelmux.config import Secret

__all__ = ["DerivedKey", "derive_key", "new_code", "normal_code"]

_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Crockford's base32: without I, L, O and U.

_TAKEN_FOR = str.maketrans({"I": "1", "L": "1", "O": "0"})

_LENGTH = 16
_GROUP = 4

_COST, _BLOCK, _PARALLEL = 2**16, 8, 1


def new_code() -> Secret:
    """16 letters in four groups, 80 bits."""
    return Secret(_grouped("".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))))


def normal_code(text: str) -> Secret | None:
    """The canonical form of a code as people type it (lower case, spaces, O for 0); None when it is
    invalid.
    """
    letters = "".join(text.split()).replace("-", "").upper().translate(_TAKEN_FOR)
    if len(letters) != _LENGTH or any(letter not in _LETTERS for letter in letters):
        return None
    return Secret(_grouped(letters))


def _grouped(letters: str) -> str:
    return "-".join(letters[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


@dataclass(frozen=True, slots=True)
class DerivedKey:
    """An Ed25519 key as OpenSSH writes it."""

    private: Secret = field(repr=False)
    public: str
    """`ssh-ed25519` and its base64."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint, as `ssh-keygen -l` prints it."""
        digest = hashlib.sha256(base64.b64decode(self.public.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def derive_key(code: Secret, lease_id: str, serial: str) -> DerivedKey:
    """The key of a code in its normal form, for one lease of the device of this serial number.

    Takes a quarter of a second of the processor and 64 MiB: call it in a thread.
    """
    # Imported here: this takes longer than the agent takes to connect.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # hashlib may have none
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    salt = f"{lease_id}\n{serial.strip().casefold()}".encode()
    stretched = Scrypt(salt=salt, length=32, n=_COST, r=_BLOCK, p=_PARALLEL)
    seed = stretched.derive(code.reveal().replace("-", "").encode("ascii"))
    key = Ed25519PrivateKey.from_private_bytes(seed)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return DerivedKey(Secret(private.decode("ascii")), public.decode("ascii"))
