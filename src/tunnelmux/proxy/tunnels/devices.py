"""Who may connect: the devices of proxy.toml and those that enrolled by invitation."""

from __future__ import annotations

import hashlib
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
    """The devices known now. A device of proxy.toml hides an enrolled one of the same name.

    Finding one, by token or by name, is one look in a table, however many there are.
    """

    def __init__(
        self, configured: Iterable[KnownDevice] = (), enrolled: Iterable[KnownDevice] = ()
    ) -> None:
        self._configured = {device.name: device for device in configured}
        self._enrolled = {device.name: device for device in enrolled}
        self._index()

    def identify(self, token: str) -> KnownDevice | None:
        """The device this token belongs to, enabled or not; None when it is nobody's.

        Found by the SHA-256 of the token. What the time of the look could tell is something about
        digests, and nobody can choose a token by its digest: a token has 256 random bits.
        """
        return self._by_token.get(hashlib.sha256(token.encode()).digest())

    def identify_replaced(self, token: str) -> KnownDevice | None:
        """The device that this token belonged to until another invitation replaced it, or None."""
        return self._by_replaced.get(hashlib.sha256(token.encode()).digest())

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

    def replace_configured(
        self, configured: Iterable[KnownDevice], enrolled: Iterable[KnownDevice] | None = None
    ) -> set[str]:
        """Take the devices of a new configuration; answers whose sessions may not go on.

        Those are the devices that are gone, disabled, or have another token than before. With
        `enrolled`, these take the place of all that enrolled.
        """
        before = self._by_name
        self._configured = {device.name: device for device in configured}
        if enrolled is not None:
            self._enrolled = {device.name: device for device in enrolled}
        self._index()
        return {
            name
            for name, device in before.items()
            if (now := self._by_name.get(name)) is None
            or not now.enabled
            or now.token_sha256 != device.token_sha256
        }

    def add_enrolled(self, device: KnownDevice) -> None:
        """Let a device connect that just enrolled, in place of an enrolled one of its name."""
        before = self._enrolled.get(device.name)
        self._enrolled[device.name] = device
        if device.name in self._configured:
            return
        if before is not None:
            self._forget(before)
        self._remember(device)

    def _index(self) -> None:
        self._by_name: dict[str, KnownDevice] = {}
        self._by_token: dict[bytes, KnownDevice] = {}
        self._by_replaced: dict[bytes, KnownDevice] = {}
        for device in (self._enrolled | self._configured).values():
            self._remember(device)

    def _remember(self, device: KnownDevice) -> None:
        self._by_name[device.name] = device
        # Where a token is there twice, proxy.toml wins.
        other = self._by_token.get(device.token_sha256)
        if other is None or not self.is_configured(other.name):
            self._by_token[device.token_sha256] = device
        for digest in device.replaced_sha256:
            self._by_replaced[digest] = device

    def _forget(self, device: KnownDevice) -> None:
        if self._by_token.get(device.token_sha256) is device:
            del self._by_token[device.token_sha256]
        for digest in device.replaced_sha256:
            self._by_replaced.pop(digest, None)
