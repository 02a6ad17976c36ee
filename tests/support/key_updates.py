"""A TLS 1.3 client that asks its peer for new keys without end (KeyUpdate, RFC 8446 section 4.6.3).
Python's own TLS cannot, so the records are made here with the keys that it logs."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KeyUpdates"]

_HANDSHAKE, _DATA = 22, 23
_UPDATE_REQUESTED = bytes([24, 0, 0, 1, 1])


class KeyUpdates:
    """What an end sends once it has *sent* so many records after its handshake by other means.
    *log* is the file that a context's `keylog_filename` names. The cipher suite is
    TLS_AES_256_GCM_SHA384, the first one of OpenSSL."""

    def __init__(self, log: Path, end: str = "CLIENT", *, sent: int = 0) -> None:
        (line,) = [
            line
            for line in log.read_text("ascii").splitlines()
            if line.startswith(f"{end}_TRAFFIC_SECRET_0 ")
        ]
        self._use(bytes.fromhex(line.split()[2]))
        self._number = sent

    def ask(self, count: int) -> bytes:
        """So many of them."""
        return b"".join(self._update() for _ in range(count))

    def data(self, data: bytes, padding: int = 0) -> bytes:
        """A record with data, or with none, and so many bytes of padding (section 5.4)."""
        return self._record(_DATA, data, padding)

    def _update(self) -> bytes:
        record = self._record(_HANDSHAKE, _UPDATE_REQUESTED)
        self._use(self._derive(b"traffic upd", hashlib.sha384().digest_size))
        return record

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(self._derive(b"key", 32))
        self._iv = int.from_bytes(self._derive(b"iv", 12), "big")
        self._number = 0

    def _derive(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label of RFC 8446 section 7.1, with an empty context."""
        name = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
        return hmac.digest(self._secret, info + b"\1", "sha384")[:size]

    def _record(self, kind: int, content: bytes, padding: int = 0) -> bytes:
        content += bytes([kind]) + bytes(padding)
        head = b"\x17\x03\x03" + (len(content) + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return head + self._key.encrypt(nonce, content, head)
