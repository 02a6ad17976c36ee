"""Host keys of devices' SSH servers: the first are pinned, others wait for a person's word."""

from __future__ import annotations

import base64

import pytest

from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import DeviceHostKeys, Registry, TenantRegistry, parse_public_key


def key(mark: bytes) -> str:
    """An Ed25519 key as a line: two strings (RFC 8709 section 4)."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + mark * 32
    return "ssh-ed25519 " + base64.b64encode(blob).decode()


A, B, C = key(b"A"), key(b"B"), key(b"C")


def fingerprints(*lines: str) -> list[str]:
    return [parse_public_key(line).fingerprint for line in lines]


async def actions(tenant: TenantRegistry) -> list[str]:
    return [entry.action for entry in (await tenant.audit.page()).items]


async def test_the_first_that_are_reported_are_pinned_and_others_wait(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    device, _ = await acme.devices.add("cam1")
    devices, report = acme.devices, registry.fleet.report_host_keys
    assert await devices.host_keys(device.id) == DeviceHostKeys()
    assert await report(device.id, ("nonsense", "ssh-dss AAAA")) == ""
    assert await report(device.id, (A, "nonsense", B + " comment")) == ""
    assert await devices.host_keys(device.id) == DeviceHostKeys(pinned=(A, B))
    (entry, *_) = (await acme.audit.page()).items
    assert (entry.action, entry.actor.kind) == ("device.pin_host_keys", "device")
    assert fingerprints(A)[0] in entry.after
    before = len(await actions(acme))
    assert await report(device.id, (B,)) == ""  # fewer are no news
    assert len(await actions(acme)) == before
    assert "device host-keys" in await report(device.id, (A, C))
    assert await devices.host_keys(device.id) == DeviceHostKeys(pinned=(A, B), reported=(A, C))
    # Again, or a part of it as the gateway met it: it is known already, and written down once.
    await report(device.id, (A, C))
    await devices.report_host_keys(device.id, (C,))
    assert (await actions(acme))[0] == "device.report_host_keys"
    assert len(await actions(acme)) == before + 1
    assert await devices.pin_host_key(device.id, C) == await devices.host_keys(device.id)
    # The old keys are back.
    await report(device.id, (A, B))
    assert await devices.host_keys(device.id) == DeviceHostKeys(pinned=(A, B))
    with pytest.raises(NoSuchRecord):
        await report("nothing", (A,))
    for call in (other.devices.host_keys, other.devices.forget_host_keys):
        with pytest.raises(NoSuchRecord):
            await call(device.id)


async def test_a_person_accepts_what_they_saw(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    device, _ = await acme.devices.add("cam1")
    devices = acme.devices
    assert (await devices.pin_host_key(device.id, A)).pinned == (A,)
    await registry.fleet.report_host_keys(device.id, (B,))
    seen = fingerprints(B)
    await registry.fleet.report_host_keys(device.id, (C,))  # while the person reads
    for wrong in (seen, fingerprints(B, C), fingerprints(A)):
        with pytest.raises(RegistryRefused) as refused:
            await devices.accept_host_keys(device.id, wrong)
        assert refused.value.code == "changed_meanwhile"
    with pytest.raises(NoSuchRecord):
        await other.devices.accept_host_keys(device.id, fingerprints(C))
    await devices.accept_host_keys(device.id, fingerprints(C))
    assert await devices.host_keys(device.id) == DeviceHostKeys(pinned=(C,))
    (entry, *_) = (await acme.audit.page()).items
    assert entry.action == "device.accept_host_keys"
    assert fingerprints(A)[0] in entry.before
    with pytest.raises(RegistryRefused):
        await devices.accept_host_keys(device.id, fingerprints(C))  # nothing waits
    assert await devices.forget_host_keys(device.id) == DeviceHostKeys()
    assert (await devices.pin_host_key(device.id, B)).pinned == (B,)
