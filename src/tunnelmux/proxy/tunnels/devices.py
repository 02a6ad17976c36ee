"""Who may connect: the devices of proxy.toml, those that enrolled, and those of the registry."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunnelmux.config import ProxyConfig
from tunnelmux.config.access import AccessRule

__all__ = ["DeviceRegister", "KnownDevice", "Registration", "devices_from_config"]

_SERIAL = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# A serial number that can stand in a host's label; of others, devices are found by name there.


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What only the registry knows of a device."""

    device_id: str
    tenant_id: str
    refused: str
    """Why it is turned away; empty when it is not."""
    paired_by: str
    """The id of the user who let it in, or empty."""
    rotation_wanted: bool
    credentials: Mapping[bytes, str] = field(repr=False)
    """The id of each credential, by the SHA-256 of its token."""
    rules: Mapping[str, AccessRule] = field(default_factory=dict)
    """Who may visit, by service; empty is the device's own rule."""
    serial: str = ""
    """Its serial number; empty where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A device that may connect, or is known and turned away (`enabled` False)."""

    name: str
    token_sha256: bytes = field(repr=False)
    """The 32 bytes of the token's SHA-256. Tokens themselves are never kept."""
    enabled: bool = True
    replaced_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    """The same of tokens that another invitation replaced: they are refused."""
    also_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    """The same of further tokens that are as good: while one is rotated there are two."""
    registration: Registration | None = None
    """What the registry says of it; None for a device of proxy.toml or one that enrolled."""

    @property
    def tokens_sha256(self) -> frozenset[bytes]:
        """The SHA-256 of every token it may connect with."""
        return frozenset((self.token_sha256, *self.also_sha256)) - {b""}


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
    """The devices known now. A device of proxy.toml hides an enrolled one of the same name, and
    both hide one of the registry.

    Finding one, by token or by name, is one look in a table, however many there are.
    """

    def __init__(
        self, configured: Iterable[KnownDevice] = (), enrolled: Iterable[KnownDevice] = ()
    ) -> None:
        self._configured = {device.name: device for device in configured}
        self._enrolled = {device.name: device for device in enrolled}
        self._registered: dict[str, KnownDevice] = {}
        """By id, since their names may change."""
        self._tenants: Counter[str] = Counter()
        self._index()

    def identify(self, token: str) -> KnownDevice | None:
        """The device this token belongs to, enabled or not; None when it is unknown.

        Found by the SHA-256 of the token. What the time of the look could tell is something about
        digests, and a token cannot be chosen by its digest: a token has 256 random bits.
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

    def named(self, label: str) -> str:
        """The name of the device that a host calls so: by its name, or else by its serial number
        in small letters, with the tenant behind it where the name has one. What is neither comes
        back as it is."""
        if label in self._by_name:
            return label
        return self._by_serial.get(label, label)

    def is_configured(self, name: str) -> bool:
        """Whether the device is in proxy.toml, so that no other can enrol under its name."""
        return name in self._configured

    def may_go_on(self, device: KnownDevice) -> bool:
        """Whether a device that was let in as this one may still be here."""
        now = self._by_name.get(device.name)
        if now is None or not now.enabled or _id_of(now) != _id_of(device):
            return False
        return bool(now.tokens_sha256 & device.tokens_sha256)

    def is_tenant(self, name: str) -> bool:
        """Whether host names that end with `--name` are those of a tenant's devices."""
        return self._tenants[name] > 0

    @property
    def registered(self) -> Mapping[str, KnownDevice]:
        """The devices of the registry, by id."""
        return self._registered

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
        return {name for name, device in before.items() if not self.may_go_on(device)}

    def replace_registered(
        self, fresh: Mapping[str, KnownDevice | None], *, everything: bool = False
    ) -> dict[str, tuple[str, str]]:
        """Take over what the registry says of these devices, by id; None of one that is gone.

        With `everything` there are no others. Answers, by id, the names of those whose sessions
        may not go on, and why. A device whose token was rotated goes on: for a while it had both.
        """
        touched = list(self._registered) if everything else list(fresh)
        before = {key: device for key in touched if (device := self._registered.pop(key, None))}
        shown = {
            device_id: device
            for device_id, device in before.items()
            if self._by_name.get(device.name) is device
        }
        # All that goes before all that comes: two may have swapped their names.
        for device in before.values():
            self._count_tenant(device, -1)
        for device in shown.values():
            self._forget(device)
            del self._by_name[device.name]
        for device_id, new in fresh.items():
            if new is not None:
                self._registered[device_id] = new
                self._count_tenant(new, 1)
                if new.name not in self._configured and new.name not in self._enrolled:
                    self._remember(new)
        return {
            device_id: (device.name, self._why_not(device))
            for device_id, device in shown.items()
            if not self.may_go_on(device)
        }

    def _count_tenant(self, device: KnownDevice, step: int) -> None:
        _, dashes, tenant = device.name.partition("--")
        if dashes:
            self._tenants[tenant] += step

    def _why_not(self, device: KnownDevice) -> str:
        now = self._registered.get(_id_of(device) or "")
        if now is None:
            return "the device was removed from the registry"
        if now.registration is not None and now.registration.refused:
            return f"the device may not connect: {now.registration.refused}"
        if now.name != device.name:
            return f"the device is called {now.name} from now on"
        return "its token was revoked"

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
        self._by_serial: dict[str, str] = {}
        registered = {device.name: device for device in self._registered.values()}
        for device in (registered | self._enrolled | self._configured).values():
            self._remember(device)

    def _remember(self, device: KnownDevice) -> None:
        self._by_name[device.name] = device
        if label := _serial_label(device):
            self._by_serial[label] = device.name
        for digest in device.tokens_sha256:
            # Where a token is there twice, proxy.toml wins, and the registry never does.
            other = self._by_token.get(digest)
            if other is None or not (self.is_configured(other.name) or device.registration):
                self._by_token[digest] = device
        for digest in device.replaced_sha256:
            self._by_replaced[digest] = device

    def _forget(self, device: KnownDevice) -> None:
        label = _serial_label(device)
        if self._by_serial.get(label) == device.name:
            del self._by_serial[label]
        for digest in device.tokens_sha256:
            if self._by_token.get(digest) is device:
                del self._by_token[digest]
        for digest in device.replaced_sha256:
            self._by_replaced.pop(digest, None)


def _serial_label(device: KnownDevice) -> str:
    """The device's serial number as hosts have it; empty where none can."""
    serial = device.registration.serial.lower() if device.registration is not None else ""
    if not _SERIAL.fullmatch(serial):
        return ""
    _, dashes, tenant = device.name.partition("--")
    return serial + dashes + tenant


def _id_of(device: KnownDevice) -> str | None:
    return device.registration.device_id if device.registration is not None else None
