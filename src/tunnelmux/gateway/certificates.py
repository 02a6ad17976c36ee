"""The certificates with which the gateway logs in to devices' sshd, each good for some minutes.

Each tenant has an authority of its own, which signs them. All are derived (HKDF, RFC 5869) from one
key in a file, so nothing has to be stored for a tenant, and one authority tells nothing about
another.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncssh
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tunnelmux.config import InvalidSetting, Secret
from tunnelmux.config.token_file import read_token_file

__all__ = ["Authorities", "Identity", "new_authority_key"]

_KEY = re.compile(r"[0-9a-f]{64}")

_LIFETIME = 300
# Seconds. Each log-in makes a certificate and uses it at once; sshd looks at it only then.

_BACKDATED = 60
# Seconds by which a device's clock may be behind.


def new_authority_key() -> str:
    """The line for a new file of `[ssh] authority_file`."""
    return secrets.token_hex(32) + "\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """The person a certificate is made for. sshd writes it into its log as the certificate's id."""

    actor: str
    lease: str
    """The lease's id; empty where the person's role is enough."""

    @property
    def text(self) -> str:
        """`actor=… lease=…`, in printable ASCII without blanks inside."""
        actor = "".join(c if "!" <= c <= "~" else "_" for c in self.actor)[:128]
        return f"actor={actor} lease={self.lease or '-'}"


class Authorities:
    """The authorities of all tenants."""

    def __init__(self, file: Path) -> None:
        """Raises InvalidSetting when the file does not hold a key."""
        self._key: Secret = read_token_file("authority_file", file, _check_key)

    def public_line(self, tenant_id: str, tenant_name: str) -> str:
        """The line for a device's TrustedUserCAKeys."""
        line: bytes = self._authority(tenant_id).export_public_key()
        key = " ".join(line.decode("ascii").split()[:2])
        return f"{key} tunnelmux-{tenant_name}"

    def certify(
        self,
        tenant_id: str,
        account: str,
        identity: Identity,
        now: datetime,
        *,
        agent: bool = False,
        x11: bool = False,
    ) -> tuple[Any, Any]:
        """A new key and the certificate by which it may log in to `account`, for some minutes.
        `agent` and `x11`: sshd may forward them."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        at = int(now.timestamp())
        certificate = self._authority(tenant_id).generate_user_certificate(
            key,
            identity.text,
            serial=secrets.randbits(63),
            principals=[account],
            valid_after=at - _BACKDATED,
            valid_before=at + _LIFETIME,
            permit_x11_forwarding=x11,
            permit_agent_forwarding=agent,
            permit_port_forwarding=False,
            permit_user_rc=False,
        )
        return key, certificate

    def _authority(self, tenant_id: str) -> Any:
        seed = HKDF(
            algorithm=hashes.SHA256(),
            length=32,
            salt=b"tunnelmux ssh authority",
            info=tenant_id.encode("ascii"),
        ).derive(bytes.fromhex(self._key.reveal()))
        private = Ed25519PrivateKey.from_private_bytes(seed)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        return asyncssh.import_private_key(pem)


def _check_key(key: str, text: str) -> None:
    if not _KEY.fullmatch(text):
        raise InvalidSetting(
            key, "must hold one line of 64 hexadecimal digits: make it with `keys new-authority`"
        )
