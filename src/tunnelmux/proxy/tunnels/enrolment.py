"""Enrolment: a device with an invitation gets its own token."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from tunnelmux.config import Secret, hash_token
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError, TunnelmuxError
from tunnelmux.proxy.tunnels.devices import KnownDevice
from tunnelmux.proxy.tunnels.invitations import Invitations

__all__ = ["Enrolled", "Enrolment", "EnrolmentBusy"]

_TOKEN_BYTES = 32

_REMEMBERED = 8
# Replaced tokens that are kept of each device, so that an agent with one learns why it is refused.

_PATIENCE = 5.0
# Seconds that one enrolment waits for others; each takes milliseconds. Half of handshake_timeout.

_LOOK_AGAIN = 0.05
# Seconds between two tries of the lock: a task cannot wait in the system's own queue for it.


class EnrolmentBusy(TunnelmuxError):
    """Another process has kept the state directory locked. The invitation is not used up."""


class _EnrolledDevice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    name: str
    token_sha256: str
    replaced_sha256: list[str] = []
    """Tokens that later invitations replaced, the latest last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """The result of an enrolment."""

    device: KnownDevice
    token: Secret
    """The device's token from now on."""
    replaced: bool
    """Whether a device of this name had enrolled before; its token is void now."""


class Enrolment:
    """The invitations of a state directory, and the enrolled devices (`devices.json`)."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.invitations = Invitations(state_dir, clock=clock)
        self._file = state_dir / "devices.json"
        self._lock = state_dir / "devices.lock"
        self._writing = trio.Lock()

    def load(self) -> list[KnownDevice]:
        """The enrolled devices. Raises ConfigError when the file is damaged."""
        try:
            content = self._file.read_bytes()
            return [
                KnownDevice(
                    name=entry.name,
                    token_sha256=bytes.fromhex(entry.token_sha256),
                    replaced_sha256=tuple(bytes.fromhex(text) for text in entry.replaced_sha256),
                )
                for entry in msgspec.json.decode(content, type=list[_EnrolledDevice])
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(
                f"{self._file} cannot be read ({error.strerror}): make it readable for the user "
                "this proxy runs as"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{self._file} is damaged ({error}): restore it from a backup, or remove it and "
                "invite each device again"
            ) from None

    async def enrol(self, name: str, invitation: str) -> Enrolled | None:
        """Use the invitation up for this device. None when there is no such invitation. Raises
        InvitationRefused when it is expired or used, NameRefused when it is not for this name or
        the name is taken, and EnrolmentBusy when others keep it waiting.
        """
        enrolled: Enrolled | None = None
        descriptor = await self._wait_turn()
        try:
            # Shielded, because the invitation and the device must be written together; this takes
            # as long as writing two small local files.
            with trio.CancelScope(shield=True):
                enrolled = await trio.to_thread.run_sync(self._enrol, name, invitation)
        finally:
            os.close(descriptor)
            self._writing.release()
        return enrolled

    async def _wait_turn(self) -> int:
        """Keep other enrolments out, those of a proxy's other workers too. Returns what holds the
        lock, for the caller to close before the turn is given back. Raises EnrolmentBusy."""
        try:
            with trio.fail_after(_PATIENCE):
                await self._writing.acquire()
                try:
                    return await _locked(self._lock)
                except BaseException:
                    self._writing.release()
                    raise
        except trio.TooSlowError:
            raise EnrolmentBusy(f"another process keeps {self._lock} locked") from None

    def _enrol(self, name: str, invitation: str) -> Enrolled | None:
        devices = {device.name: device for device in self.load()}
        before = devices.pop(name, None)
        if not self.invitations.use(invitation, name, is_taken=before is not None):
            return None
        token = Secret(secrets.token_urlsafe(_TOKEN_BYTES))
        replaced: tuple[bytes, ...] = ()
        if before is not None:
            replaced = (*before.replaced_sha256, before.token_sha256)[-_REMEMBERED:]
        new = KnownDevice(
            name=name, token_sha256=bytes.fromhex(hash_token(token)), replaced_sha256=replaced
        )
        entries = [
            _EnrolledDevice(
                name=device.name,
                token_sha256=device.token_sha256.hex(),
                replaced_sha256=[digest.hex() for digest in device.replaced_sha256],
            )
            for device in (*devices.values(), new)
        ]
        write_private(self._file, msgspec.json.format(msgspec.json.encode(entries)))
        return Enrolled(device=new, token=token, replaced=before is not None)


async def _locked(path: Path) -> int:
    """A descriptor of this file, locked against other processes that do the same; the caller
    bounds the wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _lock(descriptor):  # noqa: ASYNC110  another process tells nothing
            await trio.sleep(_LOOK_AGAIN)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> bool:
    if sys.platform == "win32":  # there, a proxy is one process
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
