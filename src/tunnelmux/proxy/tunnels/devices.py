"""Who may connect: the devices of proxy.toml and those that enrolled by invitation."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunnelmux.config import ProxyConfig

__all__ = ["DeviceRegister", "KnownDevice", "devices_from_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A device that may connect, or is known and turned away (`enabled` False)."""

    name: str
    token_sha256: bytes = field(repr=False)
    """The 32 bytes of the token's SHA-256. Tokens themselves are never kept."""
    enabled: bool = True
    replaced_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    """The same of tokens that another invitation replaced: they let nobody in."""


def devices_from_config(config: ProxyConfig) -> list[KnownDevice]:
    """The devices of `[[devices]]`, with their token files read.

    Raises ConfigError when a token file cannot be read or two devices have the same token.
    """
    return [
        KnownDevice(
            name=device.name, token_sha256=bytes.fromhex(token_sha256), enabled=device.enabled
        )
        for token_sha256, device in config.read_token_hashes().items()
    ]


class DeviceRegister:
    """The devices known now. A device of proxy.toml hides an enrolled one of the same name."""

    def __init__(
        self, configured: Iterable[KnownDevice] = (), enrolled: Iterable[KnownDevice] = ()
    ) -> None:
        self._configured = {device.name: device for device in configured}
        self._enrolled = {device.name: device for device in enrolled}
        self._by_name = self._enrolled | self._configured

    def identify(self, token: str) -> KnownDevice | None:
        """The device this token belongs to, enabled or not; None when it is nobody's.

        The time it takes depends on the number of devices only: the token's hash is compared with
        all of them, each in constant time, whether or not one has matched.
        """
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for device in self._by_name.values():
            if hmac.compare_digest(digest, device.token_sha256):
                found = device
        return found

    def identify_replaced(self, token: str) -> KnownDevice | None:
        """The device that this token belonged to until another invitation replaced it, or None."""
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for device in self._by_name.values():
            for replaced in device.replaced_sha256:
                if hmac.compare_digest(digest, replaced):
                    found = device
        return found

    def knows(self, name: str) -> bool:
        """Whether there is a device of this name, online or not. A disabled one is known."""
        return name in self._by_name

    def find(self, name: str) -> KnownDevice | None:
        """The device of this name as it is known now."""
        return self._by_name.get(name)

    def is_configured(self, name: str) -> bool:
        """Whether the device is in proxy.toml, so that nobody can enrol under its name."""
        return name in self._configured

    @property
    def names(self) -> list[str]:
        """The names of all known devices, sorted."""
        return sorted(self._by_name)

    def replace_configured(self, configured: Iterable[KnownDevice]) -> set[str]:
        """Take the devices of a new configuration; answers whose sessions may not go on.

        Those are the devices that are gone, disabled, or have another token than before.
        """
        before = self._by_name
        self._configured = {device.name: device for device in configured}
        self._by_name = self._enrolled | self._configured
        return {
            name
            for name, device in before.items()
            if (now := self._by_name.get(name)) is None
            or not now.enabled
            or now.token_sha256 != device.token_sha256
        }

    def add_enrolled(self, device: KnownDevice) -> None:
        """Let a device connect that just enrolled, in place of an enrolled one of its name."""
        self._enrolled[device.name] = device
        self._by_name = self._enrolled | self._configured
