"""Devices' host keys: the agent reports them, the gateway holds sshd to them."""

from __future__ import annotations

import pytest
import trio

from support.gateways import Site
from tunnelmux.registry import parse_public_key

pytestmark = pytest.mark.slow


async def test_a_reported_key_is_pinned_and_another_one_waits_for_a_person(site: Site) -> None:
    bob = await site.user("bob")
    await site.lease(bob)
    devices, device = site.tenant.devices, site.device_id
    target = f"{site.sshd.user}@cam1"
    real = " ".join((site.sshd.folder / "host_key.pub").read_text().split()[:2])
    other = " ".join((site.folder / "bob.key.pub").read_text().split()[:2])
    # Before any session: the agent has read it from the device's sshd.
    assert (await devices.host_keys(device)).pinned == (real,)
    entries = (await site.tenant.audit.page()).items
    (pinned,) = [entry for entry in entries if entry.action == "device.pin_host_keys"]
    assert (pinned.actor.kind, pinned.actor.id) == ("device", device)
    assert (await site.ssh(bob, target, "true")).returncode == 0

    async def change() -> None:
        await devices.forget_host_keys(device)
        await devices.pin_host_key(device, other)

    # The agent reports the change when it connects again.
    await change()
    handle = site.proxy.store.live_device("cam1")
    assert handle is not None
    await handle.close("for the test")
    with trio.fail_after(40):
        while (await devices.host_keys(device)).reported != (real,):  # noqa: ASYNC110
            await trio.sleep(0.05)
    await devices.accept_host_keys(device, [parse_public_key(real).fingerprint])
    assert (await site.ssh(bob, target, "true")).returncode == 0
    # And the gateway, when it meets it.
    await change()
    refused = await site.ssh(bob, target, "true")
    assert refused.returncode == 255
    assert b"the host key of the device's sshd has changed" in refused.stderr
    assert parse_public_key(real).fingerprint.encode() in refused.stderr
    assert b"tunnelmux device host-keys cam1 --accept" in refused.stderr
    keys = await devices.host_keys(device)
    assert (keys.pinned, keys.reported) == ((other,), (real,))
    await devices.accept_host_keys(device, [parse_public_key(real).fingerprint])
    assert (await site.ssh(bob, target, "true")).returncode == 0
