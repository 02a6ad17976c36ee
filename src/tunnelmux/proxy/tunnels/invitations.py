"""Invitations: single-use tokens with which a device enrols, kept as files in the state directory.

`invitations/<SHA-256 of the token>.json` is an open invitation. Using it renames the file to
`….used`; a rename succeeds once, so that of two devices with the same invitation, even in two
processes, one gets in. The token itself is never written down.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tunnelmux.config import Secret
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError, TunnelmuxError

__all__ = ["INVITATION_LIFETIME", "InvitationRefused", "Invitations"]

INVITATION_LIFETIME = 15 * 60.0
"""Seconds. Long enough to walk to the device, short enough that a line left in a terminal or a chat
is soon worth nothing."""

_REMEMBERED = 24 * 3600.0
# Seconds a used or expired invitation is kept, so that whoever tries it again reads why it fails.

_TOKEN_BYTES = 32

_AGAIN = "make another on the proxy with: tunnelmux-proxy invite"


class InvitationRefused(TunnelmuxError):
    """The invitation exists and cannot be used: it is expired, or was used. The message says so."""


class _Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expires_at: float
    """Seconds since the epoch."""


class Invitations:
    """The invitations under one state directory. `clock` answers seconds since the epoch."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = state_dir / "invitations"
        self._clock = clock

    def create(self, lifetime: float = INVITATION_LIFETIME) -> Secret:
        """A new token, good for one enrolment within `lifetime` seconds.

        Raises ConfigError when the state directory cannot be written to.
        """
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        content = msgspec.json.encode(_Invitation(expires_at=self._clock() + lifetime))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._forget_old()
            write_private(self._open_file(token), content)
        except OSError as error:
            raise ConfigError(
                f"no invitation can be stored in {self._folder} ({error.strerror}): run this as "
                "the user the proxy runs as, or name its state directory with --state-dir"
            ) from error
        return Secret(token)

    def use(self, token: str) -> bool:
        """Use the invitation up: True for whoever is first.

        False when no such invitation is known; raises InvitationRefused when it is expired or was
        used already.
        """
        file = self._open_file(token)
        used = file.with_suffix(".used")
        try:
            invitation = msgspec.json.decode(file.read_bytes(), type=_Invitation)
            if invitation.expires_at <= self._clock():
                raise InvitationRefused(f"this invitation has expired: {_AGAIN}")
            # The rename decides who is first: for the second there is nothing left to rename.
            file.rename(used)
        except FileNotFoundError:
            if used.exists():
                raise InvitationRefused(
                    f"this invitation was used already, and each works once: {_AGAIN}"
                ) from None
            return False
        except (OSError, msgspec.DecodeError) as error:
            raise InvitationRefused(
                "the proxy cannot read this invitation; make another with tunnelmux-proxy invite, "
                "as the user the proxy runs as"
            ) from error
        return True

    def _open_file(self, token: str) -> Path:
        return self._folder / f"{hashlib.sha256(token.encode()).hexdigest()}.json"

    def _forget_old(self) -> None:
        for file in self._folder.iterdir():
            try:
                invitation = msgspec.json.decode(file.read_bytes(), type=_Invitation)
                if invitation.expires_at + _REMEMBERED <= self._clock():
                    file.unlink(missing_ok=True)
            except (OSError, msgspec.DecodeError):
                continue  # used by the running proxy this moment, made by root, or not one of ours
