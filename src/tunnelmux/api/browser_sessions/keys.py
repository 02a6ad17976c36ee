"""The keys of browser sessions: the first signs and encrypts, older ones are still accepted. Four
keys are derived from each key of the file (HKDF, RFC 5869): for the cookie's HMAC, for the AES-GCM
of stored tokens and of begun sign-ins, and for signatures that proxies verify. Cookies and values
name their key by id, so keys can be changed while people are signed in.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tunnelmux.access.signatures import Signer
from tunnelmux.config import InvalidSetting

__all__ = ["KeyRing", "Purpose", "SealedValueRefused", "new_key_line", "read_key_file"]

_LINE = re.compile(r"([A-Za-z0-9_-]{1,32}) ([A-Za-z0-9+/]{43}=)")

_MOST_KEYS = 16

_NONCE_BYTES = 12

Purpose = Literal["tokens", "sign-in"]
"""What is sealed. Each has a key of its own: strangers may have any number of sign-ins sealed."""


class SealedValueRefused(Exception):
    """A stored value was not sealed with any of these keys, or was changed since."""


@dataclass(frozen=True, slots=True, repr=False)
class _Key:
    mac: bytes
    boxes: Mapping[Purpose, AESGCM]
    seed: bytes


class KeyRing:
    """Signs and seals with the first key, checks and opens with any."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ValueError("a key ring needs a key")
        self._keys = {key_id: _derive(key) for key_id, key in keys.items()}
        self._first = next(iter(keys))

    def __repr__(self) -> str:
        return f"<KeyRing of {', '.join(self._keys)}>"

    @property
    def signers(self) -> list[Signer]:
        """The signers of visitors' tickets, one per key; the first is the one to use."""
        return [
            Signer.from_seed(key.seed, f"api-{key_id}", "api") for key_id, key in self._keys.items()
        ]

    def sign(self, text: str) -> str:
        """`text.key-id.mac`; `text` has no dot."""
        return f"{text}.{self._first}.{_mac(self._keys[self._first], text)}"

    def check(self, signed: str) -> str | None:
        """The text that `sign` was given, or None when this is not what it returned."""
        text, _, rest = signed.partition(".")
        key_id, _, mac = rest.partition(".")
        key = self._keys.get(key_id)
        if key is None or not signed.isascii() or not hmac.compare_digest(_mac(key, text), mac):
            return None
        return text

    def seal(self, content: bytes, purpose: Purpose) -> bytes:
        """Encrypt; `purpose` must be the same at `open`, so that values cannot change places."""
        nonce = os.urandom(_NONCE_BYTES)
        header = self._first.encode() + b"."
        box = self._keys[self._first].boxes[purpose]
        return header + nonce + box.encrypt(nonce, content, header + purpose.encode())

    def open(self, sealed: bytes, purpose: Purpose) -> bytes:
        """What was sealed. Raises SealedValueRefused."""
        key_id, dot, rest = sealed.partition(b".")
        key = self._keys.get(key_id.decode("latin-1"))
        if key is None or not dot:
            raise SealedValueRefused("sealed with a key that is not in the key file any more")
        nonce, content = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        try:
            return key.boxes[purpose].decrypt(nonce, content, key_id + dot + purpose.encode())
        except (InvalidTag, ValueError) as exc:
            raise SealedValueRefused("not what was sealed") from exc


def new_key_line() -> str:
    """A line for the top of a key file."""
    key = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
    return f"{secrets.token_hex(4)} {key}\n"


def read_key_file(key: str, path: Path) -> KeyRing:
    """The keys of a file with one `ID KEY` a line. Raises InvalidSetting for the setting `key`."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        problem = exc.strerror if isinstance(exc, OSError) else "it is not text"
        message = f"{path} cannot be read ({problem}): make it with `tunnelmux-api keys new`"
        raise InvalidSetting(key, message) from None
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        if (match := _LINE.fullmatch(line.strip())) is None or match[1] in keys:
            message = f"line {number} of {path} is not a key of its own: write `ID KEY`, as made by"
            raise InvalidSetting(key, f"{message} `tunnelmux-api keys new`")
        try:
            keys[match[1]] = base64.b64decode(match[2], validate=True)
        except binascii.Error:
            raise InvalidSetting(key, f"line {number} of {path} is no base64") from None
    if not 1 <= len(keys) <= _MOST_KEYS:
        message = f"{path} has {len(keys)} keys: it takes from 1 to {_MOST_KEYS}"
        raise InvalidSetting(key, message)
    return KeyRing(keys)


def _mac(key: _Key, text: str) -> str:
    digest = hmac.digest(key.mac, text.encode("utf-8", "replace"), "sha256")
    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def _derive(key: bytes) -> _Key:
    def derived(purpose: bytes) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(key)

    return _Key(
        derived(b"tunnelmux cookie"),
        {
            "tokens": AESGCM(derived(b"tunnelmux tokens")),
            "sign-in": AESGCM(derived(b"tunnelmux sign-ins")),
        },
        derived(b"tunnelmux visitors"),
    )
