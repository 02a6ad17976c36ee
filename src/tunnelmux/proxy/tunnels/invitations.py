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
from tunnelmux.json_text import BadJson, read_json

__all__ = ["INVITATION_LIFETIME", "InvitationRefused", "Invitations", "NameRefused"]

INVITATION_LIFETIME = 15 * 60.0
"""Seconds. Long enough to walk to the device, short enough that a line left in a terminal or a chat
soon expires.
"""

_REMEMBERED = 24 * 3600.0
# Seconds for which a used or expired invitation is kept, to tell why it fails.

_TOKEN_BYTES = 32

_AGAIN = "make another on the proxy with: tunnelmux-proxy invite"


class InvitationRefused(TunnelmuxError):
    """The invitation is expired or was used already; the message says which."""


class NameRefused(TunnelmuxError):
    """The invitation is valid, but not for a device of that name. It was not used up."""


class _Invitation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    expires_at: float
    """Seconds since the epoch."""

    replaces: str | None = None
    """The only device it is for, which may have enrolled before."""

    suggests: str | None = None
    """The device name in the line to paste; the next invitation gets another."""


class Invitations:
    """The invitations under one state directory. `clock` answers seconds since the epoch."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = state_dir / "invitations"
        self._clock = clock

    def create(
        self,
        lifetime: float = INVITATION_LIFETIME,
        *,
        replaces: str | None = None,
        suggests: str | None = None,
    ) -> Secret:
        """A new token, valid for one enrolment within `lifetime` seconds. With `replaces` it is
        only for the device of that name, whose earlier enrolment it replaces. Without, it is for
        any free name; `suggested` includes the name `suggests` while the invitation is open.

        Raises ConfigError when the state directory cannot be written to.
        """
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        expires_at = self._clock() + lifetime
        content = msgspec.json.encode(
            _Invitation(expires_at=expires_at, replaces=replaces, suggests=suggests)
        )
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

    def suggested(self) -> set[str]:
        """The names that open invitations suggest."""
        names = set()
        for file in self._folder.glob("*.json"):
            try:
                invitation = read_json(file.read_bytes(), _Invitation)
            except (OSError, BadJson):
                continue  # the running proxy has just used it, or the file is not ours
            if invitation.suggests is not None and invitation.expires_at > self._clock():
                names.add(invitation.suggests)
        return names

    def knows(self, token: str) -> bool:
        """Whether this is the token of an invitation that is open, or was until recently."""
        file = self._open_file(token)
        return file.exists() or file.with_suffix(".used").exists()

    def use(self, token: str, name: str, *, is_taken: bool) -> bool:
        """Use the invitation up for a device of this name: True for the first caller.

        `is_taken` says whether a device of this name has enrolled before. False when no such
        invitation is known. Raises InvitationRefused when it is expired or was used already, and
        NameRefused when it is not for this name.
        """
        file = self._open_file(token)
        used = file.with_suffix(".used")
        try:
            invitation = read_json(file.read_bytes(), _Invitation)
            if invitation.expires_at <= self._clock():
                raise InvitationRefused(f"this invitation has expired: {_AGAIN}")
            _check_name(invitation, name, is_taken=is_taken)
            # The rename decides who is first: the second finds no file.
            file.rename(used)
        except FileNotFoundError:
            if used.exists():
                raise InvitationRefused(
                    f"this invitation was used already, and each works once: {_AGAIN}"
                ) from None
            return False
        except (OSError, BadJson) as error:
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
                invitation = read_json(file.read_bytes(), _Invitation)
                if invitation.expires_at + _REMEMBERED <= self._clock():
                    file.unlink(missing_ok=True)
            except (OSError, BadJson):
                continue  # the proxy has just used it, root made it, or it is not ours


def _check_name(invitation: _Invitation, name: str, *, is_taken: bool) -> None:
    replaces = invitation.replaces
    if replaces is not None and replaces != name:
        raise NameRefused(
            f'this invitation is for the device "{replaces}" and no other: set device.name to '
            "that, or make one for a new device on the proxy with: tunnelmux-proxy invite"
        )
    if replaces is None and is_taken:
        raise NameRefused(
            f'a device "{name}" has enrolled already: set another device.name, or make an '
            "invitation that replaces it on the proxy with: "
            f"tunnelmux-proxy invite --replace {name}"
        )
