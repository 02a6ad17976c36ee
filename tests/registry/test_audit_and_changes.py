"""The audit's chain, the numbered changes and what proxies write, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
import trio

from support.registries import ANN, OpenRegistry, WallClock
from tunnelmux.config import Secret
from tunnelmux.registry import (
    Actor,
    AuditFilter,
    DeviceFilter,
    Effect,
    Registry,
    SessionBegan,
    SessionEnded,
    Sighting,
    SignedIn,
    TenantRegistry,
    new_id,
)
from tunnelmux.registry.sql.database import Database


def execute(url: str, statement: str) -> None:
    """Change the database behind the registry's back."""
    database = Database(Secret(url), connections=1, timeout=5)
    try:
        database.run_here(lambda connection: connection.execute(sa.text(statement)), write=True)
    finally:
        database.close()


async def test_each_change_is_one_entry_that_says_who_what_and_from_where(
    acme: TenantRegistry,
) -> None:
    device, _ = await acme.devices.add("cam1")
    await acme.devices.set_enabled(device.id, False)
    await acme.devices.set_enabled(device.id, False)  # changes nothing, so it is no entry
    entries = (await acme.audit.page()).items
    assert [entry.action for entry in entries] == [
        "device.disable",
        "credential.add",
        "device.add",
        "tenant.add",
    ]
    last = entries[0]
    assert (last.actor, last.object_id) == (ANN, device.id)
    assert (last.before, last.after) == ('{"enabled":true}', '{"enabled":false}')
    found = await acme.audit.page(where=AuditFilter(action="device.", object_id=device.id))
    assert [entry.action for entry in found.items] == ["device.disable", "device.add"]
    assert (await acme.audit.page(where=AuditFilter(actor_id="bob"))).items == []


async def test_no_secret_stands_in_the_audit(registry: Registry, acme: TenantRegistry) -> None:
    _, token = await acme.devices.add("cam1")
    _, code = await acme.pairings.make_code()
    _, key = await acme.install_keys.add("k", lifetime=60, max_uses=1)
    _, link = await acme.invitations.add("bob@example.com", "viewer", lifetime=60)
    text = repr(await acme.audit.export())
    for secret in (token, code, key, link):
        assert secret.reveal() not in text


async def test_refused_changes_leave_no_entry(acme: TenantRegistry) -> None:
    await acme.devices.add("cam1")
    before = len(await acme.audit.export())
    for name in ("cam1", "Cam 1"):
        with pytest.raises(Exception, match=r"cam1|Cam 1"):
            await acme.devices.add(name)
    assert len(await acme.audit.export()) == before


async def test_a_whole_chain_is_whole(registry: Registry, acme: TenantRegistry) -> None:
    for number in range(5):
        await acme.devices.add(f"cam{number}")
    check = await acme.audit.verify()
    assert (check.entries, check.broken_at, check.problem) == (11, None, "")
    installation = await registry.installation(by=ANN).audit.verify()
    assert (installation.entries, installation.broken_at) == (1, None)


@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE audit SET actor_name='Bob' WHERE number=3", 3),
        ("UPDATE audit SET after='{}' WHERE number=3", 3),
        ("DELETE FROM audit WHERE number=3", 3),
        ("DELETE FROM audit WHERE number>=9", 9),
        ("UPDATE audit SET hash=previous_hash WHERE number=4", 4),
    ],
)
async def test_what_was_done_to_the_audit_shows(
    acme: TenantRegistry, database_url: str, statement: str, broken_at: int
) -> None:
    for number in range(5):
        await acme.devices.add(f"cam{number}")
    execute(database_url, f"{statement} AND tenant_id='{acme.tenant_id}'")
    assert (await acme.audit.verify()).broken_at == broken_at


async def test_entries_of_another_tenant_do_not_fit_in(
    acme: TenantRegistry, other: TenantRegistry, database_url: str
) -> None:
    await other.devices.add("cam1")
    execute(
        database_url,
        f"DELETE FROM audit WHERE tenant_id='{acme.tenant_id}'",
    )
    execute(
        database_url,
        f"UPDATE audit SET tenant_id='{acme.tenant_id}' "
        f"WHERE tenant_id='{other.tenant_id}' AND number=1",
    )
    assert (await acme.audit.verify()).broken_at == 1


async def test_many_writers_at_once_make_one_chain_and_one_row_of_numbers(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    before = await registry.changes.latest()

    async def write(tenant: TenantRegistry, writer: int) -> None:
        for number in range(5):
            await tenant.devices.add(f"cam{writer}-{number}")

    async with trio.open_nursery() as nursery:
        for writer in range(4):
            nursery.start_soon(write, acme, writer)
            nursery.start_soon(write, other, writer)
    for tenant in (acme, other):
        assert (await tenant.audit.verify()).problem == ""
        assert (await tenant.devices.count()) == 20
    changes = await registry.changes.after(before)
    assert changes is not None
    assert [change.number for change in changes] == list(range(before + 1, before + 41))


async def test_a_reader_is_told_of_anothers_change(
    open_registry: OpenRegistry, acme: TenantRegistry
) -> None:
    async with open_registry() as reader, reader.changes.watch() as watch:
        seen = await reader.changes.latest()
        await watch.wait()
        await acme.devices.add("cam1")
        with trio.fail_after(20):
            while not await reader.changes.after(seen):
                await watch.wait()


async def test_a_reader_that_was_away_for_too_long_reads_everything(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    before = await registry.changes.latest()
    await acme.devices.add("cam1")
    clock.pass_time(3601)
    await registry.tidy()
    assert await registry.changes.after(before) is None
    assert await registry.changes.after(await registry.changes.latest()) == []
    assert await registry.changes.after(10_000) is None  # of another database


async def test_what_a_proxy_saw_stands_with_the_device(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    device, _ = await acme.devices.add("cam1")
    proxy, session = new_id(), new_id()
    await registry.fleet.hello(proxy, name="p1", internal_url="http://p1:3801", version="1")
    began = SessionBegan(
        session_id=session,
        device_id=device.id,
        at=clock.now,
        address="203.0.113.9",
        agent_version="0.1",
    )
    gone = Sighting(device_id=new_id(), at=clock.now)
    seen = Sighting(device_id=device.id, at=clock.now, services=("web", "ssh"))
    entries = len(await acme.audit.export())
    await registry.fleet.report(proxy, began=[began], ended=[], seen=[seen, gone])
    state = (await acme.devices.find(device.id)).state
    assert (state.online, state.proxy_id, state.last_seen) == (True, proxy, clock.now)
    assert (state.address, state.services) == ("203.0.113.9", ("web", "ssh"))
    assert await acme.devices.count(DeviceFilter(online=True)) == 1
    later = SessionBegan(
        session_id=new_id(), device_id=device.id, at=clock.now, address="", agent_version=""
    )
    late_goodbye = SessionEnded(
        session_id=session,
        device_id=device.id,
        at=clock.now,
        reason="replaced",
        bytes_to_device=1,
        bytes_from_device=2,
    )
    await registry.fleet.report(proxy, began=[later], ended=[late_goodbye], seen=[])
    assert (await acme.devices.find(device.id)).state.online
    history = (await acme.devices.sessions(device.id)).items
    assert [(entry.ended is None, entry.reason) for entry in history] == [
        (True, ""),
        (False, "replaced"),
    ]
    assert len(await acme.audit.export()) == entries
    # A proxy that says nothing any more holds nobody.
    clock.pass_time(16)
    assert not (await acme.devices.find(device.id)).state.online
    assert [p.living for p in await registry.fleet.proxies()] == [False]


async def test_a_device_with_two_sessions_is_online_until_both_are_over(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    """One with each of two nodes of a cluster."""
    device, _ = await acme.devices.add("cam1")
    proxies = [new_id(), new_id()]
    began = []
    for number, proxy in enumerate(proxies):
        await registry.fleet.hello(proxy, name=f"p{number}", internal_url="", version="1")
        clock.pass_time(1)
        began.append(
            SessionBegan(
                session_id=new_id(),
                device_id=device.id,
                at=clock.now,
                address=f"203.0.113.{number}",
                agent_version="0.1",
            )
        )
        await registry.fleet.report(proxy, began=began[-1:], ended=[], seen=[])

    async def end(number: int) -> None:
        ended = SessionEnded(
            session_id=began[number].session_id,
            device_id=device.id,
            at=clock.now,
            reason="over",
            bytes_to_device=0,
            bytes_from_device=0,
        )
        await registry.fleet.report(proxies[number], began=[], ended=[ended], seen=[])

    await end(1)
    state = (await acme.devices.find(device.id)).state
    assert (state.online, state.proxy_id, state.reason) == (True, proxies[0], "")
    assert (state.since, state.address) == (began[0].at, "203.0.113.0")
    # The node of the newest session dies, and cannot say so.
    again = replace(began[1], session_id=new_id(), at=clock.now)
    await registry.fleet.report(proxies[1], began=[again], ended=[], seen=[])
    for _ in range(2):
        clock.pass_time(8)
        await registry.fleet.beat(proxies[0], applied=0, effects={})
    assert (await acme.devices.find(device.id)).state.online
    assert await acme.devices.count(DeviceFilter(online=True)) == 1
    await end(0)
    state = (await acme.devices.find(device.id)).state
    assert not state.online
    assert await acme.devices.count(DeviceFilter(online=False)) == 1


async def test_a_history_of_sessions_is_bounded(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    device, _ = await acme.devices.add("cam1")
    proxy = new_id()
    began = [
        SessionBegan(
            session_id=new_id(), device_id=device.id, at=clock.now, address="", agent_version=""
        )
        for _ in range(210)
    ]
    for first in range(0, len(began), 70):  # in parts, as a proxy does, each within its time
        part = began[first : first + 70]
        await registry.fleet.report(proxy, began=part, ended=[], seen=[])
    assert len((await acme.devices.sessions(device.id, limit=200)).items) == 200
    assert (await acme.devices.sessions(device.id, limit=200)).next is None


async def test_effects_are_waited_for_from_the_proxies_that_live(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    first, second, dead = new_id(), new_id(), new_id()
    for proxy, name in ((dead, "dead"), (first, "p1"), (second, "p2")):
        await registry.fleet.hello(proxy, name=name, internal_url="", version="1")
        if proxy == dead:
            clock.pass_time(16)
    device, _ = await acme.devices.add("cam1")
    revocation = await acme.credentials.revoke(device.id)
    effect = Effect(proxy_id=first, proxy_name="p1", sessions=1, visits=3)
    number = revocation.change
    await registry.fleet.beat(first, applied=number, effects={number: effect})
    effects = await registry.changes.effects(number, within=0.1)
    assert (effects.sessions, effects.visits, effects.missing) == (1, 3, ["p2"])
    await registry.fleet.beat(second, applied=number, effects={})
    effects = await registry.changes.effects(number, within=2)
    assert (effects.done, effects.missing) == ([effect], [])
    await registry.fleet.goodbye(second)
    another = await acme.credentials.revoke(device.id)
    assert (await registry.changes.effects(another.change, within=0)).missing == ["p1"]


async def test_tidying_forgets_what_is_over(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    installation = registry.installation(by=Actor.program("test"))
    user = await installation.users.sign_in(issuer="https://id.example.com", subject="1", email="")
    who = SignedIn(
        user_id=user.id, tenant_id=None, role=None, issuer="", provider_session="", tokens=b""
    )
    await installation.browser_sessions.begin(who, idle=60, lifetime=60, address="", user_agent="")
    await acme.pairings.make_code()
    clock.pass_time(timedelta(days=31).total_seconds())
    await registry.tidy()
    assert (await acme.pairings.page()).items == []
    assert (await acme.audit.verify()).problem == ""
