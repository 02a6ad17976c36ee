"""The host keys of devices' SSH servers: which are pinned, and which wait for a person's word."""

from __future__ import annotations

from collections.abc import Sequence

from tunnelmux.errors import RegistryRefused
from tunnelmux.registry.devices import DeviceHostKeys
from tunnelmux.registry.sql import schema
from tunnelmux.registry.sql.transaction import Transaction
from tunnelmux.registry.ssh_keys import PublicKey, parse_public_key

__all__ = ["accept_host_keys", "change_host_keys", "find_host_keys", "report_host_keys"]

_D = schema.devices

_MOST_KEYS = 8
# Of one device: there are some four kinds.


def find_host_keys(tx: Transaction, device_id: str) -> DeviceHostKeys:
    """What is known of a device's host keys. Raises NoSuchRecord."""
    row = tx.one(_D, device_id, "device")
    return DeviceHostKeys(
        pinned=tuple(row.host_key.splitlines()), reported=tuple(row.reported_host_keys.splitlines())
    )


def report_host_keys(tx: Transaction, device_id: str, keys: Sequence[str]) -> DeviceHostKeys:
    """See `Devices`: only the first keys are taken over without a person's word."""
    found = find_host_keys(tx, device_id)
    lines = tuple(key.line for key in _usable(keys))
    if not lines:
        return found
    if not found.pinned:
        return change_host_keys(tx, device_id, DeviceHostKeys(pinned=lines), "device.pin_host_keys")
    if set(lines) <= set(found.pinned):
        # The server is as it was; what waited for a word is no longer so.
        lines = ()
    elif set(lines) <= set(found.reported):
        return found
    if lines == found.reported:
        return found
    new = DeviceHostKeys(pinned=found.pinned, reported=lines)
    return change_host_keys(tx, device_id, new, "device.report_host_keys")


def accept_host_keys(
    tx: Transaction, device_id: str, fingerprints: Sequence[str]
) -> DeviceHostKeys:
    """See `Devices`."""
    found = find_host_keys(tx, device_id)
    if not found.reported or set(fingerprints) != set(_fingerprints(found.reported)):
        raise RegistryRefused(
            "these are not the host keys that were reported last: look at them again",
            code="changed_meanwhile",
        )
    new = DeviceHostKeys(pinned=found.reported)
    return change_host_keys(tx, device_id, new, "device.accept_host_keys")


def change_host_keys(
    tx: Transaction, device_id: str, new: DeviceHostKeys, action: str
) -> DeviceHostKeys:
    """Write it down, with an entry of the audit under this name, where it changes anything."""
    before = find_host_keys(tx, device_id)
    if new != before:
        tx.update(
            _D,
            _D.c.id == device_id,
            host_key="\n".join(new.pinned),
            reported_host_keys="\n".join(new.reported),
        )
        tx.record(action, "device", device_id, before=_told(before), after=_told(new))
    return new


def _usable(keys: Sequence[str]) -> list[PublicKey]:
    found = []
    for key in keys[:_MOST_KEYS]:
        try:
            found.append(parse_public_key(key))
        except RegistryRefused:
            continue  # a kind that the gateway does not take either
    return found


def _fingerprints(lines: Sequence[str]) -> list[str]:
    return [parse_public_key(line).fingerprint for line in lines]


def _told(keys: DeviceHostKeys) -> dict[str, object]:
    return {"pinned": _fingerprints(keys.pinned), "reported": _fingerprints(keys.reported)}
