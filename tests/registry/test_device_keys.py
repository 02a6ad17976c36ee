"""SSH keys of devices, on both databases."""

from __future__ import annotations

import pytest

from support.registries import WallClock
from support.tenants import SSH_KEY
from tunnelmux.config import hash_token
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import Registry, TenantRegistry, parse_public_key

FINGERPRINT = parse_public_key(SSH_KEY).fingerprint


async def test_a_key_lets_its_device_in_until_it_expires(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    device, _ = await acme.devices.add("cam1", serial="SN-1")
    key = await acme.device_ssh_keys.add(device.id, SSH_KEY, 600)
    found = await registry.ssh_devices.find(FINGERPRINT)
    assert found is not None
    assert (found.key.id, found.tenant_id, found.label) == (key.id, acme.tenant_id, "cam1--acme")
    assert found.is_called("sn-1")
    assert found.is_called("Cam1")
    assert not found.is_called("")
    rival, _ = await other.devices.add("cam2")
    with pytest.raises(RegistryRefused) as taken:
        await other.device_ssh_keys.add(rival.id, SSH_KEY, 600)
    assert taken.value.code == "taken"
    clock.pass_time(500)
    again = await acme.device_ssh_keys.add(device.id, SSH_KEY, 600)
    assert again.id == key.id
    clock.pass_time(599)
    assert await registry.ssh_devices.find(FINGERPRINT) is not None
    clock.pass_time(2)
    assert await registry.ssh_devices.find(FINGERPRINT) is None
    assert await registry.ssh_devices.begin(key.id, "192.0.2.7") is None
    assert await acme.device_ssh_keys.of(device.id) == []
    await other.device_ssh_keys.add(rival.id, SSH_KEY, 600)


async def test_a_log_in_has_a_token_of_its_own_that_ends_with_it(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, paired = await acme.devices.add("cam1", serial="SN-1")
    key = await acme.device_ssh_keys.add(device.id, SSH_KEY, 600)
    fleet, ssh_devices = registry.fleet, registry.ssh_devices
    first = await ssh_devices.begin(key.id, "192.0.2.7")
    assert first is not None
    known = await fleet.identify(hash_token(first))
    assert known is not None
    assert known.device_id == device.id
    second = await ssh_devices.begin(key.id, "192.0.2.8")
    assert second is not None
    assert await fleet.identify(hash_token(first)) is None
    await ssh_devices.end(first, "late")
    assert await fleet.identify(hash_token(second)) is not None
    assert (await acme.device_ssh_keys.of(device.id))[0].last_address == "192.0.2.8"
    await ssh_devices.end(second, "over")
    assert await fleet.identify(hash_token(second)) is None
    third = await ssh_devices.begin(key.id, "192.0.2.8")
    assert third is not None
    await acme.device_ssh_keys.remove(device.id, key.id)
    assert await fleet.identify(hash_token(third)) is None
    assert await fleet.identify(hash_token(paired)) is not None


@pytest.mark.parametrize("how", ["revoked", "disabled", "quarantined", "removed"])
async def test_a_device_that_may_not_connect_is_not_found_by_its_key(
    registry: Registry, acme: TenantRegistry, how: str
) -> None:
    device, _ = await acme.devices.add("cam1", serial="SN-1")
    key = await acme.device_ssh_keys.add(device.id, SSH_KEY, 600)
    if how == "revoked":
        await acme.credentials.revoke(device.id)
    elif how == "disabled":
        await acme.devices.set_enabled(device.id, False)
    elif how == "quarantined":
        await acme.devices.set_quarantine(device.id, "stolen")
    else:
        await acme.devices.remove(device.id)
    assert await registry.ssh_devices.find(FINGERPRINT) is None
    assert await registry.ssh_devices.begin(key.id, "192.0.2.7") is None


async def test_bounds(acme: TenantRegistry, other: TenantRegistry) -> None:
    device, _ = await acme.devices.add("cam1")
    keys = acme.device_ssh_keys
    for lifetime in (0.0, 367 * 86_400.0):
        with pytest.raises(RegistryRefused):
            await keys.add(device.id, SSH_KEY, lifetime)
    key = await keys.add(device.id, SSH_KEY, 600)
    with pytest.raises(NoSuchRecord):
        await other.device_ssh_keys.remove(device.id, key.id)
    kind, blob = SSH_KEY.split()[:2]
    for number in range(9):
        await keys.add(device.id, f"{kind} {blob[:-1]}{'ABCDEFGHI'[number]}", 600)
    with pytest.raises(RegistryRefused) as refused:
        await keys.add(device.id, f"{kind} {blob[:-1]}J", 600)
    assert refused.value.code == "too_many"
