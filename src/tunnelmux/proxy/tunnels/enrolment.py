"""How a device that has an invitation becomes one that may connect."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from tunnelmux.config import Secret, hash_token
from tunnelmux.config.private_file import write_private
from tunnelmux.errors import ConfigError
from tunnelmux.proxy.tunnels.devices import KnownDevice
from tunnelmux.proxy.tunnels.invitations import Invitations

__all__ = ["Enrolment"]

_TOKEN_BYTES = 32


class _EnrolledDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    token_sha256: str


class Enrolment:
    """The invitations of a state directory, and the devices that used one (`devices.json`)."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.invitations = Invitations(state_dir, clock=clock)
        self._file = state_dir / "devices.json"
        self._writing = trio.Lock()

    def load(self) -> list[KnownDevice]:
        """The devices that enrolled so far. Raises ConfigError when the file is damaged."""
        try:
            content = self._file.read_bytes()
            devices = msgspec.json.decode(content, type=list[_EnrolledDevice])
            return [
                KnownDevice(name=device.name, token_sha256=bytes.fromhex(device.token_sha256))
                for device in devices
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

    async def enrol(self, name: str, invitation: str) -> tuple[KnownDevice, Secret] | None:
        """Use the invitation up for this device; its entry and the token it is to use from now on.

        A device that had enrolled under that name before is replaced. None when there is no such
        invitation; raises InvitationRefused when it is expired or used.
        """
        # Shielded, because a used invitation and the device it was used for belong together;
        # two small local files bound how long that takes.
        with trio.CancelScope(shield=True):
            async with self._writing:
                enrolled = await trio.to_thread.run_sync(self._enrol, name, invitation)
        return enrolled

    def _enrol(self, name: str, invitation: str) -> tuple[KnownDevice, Secret] | None:
        if not self.invitations.use(invitation):
            return None
        token = Secret(secrets.token_urlsafe(_TOKEN_BYTES))
        new = KnownDevice(name=name, token_sha256=bytes.fromhex(hash_token(token)))
        kept = [device for device in self.load() if device.name != name]
        entries = [
            _EnrolledDevice(device.name, device.token_sha256.hex()) for device in (*kept, new)
        ]
        write_private(self._file, msgspec.json.format(msgspec.json.encode(entries)))
        return new, token
