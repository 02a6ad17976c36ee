"""What one member or stranger makes in masses fills neither the database nor a page of a list."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from support.registries import ANN, OpenRegistry, WallClock, add_tenant
from support.tenants import HOST_KEYS
from tunnelmux.config import Secret
from tunnelmux.errors import RegistryRefused
from tunnelmux.registry import PairingRules, Registry, TenantRegistry, new_id
from tunnelmux.registry.sql import paging, pairing, people, shares, tokens

ELSEWHERE = "2001:db8:7::1"


async def refused_code(call: Awaitable[object]) -> str:
    with pytest.raises(RegistryRefused) as refused:
        await call
    return refused.value.code


async def test_of_each_kind_there_are_so_many_that_are_good(
    registry: Registry, acme: TenantRegistry, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = registry.installation(ANN).users
    user = await users.sign_in(issuer="https://id.example.com", subject="ann")
    await users.grant(acme.tenant_id, "owner", issuer=user.issuer, subject="ann", force=True)
    makers: dict[str, Callable[[], Awaitable[object]]] = {
        "codes": acme.pairings.make_code,
        "keys": lambda: acme.install_keys.add("k", lifetime=600, max_uses=1),
        "invitations": lambda: acme.invitations.add("bob@example.com", "viewer", lifetime=600),
        "tokens": lambda: acme.access_tokens.add("t", user_id=user.id, role="viewer", lifetime=600),
    }
    monkeypatch.setattr(pairing, "_MOST_CODES", 2)
    monkeypatch.setattr(pairing, "_MOST_KEYS", 2)
    monkeypatch.setattr(people, "_MOST_INVITATIONS", 2)
    monkeypatch.setattr(tokens, "_MOST_OF_A_PERSON", 2)
    for make in makers.values():
        await make()
        await make()
        assert await refused_code(make()) == "too_many"
    clock.pass_time(601)
    for make in makers.values():
        await make()


async def test_a_key_has_so_many_serials_and_the_audit_counts_them(acme: TenantRegistry) -> None:
    many = tuple(f"{number:0128}" for number in range(1600))
    refused = acme.install_keys.add("k", lifetime=60, max_uses=1, serials=many)
    assert await refused_code(refused) == "invalid"
    key, _ = await acme.install_keys.add("k", lifetime=60, max_uses=1, serials=many[:1500])
    assert key.serials == many[:1500]
    (entry,) = await acme.audit.export(from_number=2)
    assert json.loads(entry.after)["serials"] == 1500
    assert len(entry.after) < 1000


async def test_a_page_is_never_heavier_than_it_may_be(
    acme: TenantRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for number in range(5):
        serials = tuple(f"{number}-{serial}" for serial in range(40))
        key, _ = await acme.install_keys.add("k", lifetime=60, max_uses=1, serials=serials)
        made.append(key.id)
    entries = await acme.audit.export()
    monkeypatch.setattr(paging, "_HEAVIEST", 700)  # two keys, or two entries

    pages, after = [], None
    while not pages or after:
        page = await acme.install_keys.page(after=after)
        pages.append([key.id for key in page.items])
        after = page.next
    assert [key_id for page in pages for key_id in page] == made[::-1]
    assert len(pages) > 1

    monkeypatch.setattr(paging, "_HEAVIEST", 1)  # one is there in any case
    assert len((await acme.audit.page()).items) == 1
    found, number = [], 1
    while some := await acme.audit.export(from_number=number):
        assert len(some) == 1
        found += some
        number = some[-1].number + 1
    assert found == entries
    assert (await acme.audit.verify()).broken_at is None


async def test_devices_with_a_key_share_the_places_of_those_who_wait(
    open_registry: OpenRegistry,
) -> None:
    async with open_registry(rules=PairingRules(max_waiting=3, address_budget=2)) as registry:
        acme = await add_tenant(registry, "acme")
        _, key = await acme.install_keys.add("k", lifetime=60, max_uses=99, needs_approval=True)

        async def ask(name: str, address: str) -> None:
            await registry.joining.install(key, address=address, name=name)

        for number in range(3):  # as many from one address as there are places
            await ask(f"flood{number}", "203.0.113.7")
        assert await refused_code(ask("flood3", "203.0.113.7")) == "too_many_requests"
        await ask("real", ELSEWHERE)
        await ask("neighbour", "203.0.113.8")
        waiting = (await acme.pairings.page(waiting=True)).items
        assert [item.name for item in waiting] == ["neighbour", "real", "flood2"]
        # Strangers without a key have places of their own.
        await registry.joining.request(address="203.0.113.9", name="stranger")


async def test_begun_log_ins_of_terminals_share_their_places(open_registry: OpenRegistry) -> None:
    async with open_registry(rules=PairingRules(max_waiting=3)) as registry:

        async def ask(address: str) -> Secret:
            return (await registry.terminals.ask(client="c", address=address))[2]

        flood = [await ask(f"2001:db8:0:{number}::1") for number in range(3)]
        assert await refused_code(ask("2001:db8:0:9::1")) == "too_many_requests"
        mine = await ask(ELSEWHERE.replace(":7:", ":8:"))
        assert (await registry.terminals.poll(mine)).state == "open"
        assert await refused_code(registry.terminals.poll(flood[0])) == "request_unknown"
        assert (await registry.terminals.poll(flood[1])).state == "open"


async def test_one_person_writes_so_much_into_the_audit_in_a_day(
    registry: Registry,
    acme: TenantRegistry,
    other: TenantRegistry,
    clock: WallClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "_MOST_A_DAY", 7)
    eve = replace(ANN, id="eve")
    here, there = registry.tenant(acme.tenant_id, eve), registry.tenant(other.tenant_id, eve)
    device, _ = await here.devices.add("cam1")  # two entries
    for _ in range(5):
        await here.audit.note("x.y", object_kind="x", object_id="1")
    for refused in (
        here.audit.note("x.y", object_kind="x", object_id="1"),
        there.devices.add("cam2"),  # it is the person's share, in whatever tenant
    ):
        assert await refused_code(refused) == "too_many"
    assert not (await other.devices.page()).items
    # What takes rights away goes on, and so do other people.
    await here.devices.set_enabled(device.id, False)
    bob = registry.tenant(acme.tenant_id, replace(ANN, id="bob"))
    await bob.devices.add("cam3")
    assert await refused_code(here.devices.set_enabled(device.id, True)) == "too_many"
    clock.pass_time(86_400)
    await here.devices.set_enabled(device.id, True)


@pytest.mark.parametrize("how", ["codes", "host keys"])
async def test_a_device_writes_so_much_into_the_audit_in_a_day(
    registry: Registry,
    acme: TenantRegistry,
    clock: WallClock,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """A code that ends at once makes room for another, and a server may change its keys always."""
    device, _ = await acme.devices.add("cam1")
    monkeypatch.setattr(shares, "_MOST_A_DAY", 3)

    async def cause(number: int) -> None:
        if how == "codes":
            ends = clock.now + timedelta(seconds=1)
            more = {"services": ("ssh",), "starts": clock.now, "ends": ends}
            await registry.fleet.open_code_lease(new_id(), device.id, **more)
            clock.pass_time(2)
        else:
            await registry.fleet.report_host_keys(device.id, (HOST_KEYS[number % 2],))

    for number in range(3):
        await cause(number)
    assert await refused_code(cause(3)) == "too_many"
