"""What is over is forgotten in batches that hold no writer up, and old entries of the audit."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime

import pytest
import trio

from support.registries import ANN, OpenRegistry, WallClock, add_tenant
from tunnelmux.errors import RegistryAway
from tunnelmux.registry import Actor, Keeping, Registry, TenantRegistry
from tunnelmux.registry.sql import schema, tidying

DAY = 86_400.0
ANCIENT = datetime(2020, 1, 1, tzinfo=UTC)

BOUNDED_OTHERWISE = {
    # Things that people made and that are there until people remove them, within the limits of
    # test_room, or as many as there are proxies, people or devices.
    "tenants ssh_rules ssh_authorities host_labels users memberships devices device_states",
    "access_rules ssh_keys counters proxies",
    # The last of each device.
    "device_sessions",
    # See test_old_entries_of_the_audit_are_cut.
    "audit",
}


@pytest.fixture
def many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "_BATCH", 2)
    monkeypatch.setattr(tidying, "_PAUSE", 0.0)


def test_each_table_is_tidied_or_is_bounded_otherwise() -> None:
    bounded = {name for line in BOUNDED_OTHERWISE for name in line.split()}
    tidied = {table.name for table in tidying.TIDIED}
    assert tidied | bounded == set(schema.metadata.tables)
    assert not tidied & bounded


async def test_what_ended_long_ago_is_in_no_list(
    registry: Registry, acme: TenantRegistry, clock: WallClock, many_batches: None
) -> None:
    users = registry.installation(ANN).users
    user = await users.sign_in(issuer="https://id.example.com", subject="ann")
    await users.grant(acme.tenant_id, "owner", issuer=user.issuer, subject="ann", force=True)
    device, _ = await acme.devices.add("cam1")
    made = {"user_id": user.id, "role": "viewer"}
    for _ in range(5):
        await acme.access_tokens.add("old", lifetime=600, **made)
        await acme.invitations.add("bob@example.com", "viewer", lifetime=600)
        await acme.install_keys.add("old", lifetime=600, max_uses=1)
        await acme.credentials.replace(device.id)
    revoked = await acme.access_tokens.add("revoked", lifetime=365 * DAY, **made)
    await acme.access_tokens.revoke(revoked[0].id)
    endless = await acme.access_tokens.add("endless", lifetime=None, **made)
    used, key = await acme.install_keys.add("used", lifetime=600, max_uses=9)
    await registry.joining.install(key, address="192.0.2.7", name="cam2")

    clock.pass_time(89 * DAY)
    await registry.tidy()
    assert len((await acme.access_tokens.page()).items) == 7
    assert len((await acme.install_keys.page()).items) == 6
    assert len((await acme.invitations.page()).items) == 5
    assert len(await acme.credentials.of(device.id)) == 6

    clock.pass_time(2 * DAY)
    await registry.tidy()
    assert [token.id for token in (await acme.access_tokens.page()).items] == [endless[0].id]
    # Its devices are still there.
    assert [item.id for item in (await acme.install_keys.page()).items] == [used.id]
    assert (await acme.invitations.page()).items == []
    assert [item.state for item in await acme.credentials.of(device.id)] == ["active"]
    assert (await acme.audit.verify()).broken_at is None


async def test_strangers_requests_are_forgotten_soon(
    registry: Registry, acme: TenantRegistry, clock: WallClock, many_batches: None
) -> None:
    for number in range(5):
        address = f"192.0.2.{number}"
        _, _, poll = await registry.joining.request(address=address, name="x")
        _, _, secret = await registry.terminals.ask(client="x", address=address)
    clock.pass_time(600 + 3599)
    await registry.tidy()
    with pytest.raises(Exception, match="expired"):
        await registry.joining.poll(poll)
    clock.pass_time(2)
    await registry.tidy()
    with pytest.raises(Exception, match="no such request"):
        await registry.joining.poll(poll)
    with pytest.raises(Exception, match="no such request"):
        await registry.terminals.poll(secret)


async def test_old_entries_of_the_audit_are_cut(
    registry: Registry, acme: TenantRegistry, clock: WallClock, many_batches: None
) -> None:
    keep = Keeping(audit=30 * DAY)

    async def numbers() -> list[int]:
        return [entry.number for entry in await acme.audit.export()]

    for number in range(5):
        await acme.devices.add(f"old{number}")
    before = await numbers()
    clock.pass_time(20 * DAY)
    await acme.devices.add("young")
    clock.pass_time(10.5 * DAY)
    await registry.tidy(keep)
    assert (await numbers())[: len(before)] == before  # not yet: once a day is enough
    clock.pass_time(DAY)
    await registry.tidy(Keeping(audit=None))
    assert (await numbers())[0] == 1

    await registry.tidy(keep)
    left = await acme.audit.export()
    assert [entry.action for entry in left] == ["device.add", "credential.add", "audit.cut"]
    assert left[0].number == before[-1] + 1
    assert json.loads(left[-1].after) == {
        "up_to": before[-1],
        "hash": left[0].previous_hash,
    }
    check = await acme.audit.verify()
    assert (check.entries, check.broken_at, check.cut) == (3, None, before[-1])

    await registry.tidy(keep)
    assert len(await numbers()) == 3
    clock.pass_time(400 * DAY)
    await registry.tidy(keep)
    left = await acme.audit.export()
    assert [entry.action for entry in left] == ["audit.cut", "audit.cut"]
    assert (await acme.audit.verify()).broken_at is None
    assert (await registry.installation(ANN).audit.verify()).broken_at is None


@pytest.mark.parametrize("survived", range(8))
async def test_a_cut_is_written_down_although_the_api_dies_at_it(
    registry: Registry,
    acme: TenantRegistry,
    clock: WallClock,
    many_batches: None,
    monkeypatch: pytest.MonkeyPatch,
    survived: int,
) -> None:
    """It dies after so many transactions that write, and another one goes on. Before, all entries
    could be deleted, and the one that says so was missing for ever."""
    for number in range(2):
        await acme.devices.add(f"old{number}")
    last = (await acme.audit.export())[-1].number
    clock.pass_time(40 * DAY)
    await acme.devices.add("young")
    database = registry._database  # type: ignore[attr-defined]
    run, writes = database.run, 0

    async def run_for_a_while(work: object, *, write: bool) -> object:
        nonlocal writes
        writes += write
        if writes > survived:
            raise RegistryAway("the program has died")
        return await run(work, write=write)

    with monkeypatch.context() as dying:
        dying.setattr(database, "run", run_for_a_while)
        with contextlib.suppress(RegistryAway):
            await registry.tidy(Keeping(audit=30 * DAY))
    await registry.tidy(Keeping(audit=30 * DAY))
    left = await acme.audit.export()
    assert [entry.action for entry in left] == ["device.add", "credential.add", "audit.cut"]
    assert json.loads(left[-1].after)["up_to"] == last
    assert (await acme.audit.verify()).cut == last


async def test_a_cut_hides_no_entry_that_was_taken_out(
    registry: Registry, acme: TenantRegistry, clock: WallClock, many_batches: None
) -> None:
    await acme.devices.add("old")
    clock.pass_time(40 * DAY)
    await acme.devices.add("young")
    await registry.tidy(Keeping(audit=30 * DAY))
    first, _, _ = await acme.audit.export()
    database = registry._database  # type: ignore[attr-defined]
    gone = schema.audit.delete().where(
        schema.audit.c.tenant_id == acme.tenant_id, schema.audit.c.number == first.number
    )
    await database.run(lambda connection: connection.execute(gone), write=True)
    check = await acme.audit.verify()
    assert (check.broken_at, check.problem) == (
        first.number,
        f"entry {first.number} is missing",
    )


async def test_two_tidy_at_once_and_writers_go_on(
    open_registry: OpenRegistry, clock: WallClock, many_batches: None
) -> None:
    async with open_registry() as one, open_registry() as two:
        acme = await add_tenant(one, "acme", by=Actor.program("test"))
        for number in range(12):
            await acme.devices.add(f"cam{number}")
            await acme.invitations.add("bob@example.com", "viewer", lifetime=600)
        clock.pass_time(400 * DAY)
        async with trio.open_nursery() as nursery:
            for registry in (one, two):
                nursery.start_soon(registry.tidy, Keeping(audit=30 * DAY))
            for number in range(5):
                await acme.devices.add(f"new{number}")
        assert (await acme.invitations.page()).items == []
        check = await acme.audit.verify()
        assert check.broken_at is None
        assert check.cut >= 36
        assert (await acme.devices.count()) == 17


async def test_more_than_one_transaction_has_time_for(open_registry: OpenRegistry) -> None:
    """Before, one transaction deleted all: what took longer than `timeout` was never deleted."""
    async with open_registry() as registry:
        database = registry._database
        rows = [{"key": f"{number:064}", "until": ANCIENT} for number in range(1200)]
        insert = schema.used_once.insert()
        await database.run(lambda connection: connection.execute(insert, rows), write=True)
        counts = []
        run = database.run

        async def counted(work: object, *, write: bool) -> object:
            counts.append(write)
            return await run(work, write=write)

        database.run = counted
        await registry.tidy()
        assert counts.count(True) == 3  # 500, 500 and 200
        # One that only looks takes no turn of the writer.
        counts.clear()
        await registry.tidy()
        assert counts.count(True) == 0
