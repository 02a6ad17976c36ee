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
from tunnelmux.registry import (
    LeaseTerms,
    PairingRules,
    RecordLimits,
    Registry,
    TenantRegistry,
    new_id,
)
from tunnelmux.registry.sql import paging

ELSEWHERE = "2001:db8:7::1"
DAY = 86_400.0


async def refused_code(call: Awaitable[object]) -> str:
    with pytest.raises(RegistryRefused) as refused:
        await call
    return refused.value.code


async def test_of_each_kind_there_are_so_many_that_are_good(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    limits = RecordLimits(
        access_tokens_per_person=2,
        links_per_device=2,
        leases_per_person=2,
        pairing_codes_per_tenant=2,
        install_keys_per_tenant=2,
        invitations_per_tenant=2,
    )
    async with open_registry(limits=limits) as registry:
        await _make_too_many(registry, clock)


async def _make_too_many(registry: Registry, clock: WallClock) -> None:
    acme = await add_tenant(registry, "acme")
    users = registry.installation(ANN).users
    user = await users.sign_in(issuer="https://id.example.com", subject="ann")
    await users.grant(acme.tenant_id, "owner", issuer=user.issuer, subject="ann", force=True)
    device, _ = await acme.devices.add("cam1")

    async def add_link() -> None:
        await acme.service_links.add(device.id, "web", lifetime=600, once=False)

    async def add_lease() -> None:
        ends = clock.now + timedelta(seconds=600)
        more = {"holder": "", "holder_name": "", "reason": ""}
        terms = LeaseTerms(
            device_id=device.id, services=("ssh",), starts=clock.now, ends=ends, **more
        )
        await acme.leases.add(terms, approved=False)

    makers: dict[str, Callable[[], Awaitable[object]]] = {
        "codes": acme.pairings.make_code,
        "keys": lambda: acme.install_keys.add("k", lifetime=600, max_uses=1),
        "invitations": lambda: acme.invitations.add("bob@example.com", "viewer", lifetime=600),
        "tokens": lambda: acme.access_tokens.add("t", user_id=user.id, role="viewer", lifetime=600),
        "links": add_link,
        "leases": add_lease,
    }
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


async def test_a_device_has_so_many_leases_of_all_people(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(limits=RecordLimits(leases_per_device=2)) as registry:
        acme = await add_tenant(registry, "acme")
        device, _ = await acme.devices.add("cam1")
        ends = clock.now + timedelta(seconds=600)
        terms = LeaseTerms(
            device_id=device.id,
            services=("ssh",),
            holder="",
            holder_name="",
            reason="",
            starts=clock.now,
            ends=ends,
        )
        for name in ("bob", "eve"):
            by = registry.tenant(acme.tenant_id, replace(ANN, id=name))
            await by.leases.add(terms, approved=False)
        assert await refused_code(acme.leases.add(terms, approved=False)) == "too_many"


async def test_a_person_has_so_many_ssh_keys(open_registry: OpenRegistry) -> None:
    async with open_registry(limits=RecordLimits(ssh_keys_per_person=1)) as registry:
        installation = registry.installation(ANN)
        user = await installation.users.sign_in(issuer="https://id.example.com", subject="ann")
        await installation.ssh_keys.add(user.id, HOST_KEYS[0])
        assert await refused_code(installation.ssh_keys.add(user.id, HOST_KEYS[1])) == "too_many"


async def test_one_person_writes_so_much_into_the_audit_in_a_day(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(limits=RecordLimits(audit_per_day=7)) as registry:
        acme = await add_tenant(registry, "acme", by=replace(ANN, id="bob"))
        other = await add_tenant(registry, "other")
        await _write_too_much(registry, acme, other, clock)


async def _write_too_much(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
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
    open_registry: OpenRegistry, clock: WallClock, how: str
) -> None:
    """A code that ends at once makes room for another, and a server may change its keys always."""
    async with open_registry(limits=RecordLimits(audit_per_day=3)) as registry:
        acme = await add_tenant(registry, "acme", by=replace(ANN, id="bob"))
        device, _ = await acme.devices.add("cam1")

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


async def test_a_tenant_writes_so_much_into_its_audit_in_a_day(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    """However many devices and people it has; its devices leave half of that to its people."""
    async with open_registry(limits=RecordLimits(audit_per_day_of_tenant=24)) as registry:
        acme, other = await add_tenant(registry, "acme"), await add_tenant(registry, "other")
        made = [(await acme.devices.add(f"cam{number}"))[0] for number in range(2)]  # 4 entries
        _, key = await acme.install_keys.add("k", lifetime=9 * DAY, max_uses=99)
        before = (await acme.audit.export())[-1].number

        async def devices_write() -> None:
            for number in range(99):
                device = made[number % 2]
                await registry.fleet.report_host_keys(device.id, (HOST_KEYS[number // 2 % 2],))

        assert await refused_code(devices_write()) == "too_many"
        written = (await acme.audit.export())[-1].number
        assert written == before + 12
        enrolled = registry.joining.install(key, address=ELSEWHERE, name="cam3")
        assert await refused_code(enrolled) == "too_many"
        # Its people go on, and so do other tenants; then its people have used up theirs.
        bob = registry.tenant(acme.tenant_id, replace(ANN, id="bob"))
        for _ in range(24 - written):
            await bob.audit.note("x.y", object_kind="x", object_id="1")
        for person in (bob, acme):
            refused = person.audit.note("x.y", object_kind="x", object_id="1")
            assert await refused_code(refused) == "too_many"
        await other.devices.add("cam1")
        # What takes rights away is never refused.
        await bob.devices.remove(made[0].id)
        clock.pass_time(DAY)
        await registry.joining.install(key, address=ELSEWHERE, name="cam3")
