"""Devices and their credentials, on both databases."""

from __future__ import annotations

import pytest

from tunnelmux.config import hash_token
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import Actor, DeviceFilter, Registry, TenantRegistry


async def test_a_device_is_added_with_a_token_and_found(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, token = await acme.devices.add("cam1", serial="S1", labels={"site": "north"})
    assert (device.name, device.label, device.serial) == ("cam1", "cam1--acme", "S1")
    assert await acme.devices.find(device.id) == device
    assert await acme.devices.find_named("cam1") == device
    known = await registry.fleet.identify(hash_token(token))
    assert known is not None
    assert (known.device_id, known.label, known.refused) == (device.id, "cam1--acme", "")


async def test_another_tenant_sees_and_changes_nothing(
    acme: TenantRegistry, other: TenantRegistry
) -> None:
    device, _ = await acme.devices.add("cam1")
    for attempt in (
        other.devices.find(device.id),
        other.devices.change(device.id, name="stolen"),
        other.devices.set_enabled(device.id, False),
        other.devices.remove(device.id),
        other.devices.sessions(device.id),
        other.credentials.of(device.id),
        other.credentials.revoke(device.id),
        other.credentials.rotate(device.id),
    ):
        with pytest.raises(NoSuchRecord):
            await attempt
    assert (await other.devices.page()).items == []
    assert await acme.devices.find(device.id) == device


async def test_names_are_taken_once_and_the_same_name_is_free_elsewhere(
    acme: TenantRegistry, other: TenantRegistry
) -> None:
    await acme.devices.add("cam1")
    await other.devices.add("cam1")
    with pytest.raises(RegistryRefused) as refused:
        await acme.devices.add("cam1")
    assert (refused.value.code, refused.value.field) == ("taken", "name")


async def test_a_name_that_host_names_could_take_for_a_tenant_is_refused(
    registry: Registry, acme: TenantRegistry, default: TenantRegistry
) -> None:
    # `web--acme` would be both the service web of the device acme, and the device web of acme.
    with pytest.raises(RegistryRefused, match="tenant"):
        await default.devices.add("acme")
    await default.devices.add("globex")
    with pytest.raises(RegistryRefused, match="taken"):
        await registry.installation(by=Actor.program("test")).tenants.add("globex")
    await acme.devices.add("other")  # only names of the default tenant stand alone


@pytest.mark.parametrize("name", ["", "Cam1", "cam--1", "-cam", "x" * 64, "x" * 41, "a.b"])
async def test_a_name_no_host_name_can_carry_is_refused(acme: TenantRegistry, name: str) -> None:
    with pytest.raises(RegistryRefused) as refused:
        await acme.devices.add(name)
    assert refused.value.code == "invalid"


async def test_pages_go_through_all_devices_by_name(acme: TenantRegistry) -> None:
    for number in range(7):
        await acme.devices.add(f"cam{number}", labels={"odd": str(number % 2)})
    names: list[str] = []
    cursor = None
    while True:
        page = await acme.devices.page(limit=3, after=cursor)
        names += [device.name for device in page.items]
        if (cursor := page.next) is None:
            break
    assert names == [f"cam{number}" for number in range(7)]
    odd = DeviceFilter(labels=(("odd", "1"),))
    assert [d.name for d in (await acme.devices.page(where=odd)).items] == ["cam1", "cam3", "cam5"]
    assert await acme.devices.count(odd) == 3
    assert await acme.devices.count(DeviceFilter(name="AM6")) == 1
    assert await acme.devices.count(DeviceFilter(online=False)) == 7
    with pytest.raises(RegistryRefused) as refused:
        await acme.devices.page(after="rubbish")
    assert refused.value.code == "bad_cursor"


async def test_text_that_no_database_holds_finds_nothing(acme: TenantRegistry) -> None:
    for attempt in (
        acme.devices.find("\0"),
        acme.devices.page(where=DeviceFilter(name="\0")),
        acme.devices.page(where=DeviceFilter(labels=(("a", "\0"),))),
    ):
        try:
            found = await attempt
        except (NoSuchRecord, RegistryRefused):
            continue
        assert getattr(found, "items", None) == []


async def test_a_disabled_device_is_known_and_refused(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, token = await acme.devices.add("cam1")
    revocation = await acme.devices.set_enabled(device.id, False)
    known = await registry.fleet.identify(hash_token(token))
    assert known is not None
    assert known.refused == "it is disabled"
    (change,) = await registry.changes.after(revocation.change - 1) or []
    assert (change.number, change.kind, change.object_id) == (
        revocation.change,
        "device",
        device.id,
    )
    await acme.devices.set_enabled(device.id, True)
    await acme.devices.set_quarantine(device.id, "two machines use it")
    known = await registry.fleet.identify(hash_token(token))
    assert known is not None
    assert "two machines use it" in known.refused


async def test_revoking_ends_all_tokens_and_replacing_gives_a_new_one(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, token = await acme.devices.add("cam1")
    await acme.credentials.revoke(device.id)
    assert await registry.fleet.identify(hash_token(token)) is None
    _, new = await acme.credentials.replace(device.id)
    assert await registry.fleet.identify(hash_token(new)) is not None
    states = [credential.state for credential in await acme.credentials.of(device.id)]
    assert states == ["active", "ended"]


async def test_in_a_rotation_two_tokens_are_good_until_the_new_one_is_proved(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, old = await acme.devices.add("cam1")
    assert await registry.fleet.begin_credential(device.id) is None  # nobody wants one
    await acme.credentials.rotate(device.id)
    begun = await registry.fleet.begin_credential(device.id)
    assert begun is not None
    credential_id, new = begun
    for token in (old, new):
        assert await registry.fleet.identify(hash_token(token)) is not None
    assert await registry.fleet.prove_credential(credential_id)
    assert await registry.fleet.identify(hash_token(old)) is None
    assert await registry.fleet.identify(hash_token(new)) is not None
    assert not (await acme.devices.find(device.id)).rotation_wanted
    assert not await registry.fleet.prove_credential(credential_id)


async def test_a_token_that_the_agent_may_have_written_down_stays_good(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, old = await acme.devices.add("cam1")
    await acme.credentials.rotate(device.id)
    begun = [await registry.fleet.begin_credential(device.id) for _ in range(4)]
    tokens = [(number, token) for number, token in filter(None, begun)]
    known = [await registry.fleet.identify(hash_token(token)) for _, token in tokens]
    assert [device is not None for device in known] == [False, True, True, True]
    await registry.fleet.drop_credential(tokens[1][0], "refused")
    assert await registry.fleet.identify(hash_token(tokens[1][1])) is None
    assert not await registry.fleet.prove_credential(tokens[1][0])
    assert await registry.fleet.prove_credential(tokens[2][0])
    for token in (old, tokens[3][1]):
        assert await registry.fleet.identify(hash_token(token)) is None
    await registry.fleet.drop_credential(tokens[2][0], "too late")
    assert await registry.fleet.identify(hash_token(tokens[2][1])) is not None


async def test_a_rotation_that_is_cancelled_leaves_the_old_token(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, old = await acme.devices.add("cam1")
    await acme.credentials.rotate(device.id)
    begun = await registry.fleet.begin_credential(device.id)
    assert begun is not None
    await acme.credentials.cancel_rotation(device.id)
    assert await registry.fleet.identify(hash_token(begun[1])) is None
    assert await registry.fleet.identify(hash_token(old)) is not None
    assert await registry.fleet.begin_credential(device.id) is None


async def test_a_removed_device_leaves_its_name_and_the_audit(
    registry: Registry, acme: TenantRegistry
) -> None:
    device, token = await acme.devices.add("cam1", serial="S1")
    await acme.devices.remove(device.id)
    assert await registry.fleet.identify(hash_token(token)) is None
    await acme.devices.add("cam1", serial="S1")
    entries = (await acme.audit.page()).items
    removed = next(entry for entry in entries if entry.action == "device.remove")
    assert '"serial":"S1"' in removed.before


async def test_renaming_takes_the_host_name_along(acme: TenantRegistry) -> None:
    device, _ = await acme.devices.add("cam1")
    renamed = await acme.devices.change(device.id, name="cam2", labels={"b": "2", "a": "1"})
    assert (renamed.name, renamed.label) == ("cam2", "cam2--acme")
    assert renamed.labels == {"a": "1", "b": "2"}
    await acme.devices.add("cam1")
