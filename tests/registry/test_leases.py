"""Leases, serial numbers, SSH keys and tickets, on both databases."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import trio

from support.registries import ANN, WallClock
from tunnelmux.config import Secret
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import (
    Actor,
    AssistState,
    DeviceFilter,
    LeaseTerms,
    Registry,
    TenantRegistry,
    new_id,
    parse_public_key,
)

BOB = Actor(kind="user", id="bob", name="Bob")
HOUR = timedelta(hours=1)
ALLOW = AssistState(mode="allow", services=("ssh", "web"), longest=7200.0)


async def terms_for(tenant: TenantRegistry, clock: WallClock, **more: object) -> LeaseTerms:
    device, _ = await tenant.devices.add(f"cam{new_id()[-6:]}")
    values: dict[str, object] = {
        "device_id": device.id,
        "services": ("ssh",),
        "holder": "bob",
        "reason": "ticket 7",
        "starts": clock.now,
        "ends": clock.now + HOUR,
    }
    return LeaseTerms(**(values | more))  # type: ignore[arg-type]


async def refusal(attempt: object) -> RegistryRefused:
    with pytest.raises(RegistryRefused) as refused:
        await attempt  # type: ignore[misc]
    return refused.value


async def test_a_lease_is_asked_for_runs_is_extended_and_ends_for_good(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    terms = await terms_for(acme, clock)
    lease, asked = await acme.leases.add(terms, approved=True)
    assert asked == await registry.changes.latest()
    assert lease.state(clock.now) == "waiting"
    assert (await refusal(acme.leases.use(lease.id))).code == "lease_over"
    assert await acme.leases.running(holder="bob", device_id=terms.device_id) == []
    await registry.fleet.answer_lease(lease.id, terms.device_id, given=True)
    assert (await acme.leases.use(lease.id, {"what": "ssh"})).uses == 1
    found = await acme.leases.running(holder="bob", device_id=terms.device_id)
    assert [one.id for one in found] == [lease.id]
    assert await acme.leases.running(holder="eve", device_id=terms.device_id) == []
    lease, _ = await acme.leases.extend(lease.id, lease.ends + HOUR)
    clock.pass_time(3601)
    assert lease.state(clock.now) == "running"
    with pytest.raises(NoSuchRecord):
        await other.leases.end(lease.id, "not mine")
    ended, change = await acme.leases.end(lease.id, "done")
    assert (ended.state(clock.now), ended.end_reason, ended.ended_by) == ("ended", "done", "ann")
    assert change == await registry.changes.latest()
    for attempt in (
        acme.leases.extend(lease.id, lease.ends + 2 * HOUR),
        acme.leases.use(lease.id),
        acme.leases.decide(lease.id, True),
    ):
        assert (await refusal(attempt)).code == "lease_over"
    await registry.fleet.answer_lease(lease.id, terms.device_id, given=False)
    assert (await acme.leases.find(lease.id)).consent == "given"
    assert (await acme.leases.page(living=True)).items == []
    entries = await acme.leases.report(lease.id)
    assert [entry.action.removeprefix("lease.") for entry in entries] == [
        "request",
        "consent",
        "use",
        "extend",
        "end",
    ]
    assert [entry.actor.kind for entry in entries][:2] == ["user", "device"]
    assert json.loads(entries[2].after) == {"uses": 1, "what": "ssh"}


async def test_a_use_is_written_down_whatever_the_command_has_in_it(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    lease, _ = await acme.leases.add(await terms_for(acme, clock), approved=True)
    await registry.fleet.answer_lease(lease.id, lease.device_id, given=True)
    for number, command in enumerate(("\x01" * 250_000, "\u202e" * 250_000, "\0" * 5000), 1):
        used = await acme.leases.use(lease.id, {"what": "exec", "text": command})
        assert used.uses == number
        await acme.leases.note(lease.id, "session", {"kind": "exec", "text": command})
    kept = json.loads((await acme.leases.report(lease.id))[-2].after)
    assert kept["text_length"] == 5000
    assert kept["text"] == "\0" * len(kept["text"])


async def test_a_request_waits_for_another_person_than_the_one_who_asks(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    mine = registry.tenant(acme.tenant_id, by=BOB).leases
    lease, _ = await mine.add(await terms_for(acme, clock), approved=False)
    assert lease.state(clock.now) == "requested"
    assert (await refusal(mine.decide(lease.id, True))).code == "own_request"
    # Not approved, so that the device is not even asked.
    await registry.fleet.answer_lease(lease.id, lease.device_id, given=True)
    assert (await mine.find(lease.id)).state(clock.now) == "requested"
    approved, _ = await acme.leases.decide(lease.id, True)
    assert (approved.state(clock.now), approved.decided_by) == ("waiting", "ann")
    assert (await refusal(acme.leases.decide(lease.id, False))).code == "not_asked"
    second, _ = await mine.add(await terms_for(acme, clock), approved=False)
    denied, _ = await acme.leases.decide(second.id, False, "not today")
    assert (denied.state(clock.now), denied.end_reason) == ("ended", "not today")


async def test_a_lease_is_used_up_expires_and_is_refused_by_the_device(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    terms = await terms_for(acme, clock, max_uses=1)
    answer = registry.fleet.answer_lease
    once, _ = await acme.leases.add(terms, approved=True)
    await answer(once.id, terms.device_id, given=True)
    assert (await acme.leases.use(once.id)).state(clock.now) == "used_up"
    refused, _ = await acme.leases.add(terms, approved=True)
    with pytest.raises(NoSuchRecord):
        await answer(refused.id, (await terms_for(acme, clock)).device_id, given=True)
    await answer(refused.id, terms.device_id, given=False, reason="nobody answered")
    over = await acme.leases.find(refused.id)
    assert (over.state(clock.now), over.end_reason) == ("ended", "nobody answered")
    unused, _ = await acme.leases.add(terms, approved=True)
    clock.pass_time(3601)
    assert unused.state(clock.now) == "expired"
    assert (await refusal(acme.leases.add(terms, approved=True))).code == "invalid"
    fresh = replace(terms, device_id="no", ends=clock.now + HOUR)
    with pytest.raises(NoSuchRecord):
        await acme.leases.add(fresh, approved=True)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"ends": 12.5 * HOUR}, "until"),
        ({"services": ()}, "services"),
        ({"services": tuple(f"s{number}" for number in range(65))}, "services"),
        ({"rights": ("root",)}, "rights"),
        ({"recorded": False, "sealed": False}, "sealed"),
        ({"addresses": ("everywhere",)}, "addresses"),
        ({"max_uses": 0}, "max_uses"),
        ({"reason": "x" * 1001}, "reason"),
    ],
)
async def test_terms_that_make_no_sense_are_refused(
    acme: TenantRegistry, clock: WallClock, wrong: dict[str, object], field: str
) -> None:
    if isinstance(ends := wrong.get("ends"), timedelta):
        wrong = {"ends": clock.now + ends}
    error = await refusal(acme.leases.add(await terms_for(acme, clock, **wrong), approved=True))
    assert (error.code, error.field) == ("invalid", field)


async def test_what_the_device_would_refuse_is_refused_at_once(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    terms = await terms_for(acme, clock)
    await registry.fleet.report_assist(terms.device_id, ALLOW)
    assert (await acme.devices.find(terms.device_id)).state.assist == ALLOW
    lease, _ = await acme.leases.add(terms, approved=True)
    for attempt in (
        acme.leases.add(replace(terms, services=("ssh", "vnc")), approved=True),
        acme.leases.add(replace(terms, ends=clock.now + 3 * HOUR), approved=True),
        acme.leases.extend(lease.id, clock.now + 3 * HOUR),
    ):
        assert (await refusal(attempt)).code == "device_refuses"
    await registry.fleet.report_assist(terms.device_id, replace(ALLOW, mode="off"))
    error = await refusal(acme.leases.add(terms, approved=True))
    assert (error.code, "switched off" in str(error)) == ("device_refuses", True)


async def test_a_device_where_assistance_is_switched_on_asks_for_help(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    asks = DeviceFilter(asks_for_help=True)
    first = (await terms_for(acme, clock)).device_id
    await terms_for(acme, clock)  # one that has said nothing
    await terms_for(other, clock)
    await registry.fleet.report_assist(first, replace(ALLOW, mode="ask"))
    assert (await acme.devices.page(where=asks)).items == []
    until = (clock.now + HOUR).replace(microsecond=0)
    await registry.fleet.report_assist(first, replace(ALLOW, until=until))
    [found] = (await acme.devices.page(where=asks)).items
    assert (found.id, found.state.assist) == (first, replace(ALLOW, until=until))
    assert await acme.devices.count(DeviceFilter(asks_for_help=False)) == 1
    assert await other.devices.count(asks) == 0
    clock.now = until
    assert await acme.devices.count(asks) == 0


async def test_proxies_read_the_living_leases_of_all_tenants(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    made = []
    for tenant in (acme, other):
        lease, _ = await tenant.leases.add(await terms_for(tenant, clock), approved=True)
        made.append((tenant.tenant_id, lease.id))
    ended, _ = await acme.leases.add(await terms_for(acme, clock), approved=True)
    await acme.leases.end(ended.id, "")
    found = await registry.fleet.leases(limit=1)
    found += await registry.fleet.leases(after=found[-1].lease.id)
    assert [(one.tenant_id, one.lease.id) for one in found] == made
    (one,) = await registry.fleet.leases_with_ids([ended.id, "no"])
    assert one.lease.ended is not None
    await registry.fleet.end_lease(made[0][1], found[0].lease.device_id, "switched off there")
    over = await acme.leases.find(made[0][1])
    assert (over.end_reason, over.ended_by) == ("switched off there", over.device_id)


async def test_a_device_makes_a_lease_for_whoever_has_its_code(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    device, _ = await acme.devices.add("cam1")
    foreign, _ = await other.devices.add("cam1")
    lease_id, start = new_id(), clock.now
    open_it = registry.fleet.open_code_lease

    async def make(device_id: str, hours: float, services: tuple[str, ...] = ("ssh",)) -> None:
        ends = start + hours * HOUR
        await open_it(lease_id, device_id, services=services, starts=start, ends=ends)

    for hours, services in ((13.0, ("ssh",)), (-1.0, ("ssh",)), (1.0, ())):
        assert (await refusal(make(device.id, hours, services))).code == "invalid"
    await make(device.id, 1.0)
    lease = await acme.leases.find(lease_id)
    assert (lease.kind, lease.consent, lease.state(clock.now)) == ("code", "given", "running")
    with pytest.raises(NoSuchRecord):
        await make(foreign.id, 1.0)
    await make(device.id, 2.0)
    assert (await acme.leases.find(lease_id)).ends == start + 2 * HOUR
    assert (await refusal(acme.leases.extend(lease_id, start + 3 * HOUR))).code == "device_refuses"
    # A clock that is wrong by days: the length counts, from now on.
    odd = new_id()
    long_ago = start - timedelta(days=400)
    await open_it(odd, device.id, services=("ssh",), starts=long_ago, ends=long_ago + HOUR)
    assert (await acme.leases.find(odd)).ends == clock.now + HOUR


async def test_a_device_makes_so_many_codes_and_none_with_the_key_of_another(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry, clock: WallClock
) -> None:
    mine, theirs = await terms_for(acme, clock), await terms_for(other, clock)
    until = {"services": ("ssh",), "starts": clock.now, "ends": clock.now + HOUR}
    open_it = registry.fleet.open_code_lease
    first = new_id()
    await open_it(first, mine.device_id, key_fingerprint="SHA256:x", **until)  # type: ignore[arg-type]
    stolen = open_it(new_id(), theirs.device_id, key_fingerprint="SHA256:x", **until)  # type: ignore[arg-type]
    assert (await refusal(stolen)).code == "invalid"
    found = await registry.fleet.code_lease("SHA256:x")
    assert found is not None
    assert found.lease.id == first
    for _ in range(15):
        await open_it(new_id(), mine.device_id, **until)  # type: ignore[arg-type]
    assert (await refusal(open_it(new_id(), mine.device_id, **until))).code == "too_many"  # type: ignore[arg-type]
    clock.pass_time(3601)
    until |= {"starts": clock.now, "ends": clock.now + HOUR}
    await open_it(new_id(), mine.device_id, **until)  # type: ignore[arg-type]


async def test_one_person_has_so_many_leases_of_a_device(
    acme: TenantRegistry, clock: WallClock
) -> None:
    terms = await terms_for(acme, clock)
    for _ in range(50):
        last, _ = await acme.leases.add(terms, approved=False)
    assert (await refusal(acme.leases.add(terms, approved=False))).code == "too_many"
    await acme.leases.end(last.id, "enough")
    await acme.leases.add(terms, approved=False)


async def test_a_device_is_found_by_name_and_by_serial_number_whatever_the_case(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    device, _ = await acme.devices.add("cam1", serial="SN-77A")
    named, _ = await acme.devices.add("cam2", serial="CAM1")
    await other.devices.add("cam3", serial="SN-99")
    for text in ("cam1", "CAM1", " sn-77a"):
        assert (await acme.devices.find_called(text)).id == device.id
    for text in ("sn-99", "", "nothing"):
        with pytest.raises(NoSuchRecord):
            await acme.devices.find_called(text)
    assert (await refusal(acme.devices.add("cam4", serial="sn-77a"))).code == "serial_taken"
    await acme.devices.change(device.id, serial="SN-78")
    assert (await acme.devices.find_called("sn-78")).id == device.id
    # What a device says counts where nobody has said anything, and is free.
    fresh, _ = await acme.devices.add("cam5")
    report = registry.fleet.report_serial
    assert "cam1" in await report(fresh.id, "sn-78")
    assert "1 to 128" in await report(fresh.id, "x" * 129)
    assert await report(fresh.id, "SN-80") == ""
    assert await report(fresh.id, "sn-80") == ""
    assert "another serial number for it: SN-80" in await report(fresh.id, "SN-81")
    assert (await acme.devices.find_called("sn-80")).serial == "SN-80"
    assert (await acme.devices.find_called("cam2")).id == named.id


def key_line(folder: Path, *arguments: str) -> str:
    file = folder / new_id()
    command = ["ssh-keygen", "-q", "-N", "", "-C", "ada@work", "-f", str(file), *arguments]
    subprocess.run(command, check=True)
    return file.with_suffix(".pub").read_text()


def fingerprint(line: str) -> str:
    """As OpenSSH says it."""
    command = ["ssh-keygen", "-l", "-f", "-"]
    listed = subprocess.run(command, input=line, capture_output=True, text=True, check=True)
    return listed.stdout.split()[1]


async def make_user(registry: Registry, tenant: TenantRegistry, name: str) -> str:
    installation = registry.installation(by=ANN)
    user = await installation.users.grant(
        tenant.tenant_id, "viewer", issuer="https://id.example.com", subject=name, force=True
    )
    return user.id


async def test_a_key_belongs_to_one_person(
    registry: Registry, acme: TenantRegistry, tmp_path: Path, clock: WallClock
) -> None:
    keys = registry.installation(by=ANN).ssh_keys
    ada, eve = [await make_user(registry, acme, name) for name in ("ada", "eve")]
    line = key_line(tmp_path, "-t", "ed25519")
    key = await keys.add(ada, line)
    assert (key.name, key.line) == ("ada@work", " ".join(line.split()[:2]))
    assert key.fingerprint == fingerprint(line)
    assert (await refusal(keys.add(eve, line))).code == "taken"
    assert await keys.find(key.fingerprint) == key
    await keys.used(key.id, "192.0.2.1")
    assert (await keys.of_user(ada))[0].last_used == clock.now
    with pytest.raises(NoSuchRecord):
        await keys.remove(key.id, user_id=eve)
    await registry.installation(by=ANN).users.set_enabled(ada, False)
    assert await keys.find(key.fingerprint) is None
    await keys.remove(key.id, user_id=ada)
    assert await keys.of_user(ada) == []
    with pytest.raises(NoSuchRecord):
        await keys.add("nobody", line)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_what_is_no_public_key_is_refused_with_the_way_round(
    registry: Registry, acme: TenantRegistry, tmp_path: Path
) -> None:
    keys = registry.installation(by=ANN).ssh_keys
    ada = await make_user(registry, acme, "ada")
    good = key_line(tmp_path, "-t", "ecdsa")
    assert parse_public_key(good).kind == "ecdsa-sha2-nistp256"
    kind, data, _ = good.split(None, 2)
    wrong = {
        "": "no SSH public key",
        "ssh-ed25519": "no SSH public key",
        "x" * 20_000: "no SSH public key",
        "-----BEGIN OPENSSH PRIVATE KEY----- x": "private key",
        "ssh-dss AAAAB3NzaC1kc3MAAA== x": "not accepted",
        f"{kind} {data[:40]}": "damaged",
        f"ssh-ed25519 {data}": "damaged",
        f"{kind} !!!!": "damaged",
        good.strip() + "\n" + good: "no SSH public key",
        key_line(tmp_path, "-t", "rsa", "-b", "1024"): "fewer than 2048 bits",
    }
    for line, words in wrong.items():
        error = await refusal(keys.add(ada, line))
        assert (error.code, words in str(error)) == ("invalid", True), line[:60]


async def test_a_ticket_lets_in_once(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    ada = await make_user(registry, acme, "ada")
    terms = await terms_for(acme, clock, holder=ada)
    lease, _ = await acme.leases.add(terms, approved=True)
    ask = {"user_id": ada, "device_id": terms.device_id}
    assert (await refusal(acme.tickets.add(**ask, lease_id=lease.id))).code == "lease_over"
    await registry.fleet.answer_lease(lease.id, terms.device_id, given=True)
    ticket, secret = await acme.tickets.add(**ask, lease_id=lease.id)
    assert secret.reveal().startswith("ticket_")
    found = []

    async def redeem() -> None:
        found.append(await registry.redeem_ticket(secret, address="192.0.2.1"))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(redeem)
    assert [one for one in found if one is not None] == [ticket]
    assert await registry.redeem_ticket(Secret("ticket_no"), address="") is None
    _, late = await acme.tickets.add(**ask, lifetime=60)
    clock.pass_time(61)
    assert await registry.redeem_ticket(late, address="") is None
    _, orphan = await acme.tickets.add(**ask)
    await acme.members.remove(ada)
    assert await registry.redeem_ticket(orphan, address="") is None
    assert (await refusal(acme.tickets.add(**ask, lifetime=3600))).code == "invalid"
    with pytest.raises(NoSuchRecord):
        await acme.tickets.add(user_id="eve", device_id=terms.device_id, lease_id=lease.id)
