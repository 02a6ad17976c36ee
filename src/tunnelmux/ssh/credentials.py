"""How to log in: the credentials of a request as options of the SSH library."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncssh
import trio

from tunnelmux.commands import CommandRequest
from tunnelmux.ssh.failure import SshFailure

__all__ = ["LoginKey", "PasswordOnce", "login_key", "login_options"]

_DIGEST_KEY = secrets.token_bytes(32)
"""Makes the digests that a pool keeps of credentials useless to anyone who reads them."""


@dataclass(frozen=True, slots=True)
class LoginKey:
    """The key of a connection: commands with the same one may share it."""

    host: str
    port: int
    username: str
    credential: bytes = field(repr=False)
    """A keyed digest: the pool keeps the credential itself only while it logs in."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def login_key(request: CommandRequest) -> LoginKey:
    """The key of the connections that this request may use."""
    digest = hashlib.blake2b(key=_DIGEST_KEY)
    for secret in (request.password, request.private_key, request.passphrase):
        text = secret.reveal() if secret is not None else None
        _feed(digest, text)
    _feed(digest, request.certificate)
    return LoginKey(
        request.host.lower().rstrip("."), request.port, request.username, digest.digest()
    )


def _feed(digest: Any, text: str | None) -> None:
    data = b"" if text is None else text.encode("utf-8")
    digest.update(b"%d:" % (-1 if text is None else len(data)) + data)


class PasswordOnce:
    """The password of one login. A server gets it once, in whichever way it asks.

    Sent twice, it would count as two wrong guesses, and accounts are locked after a few. And the
    second question may be for a new password.
    """

    def __init__(self, request: CommandRequest) -> None:
        self._password = request.password

    @property
    def is_there(self) -> bool:
        """Whether there is a password that was not given yet."""
        return self._password is not None

    def take(self) -> str | None:
        """The password, or None when there is none or it was given before."""
        password, self._password = self._password, None
        return password.reveal() if password is not None else None

    def answer(self, prompts: Sequence[tuple[str, bool]]) -> list[str] | None:
        """The answers to a keyboard-interactive request (RFC 4256 section 3.2), or None.

        A single prompt whose answer is not shown asks for the password, in whatever language. A
        request without prompts only shows a message, and gets no answers.
        """
        if not prompts:
            return []
        if len(prompts) > 1:
            return None
        prompt, is_shown = prompts[0]
        if is_shown and not any(word in prompt.lower() for word in ("password", "passcode")):
            return None
        password = self.take()
        return None if password is None else [password]


async def login_options(request: CommandRequest) -> dict[str, Any]:
    """Options for asyncssh that offer the request's credentials and no others.

    Raises SshFailure ("bad-key") when the key or its certificate cannot be used.
    """
    options: dict[str, Any] = {
        "username": request.username,
        "password": None,  # PasswordOnce has it
        "client_keys": None,
        "agent_path": None,
        "gss_auth": False,
        "gss_kex": False,
        "gss_host": None,
        "host_based_auth": False,
    }
    if request.private_key is not None:
        # Decrypting a key can take long: its maker chose how many rounds of bcrypt.
        options["client_keys"] = await trio.to_thread.run_sync(
            _load_key, request, abandon_on_cancel=True
        )
    return options


def _load_key(request: CommandRequest) -> list[Any]:
    assert request.private_key is not None
    passphrase = request.passphrase.reveal() if request.passphrase is not None else None
    text = request.private_key.reveal().strip() + "\n"
    if "PRIVATE KEY-----" not in text:
        raise SshFailure(
            "bad-key",
            "the privateKey is not a private key: give all of it, in OpenSSH's format or PEM",
        )
    try:
        key = asyncssh.import_private_key(text, passphrase)
    except asyncssh.KeyEncryptionError:
        raise SshFailure("bad-key", "the passphrase of the privateKey is wrong") from None
    except (ValueError, asyncssh.Error):
        # The library's text is left out: an error about a key must not show a part of it.
        if passphrase is None:
            hint = "it is damaged, of an unknown kind, or encrypted and there is no passphrase"
        else:
            hint = "it is damaged, of an unknown kind, or the passphrase is wrong"
        raise SshFailure("bad-key", f"the privateKey cannot be read: {hint}") from None
    if request.certificate is None:
        return [key]
    try:
        certificate = asyncssh.import_certificate(request.certificate)
    except (ValueError, asyncssh.Error):
        raise SshFailure(
            "bad-key", "the certificate cannot be read: give the one line of a -cert.pub file"
        ) from None
    if certificate.key.public_data != key.public_data:
        raise SshFailure("bad-key", "the certificate is for another key than the privateKey")
    return [(key, certificate)]
