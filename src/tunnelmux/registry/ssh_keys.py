"""The SSH keys of people, and tickets for one session each."""

from __future__ import annotations

import abc
import base64
import binascii
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tunnelmux.config import Secret
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.ssh_rules import CertifiedUser

__all__ = ["PublicKey", "SshKey", "SshKeys", "Ticket", "Tickets", "parse_public_key"]

_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)

_LEAST_RSA_BITS = 2048
# NIST SP 800-131A asks for it since 2014; a common value of OpenSSH's RequiredRSASize.

_LONGEST_LINE = 12_000
# Characters: an RSA key of 16,384 bits has 2,800.


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A public key in OpenSSH's one-line format."""

    kind: str
    data: str
    """Base64 of the key's blob."""
    comment: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: `SHA256:` and unpadded base64."""
        digest = hashlib.sha256(base64.b64decode(self.data)).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")

    @property
    def line(self) -> str:
        """The line for authorized_keys, without the comment."""
        return f"{self.kind} {self.data}"


def parse_public_key(text: str) -> PublicKey:
    """The key in one line of a `.pub` file; raises RegistryRefused `invalid`."""
    parts = text.strip().split(None, 2) if len(text) <= _LONGEST_LINE else []
    if len(parts) < 2 or "\n" in text.strip() or "\r" in text.strip():
        raise _bad("is no SSH public key: paste the one line of ~/.ssh/id_ed25519.pub")
    if parts[0] not in _TYPES:
        if parts[0].startswith("-----BEGIN"):
            raise _bad("looks like a private key, which must stay secret: paste the .pub file")
        raise _bad(f"has the type {parts[0][:40]!r}, which is not accepted: make an ed25519 key")
    try:
        blob = base64.b64decode(parts[1], validate=True)
        fields = _fields(blob)
    except (binascii.Error, struct.error, ValueError):
        raise _bad("is damaged: its base64 does not hold a key") from None
    if len(fields) < 2 or fields[0].decode("latin-1") != parts[0]:
        raise _bad("is damaged: it does not hold a key of the type that it names")
    if parts[0] == "ssh-rsa" and int.from_bytes(fields[2], "big").bit_length() < _LEAST_RSA_BITS:
        raise _bad(f"has fewer than {_LEAST_RSA_BITS} bits: make an ed25519 key")
    comment = "".join(c for c in parts[2] if c.isprintable())[:255] if len(parts) == 3 else ""
    data = base64.b64encode(blob).decode("ascii")
    return PublicKey(kind=parts[0], data=data, comment=comment)


def _fields(blob: bytes) -> list[bytes]:
    """The strings (RFC 4251 section 5) in a key's blob; raises ValueError."""
    found = []
    while blob:
        (size,) = struct.unpack_from(">I", blob)
        if size > len(blob) - 4:
            raise ValueError("a string is longer than the blob")
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    least = 3 if found and found[0] == b"ssh-rsa" else 2
    if len(found) < least:
        raise ValueError("a part is missing")
    return found


def _bad(problem: str) -> RegistryRefused:
    return RegistryRefused(f"the key {problem}", code="invalid", field="key")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshKey:
    """A public key of a user."""

    id: str
    user_id: str
    name: str
    fingerprint: str
    line: str
    created: datetime
    last_used: datetime | None
    last_address: str


class SshKeys(abc.ABC):
    """The SSH keys of all users. A key belongs to one person, in all tenants."""

    @abc.abstractmethod
    async def add(self, user_id: str, key: str, name: str = "") -> SshKey:
        """Raises RegistryRefused `invalid`, `taken`, `too_many`; NoSuchRecord for the user."""

    @abc.abstractmethod
    async def of_user(self, user_id: str) -> list[SshKey]:
        """The newest first."""

    @abc.abstractmethod
    async def find(self, fingerprint: str) -> SshKey | None:
        """The key with this fingerprint, if its user is enabled."""

    @abc.abstractmethod
    async def certified(self, authority: str, principals: Sequence[str]) -> CertifiedUser | None:
        """The user that a certificate names, found by its authority's fingerprint and its
        principals: a member, with one of them as e-mail address, of a tenant that trusts the
        authority. None when there is no such member, or more than one."""

    @abc.abstractmethod
    async def used(self, key_id: str, address: str) -> None:
        """Note a successful log-in with this key."""

    @abc.abstractmethod
    async def remove(self, key_id: str, *, user_id: str) -> None:
        """Delete a key of this user; raises NoSuchRecord."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Allows one SSH session, once, within minutes, without a key."""

    id: str
    tenant_id: str
    user_id: str
    device_id: str
    lease_id: str | None
    """The lease that allows the session; None when the user's role does."""
    expires: datetime


class Tickets(abc.ABC):
    """The tickets of this tenant."""

    @abc.abstractmethod
    async def add(
        self, *, user_id: str, device_id: str, lease_id: str | None = None, lifetime: float = 300.0
    ) -> tuple[Ticket, Secret]:
        """A new ticket and its secret, returned only this once. Raises NoSuchRecord for the device
        and the lease, RegistryRefused `lease_over`, and `invalid` for more than ten minutes."""
