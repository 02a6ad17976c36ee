"""The known devices: those of proxy.toml, enrolled ones, and those of the registry."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunnelmux.config import ProxyConfig
from tunnelmux.config.access import AccessRule
from tunnelmux.config.groups import read_label

__all__ = ["DeviceRegister", "KnownDevice", "Registration", "devices_from_config"]

_SERIAL = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Serial numbers that can be a label of a host name; devices with others are found by name only.


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A device's data from the registry."""

    device_id: str
    tenant_id: str
    refused: str
    """Why the device is refused; empty when it is not."""
    paired_by: str
    """The id of the user who paired it, or empty."""
    rotation_wanted: bool
    credentials: Mapping[bytes, str] = field(repr=False)
    """The id of each credential, by the SHA-256 of its token."""
    rules: Mapping[str, AccessRule] = field(default_factory=dict)
    """Access rules by service; the empty name is the device's own rule."""
    serial: str = ""
    """Its serial number; empty where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A known device; it may connect unless `enabled` is False."""

    name: str
    token_sha256: bytes = field(repr=False)
    """The 32 bytes of the token's SHA-256. Tokens themselves are never kept."""
    enabled: bool = True
    replaced_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    """The same of tokens that a later invitation replaced, which are refused."""
    also_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    """The same of further valid tokens: there are two during a rotation."""
    registration: Registration | None = None
    """Its data from the registry; None for a device of proxy.toml or an enrolled one."""
    labels: Mapping[str, str] = field(default_factory=dict)

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
            name=device.name,
            token_sha256=bytes.fromhex(token_sha256),
            enabled=device.enabled,
            labels=dict(read_label("labels", label) for label in device.labels),
        )
        for token_sha256, device in config.read_token_hashes().items()
    ]


class DeviceRegister:
    """All known devices. A device of proxy.toml hides an enrolled one of the same name, and both
    hide one of the registry. Look-ups by token and by name take constant time.
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

        The look-up uses the SHA-256 of the token. Its timing could reveal something about digests
        only, and tokens of 256 random bits cannot be chosen by their digests.
        """
        return self._by_token.get(hashlib.sha256(token.encode()).digest())

    def identify_replaced(self, token: str) -> KnownDevice | None:
        """The device whose former token this is, replaced by a later invitation; or None."""
        return self._by_replaced.get(hashlib.sha256(token.encode()).digest())

    def knows(self, name: str) -> bool:
        """Whether there is a device of this name, online or not, enabled or not."""
        return name in self._by_name

    def find(self, name: str) -> KnownDevice | None:
        """The device of this name, or None."""
        return self._by_name.get(name)

    def named(self, label: str) -> str:
        """The name of the device for a label of a host name: its name, or its serial number in
        lower case, followed by the tenant where the name has one. Other labels are returned
        unchanged.
        """
        if label in self._by_name:
            return label
        return self._by_serial.get(label, label)

    def labelled(self, key: str, value: str) -> tuple[str, ...]:
        """The devices with this label, sorted by name. Those of tenants are left out: their people
        set labels themselves.
        """
        label = key, value
        if label not in self._sorted:
            self._sorted[label] = tuple(sorted(self._by_label.get(label, ())))
        return self._sorted[label]

    def is_configured(self, name: str) -> bool:
        """Whether the device is in proxy.toml, so that no other can enrol under its name."""
        return name in self._configured

    def may_go_on(self, device: KnownDevice) -> bool:
        """Whether a device that was admitted with this entry may stay connected."""
        now = self._by_name.get(device.name)
        if now is None or not now.enabled or _id_of(now) != _id_of(device):
            return False
        return bool(now.tokens_sha256 & device.tokens_sha256)

    def is_tenant(self, name: str) -> bool:
        """Whether `name` is a tenant, so that host names ending in `--name` are its devices'."""
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
        """Use the devices of a new configuration. Returns the devices that may not stay connected:
        those that are gone, disabled, or have another token. `enrolled`, if given, replaces all
        enrolled devices.
        """
        before = self._by_name
        self._configured = {device.name: device for device in configured}
        if enrolled is not None:
            self._enrolled = {device.name: device for device in enrolled}
        self._index()
        return {name for name, device in before.items() if not self.may_go_on(device)}

    def replace_enrolled(self, enrolled: Iterable[KnownDevice]) -> set[str]:
        """Use these enrolled devices. Returns those that may not stay connected, as above."""
        return self.replace_configured(list(self._configured.values()), enrolled)

    def replace_registered(
        self, fresh: Mapping[str, KnownDevice | None], *, everything: bool = False
    ) -> dict[str, tuple[str, str]]:
        """Update these devices of the registry, by id; None removes one. With `everything` all
        others are removed. Returns, by id, the names of devices that may not stay connected, and
        why. A rotated token does not end a session: for a while the device had both.
        """
        touched = list(self._registered) if everything else list(fresh)
        before = {key: device for key in touched if (device := self._registered.pop(key, None))}
        shown = {
            device_id: device
            for device_id, device in before.items()
            if self._by_name.get(device.name) is device
        }
        # Remove before adding: two devices may have swapped their names.
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
        """Add an enrolled device, in place of an enrolled one of the same name."""
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
        self._by_label: dict[tuple[str, str], set[str]] = {}
        self._sorted: dict[tuple[str, str], tuple[str, ...]] = {}
        registered = {device.name: device for device in self._registered.values()}
        for device in (registered | self._enrolled | self._configured).values():
            self._remember(device)

    def _remember(self, device: KnownDevice) -> None:
        self._by_name[device.name] = device
        if label := _serial_label(device):
            self._by_serial[label] = device.name
        for pair in _labels_of(device):
            self._by_label.setdefault(pair, set()).add(device.name)
            self._sorted.pop(pair, None)
        for digest in device.tokens_sha256:
            # For a token with two devices, proxy.toml wins over enrolled ones, and these over the
            # registry.
            other = self._by_token.get(digest)
            if other is None or not (self.is_configured(other.name) or device.registration):
                self._by_token[digest] = device
        for digest in device.replaced_sha256:
            self._by_replaced[digest] = device

    def _forget(self, device: KnownDevice) -> None:
        label = _serial_label(device)
        if self._by_serial.get(label) == device.name:
            del self._by_serial[label]
        for pair in _labels_of(device):
            self._by_label[pair].discard(device.name)
            self._sorted.pop(pair, None)
        for digest in device.tokens_sha256:
            if self._by_token.get(digest) is device:
                del self._by_token[digest]
        for digest in device.replaced_sha256:
            self._by_replaced.pop(digest, None)


def _serial_label(device: KnownDevice) -> str:
    """The device's serial number as a label of a host name; empty where it cannot be one."""
    serial = device.registration.serial.lower() if device.registration is not None else ""
    if not _SERIAL.fullmatch(serial):
        return ""
    _, dashes, tenant = device.name.partition("--")
    return serial + dashes + tenant


def _labels_of(device: KnownDevice) -> Iterable[tuple[str, str]]:
    """Its labels, by which groups find it."""
    return () if "--" in device.name else device.labels.items()


def _id_of(device: KnownDevice) -> str | None:
    return device.registration.device_id if device.registration is not None else None
