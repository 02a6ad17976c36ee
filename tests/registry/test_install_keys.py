"""A thief of an install key can neither use it up at once nor fill the database, and what came by
it can be taken out again."""

from __future__ import annotations

import pytest

from support.registries import OpenRegistry, WallClock, add_tenant
from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import Arrival, PairingRules, Registry, TenantRegistry
from tunnelmux.registry.sql import pairing

THIEF = "203.0.113.7"
WORKSHOP = "198.51.100.7"


async def code_of(registry: Registry, key: Secret, name: str, address: str) -> str:
    try:
        await registry.joining.install(key, address=address, name=name)
    except RegistryRefused as refused:
        return refused.code
    return "paired"


async def test_a_key_rests_and_leaves_half_to_others(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(rules=PairingRules(key_budget=4)) as registry:
        acme = await add_tenant(registry, "acme")
        record, key = await acme.install_keys.add("k", lifetime=86_400, max_uses=1000)
        thief = [await code_of(registry, key, f"fake{n}", THIEF) for n in range(5)]
        assert thief == ["paired", "paired", "key_resting", "key_resting", "key_resting"]
        own = [await code_of(registry, key, f"cam{n}", WORKSHOP) for n in range(3)]
        assert own == ["paired", "paired", "key_resting"]
        assert (await acme.install_keys.find(record.id)).uses == 4
        rests = [
            (entry.object_id, entry.actor.address)
            for entry in await acme.audit.export()
            if entry.action == "install_key.rest"
        ]
        assert rests == [(record.id, THIEF), (record.id, WORKSHOP)]  # the first of each only
        clock.pass_time(601)
        assert await code_of(registry, key, "cam3", WORKSHOP) == "paired"


async def test_a_right_key_works_where_a_neighbour_has_used_the_guesses_up(
    open_registry: OpenRegistry,
) -> None:
    async with open_registry(rules=PairingRules(address_budget=2)) as registry:
        acme = await add_tenant(registry, "acme")
        _, key = await acme.install_keys.add("k", lifetime=60, max_uses=9)
        wrong = [await code_of(registry, Secret("tmk_no"), "x", THIEF) for _ in range(3)]
        assert wrong == ["key_unknown", "key_unknown", "too_many_guesses"]
        assert await code_of(registry, key, "cam1", THIEF) == "paired"


async def test_devices_that_came_by_a_key_are_ended_part_by_part(
    registry: Registry, acme: TenantRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "_PART", 2)
    record, key = await acme.install_keys.add("k", lifetime=86_400, max_uses=1000)
    own, _ = await acme.devices.add("own")
    came = []
    for number in range(5):
        arrival = await registry.joining.install(key, address=THIEF, name=f"fake{number}")
        assert isinstance(arrival, Arrival)
        came.append(arrival.device.id)

    _, disabled, change = await acme.install_keys.revoke(record.id, devices="disable")
    assert sorted(disabled) == sorted(came)
    assert change == await registry.changes.latest()
    _, removed, change = await acme.install_keys.revoke(record.id, devices="remove")
    assert sorted(removed) == sorted(came)
    assert change == await registry.changes.latest()
    with pytest.raises(NoSuchRecord):
        await acme.devices.find(came[0])
    assert [device.id for device in (await acme.devices.page()).items] == [own.id]
    assert (await acme.install_keys.revoke(record.id, devices="remove"))[1] == []
    assert (await acme.audit.verify()).broken_at is None


async def test_a_tenant_has_so_many_devices_however_they_come(open_registry: OpenRegistry) -> None:
    async with open_registry(rules=PairingRules(max_devices=1)) as registry:
        acme = await add_tenant(registry, "acme")
        old, _ = await acme.devices.add("cam0")
        _, key = await acme.install_keys.add("k", lifetime=86_400, max_uses=1000)
        _, code = await acme.pairings.make_code(name="cam1")
        _, shown, _ = await registry.joining.request(address=WORKSHOP, name="cam2")
        request = await acme.pairings.find_request(shown.reveal())

        for call in (
            acme.devices.add("cam3"),
            registry.joining.install(key, address=WORKSHOP, name="cam4"),
            registry.joining.exchange(code.reveal(), address=WORKSHOP),
            acme.pairings.approve(request.id, name="cam2"),
        ):
            with pytest.raises(RegistryRefused, match=r"at most 1 devices .* raise limits") as no:
                await call
            assert no.value.code == "too_many"
        # Another tenant has its own limit, and a removed device's place is free.
        await (await add_tenant(registry, "other")).devices.add("cam0")
        await acme.devices.remove(old.id)
        await acme.pairings.approve(request.id, name="cam2")
