"""Texts that one of our programs signs and another verifies, with Ed25519 (RFC 8032).

`PURPOSE.KEY-ID.PAYLOAD.SIGNATURE`, the last two in base64url. The purpose is signed too, so that a
text made for one purpose cannot be used for another, and each kind of program may sign for some
purposes only: a proxy cannot make a ticket, nor tunnelmux-api a cookie.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    # Imported where it is used: it takes 10 MiB, which proxies without a registry need not have.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["MAKERS", "MAX_SIGNED", "Maker", "PublicKeys", "Purpose", "Signer"]

Purpose = Literal["asked", "ticket", "cookie", "link"]
"""What a text is for: the URL a visitor asked for before signing in; the ticket that shows that
they have signed in; the cookie a proxy gives for it; a link.
"""

Maker = Literal["proxy", "api"]

MAKERS: Mapping[Purpose, Maker] = {
    "asked": "proxy",
    "cookie": "proxy",
    "ticket": "api",
    "link": "api",
}
"""The purposes each program may sign for."""

MAX_SIGNED = 4096
"""Characters of such a text; a longer one is refused unread."""


class Signer:
    """A private key that never leaves its process. `key_id` names the public half."""

    def __init__(self, key: Ed25519PrivateKey, key_id: str, maker: Maker) -> None:
        self._key = key
        self.key_id = key_id
        self.maker = maker

    def __repr__(self) -> str:
        return f"<Signer {self.key_id}>"

    @classmethod
    def new(cls, maker: Maker) -> Signer:
        """A signer with a new random key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate(), secrets.token_hex(8), maker)

    @classmethod
    def from_seed(cls, seed: bytes, key_id: str, maker: Maker) -> Signer:
        """The signer of the key that these 32 bytes are the seed of."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.from_private_bytes(seed), key_id, maker)

    @property
    def public(self) -> bytes:
        """The public half, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, purpose: Purpose, payload: Mapping[str, Any]) -> str:
        """The payload as a text that `PublicKeys.read` gives back."""
        assert MAKERS[purpose] == self.maker, purpose
        body = _encode(json.dumps(payload, separators=(",", ":"), ensure_ascii=True).encode())
        text = f"{purpose}.{self.key_id}.{body}"
        return f"{text}.{_encode(self._key.sign(text.encode('ascii')))}"

    def jwt(self, claims: Mapping[str, Any]) -> str:
        """The claims as a JSON Web Token (RFC 7519, RFC 8037), for programs that are not ours."""
        header = {"alg": "EdDSA", "typ": "JWT", "kid": self.key_id}
        parts = (json.dumps(part, separators=(",", ":")).encode() for part in (header, claims))
        text = ".".join(map(_encode, parts))
        return f"{text}.{_encode(self._key.sign(text.encode('ascii')))}"


class PublicKeys:
    """The public keys that are trusted now. `find(key_id)` gives the key and the program it belongs
    to, or None.
    """

    def __init__(self, find: Callable[[str], tuple[bytes, Maker] | None]) -> None:
        self._find = find

    def read(self, purpose: Purpose, text: str) -> dict[str, Any] | None:
        """The payload, if the text was signed for this purpose by a trusted key; else None."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if len(text) > MAX_SIGNED or not text.isascii():
            return None
        signed, _, signature = text.rpartition(".")
        parts = signed.split(".")
        if len(parts) != 3 or parts[0] != purpose:
            return None
        found = self._find(parts[1])
        if found is None or found[1] != MAKERS[purpose]:
            return None
        try:
            Ed25519PublicKey.from_public_bytes(found[0]).verify(
                _decode(signature), signed.encode("ascii")
            )
            payload = json.loads(_decode(parts[2]))
        except (InvalidSignature, ValueError):
            return None
        return payload if isinstance(payload, dict) else None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    """Decode base64url. Only the canonical spelling is accepted, so that no two texts are the same
    signature.
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
    if _encode(data) != text:
        raise ValueError("not the canonical base64url")
    return data
