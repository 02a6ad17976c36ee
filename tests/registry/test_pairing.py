"""Pairing codes, both ways, and install keys, on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from support.registries import ANN, OpenRegistry, WallClock
from tunnelmux.config import Secret, hash_token
from tunnelmux.errors import NoSuchRecord, RegistryRefused
from tunnelmux.registry import Arrival, Pairing, PairingRules, Registry, TenantRegistry

ADDRESS = "203.0.113.9"


def letters_of(code: Secret) -> str:
    return code.reveal()


def other_half(code: str) -> str:
    """The same first half, and another second one."""
    return code[:5] + ("BBBB" if code[5:] != "BBBB" else "CCCC")


async def refused_code(call: object) -> str:
    with pytest.raises(RegistryRefused) as refused:
        await call  # type: ignore[misc]
    return refused.value.code


async def test_a_code_from_the_console_becomes_a_device_once(
    registry: Registry, acme: TenantRegistry
) -> None:
    pairing, code = await acme.pairings.make_code(name="cam1", labels={"site": "north"})
    assert len(letters_of(code)) == 9
    typed = letters_of(code).lower().replace("-", " ")
    arrival = await registry.joining.exchange(typed, address=ADDRESS, serial="S1")
    assert (arrival.tenant_id, arrival.device.name) == (acme.tenant_id, "cam1")
    assert (arrival.device.paired_by, arrival.device.labels) == ("ann", {"site": "north"})
    known = await registry.fleet.identify(hash_token(arrival.token))
    assert known is not None
    assert known.device_id == arrival.device.id
    assert (await acme.pairings.find(pairing.id)).state == "used"
    again = registry.joining.exchange(typed, address=ADDRESS)
    assert await refused_code(again) == "code_used"


async def test_of_two_devices_with_one_code_one_gets_in(
    registry: Registry, acme: TenantRegistry
) -> None:
    _, code = await acme.pairings.make_code()
    arrived: list[Arrival] = []
    refused: list[str] = []

    async def try_it(name: str) -> None:
        try:
            arrived.append(
                await registry.joining.exchange(letters_of(code), address=ADDRESS, name=name)
            )
        except RegistryRefused as error:
            refused.append(error.code)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(try_it, f"cam{number}")
    assert len(arrived) == 1
    assert set(refused) <= {"code_used", "conflict"}
    assert len((await acme.devices.page()).items) == 1


async def test_a_code_ends_by_time_and_by_an_operator(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    pairing, code = await acme.pairings.make_code(name="cam1")
    clock.pass_time(601)
    late = registry.joining.exchange(letters_of(code), address=ADDRESS)
    assert await refused_code(late) == "code_expired"
    assert (await acme.pairings.find(pairing.id)).state == "expired"
    pairing, code = await acme.pairings.make_code(name="cam1")
    await acme.pairings.deny(pairing.id)
    taken_back = registry.joining.exchange(letters_of(code), address=ADDRESS)
    assert await refused_code(taken_back) == "code_used"


async def test_five_wrong_second_halves_burn_a_code(
    registry: Registry, acme: TenantRegistry
) -> None:
    _, code = await acme.pairings.make_code(name="cam1")
    for _ in range(5):
        wrong = registry.joining.exchange(other_half(letters_of(code)), address=ADDRESS)
        assert await refused_code(wrong) == "code_unknown"
    burnt = registry.joining.exchange(letters_of(code), address=ADDRESS)
    assert await refused_code(burnt) == "code_burnt"
    assert (await acme.devices.page()).items == []


async def test_an_address_has_a_budget_of_wrong_codes(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(rules=PairingRules(address_budget=3)) as registry:
        for _ in range(3):
            wrong = registry.joining.exchange("BBBB-BBBB", address=ADDRESS)
            assert await refused_code(wrong) == "code_unknown"
        for call in (
            registry.joining.exchange("BBBB-BBBB", address=ADDRESS),
            registry.joining.install(Secret("tmk_no"), address=ADDRESS, name="cam1"),
        ):
            assert await refused_code(call) == "too_many_guesses"
        elsewhere = registry.joining.exchange("BBBB-BBBB", address="203.0.113.10")
        assert await refused_code(elsewhere) == "code_unknown"
        clock.pass_time(601)
        later = registry.joining.exchange("rubbish", address=ADDRESS)
        assert await refused_code(later) == "code_unknown"


async def test_a_block_has_not_as_many_budgets_as_networks(open_registry: OpenRegistry) -> None:
    async with open_registry(rules=PairingRules(address_budget=2)) as registry:

        async def guesses(addresses: list[str]) -> int:
            """How many wrong codes are looked up from these addresses."""
            codes = [
                await refused_code(registry.joining.exchange("BBBB-BBBB", address=address))
                for address in addresses
            ]
            return codes.count("code_unknown")

        # 4 times that of one network in its /56, 16 times in its /48.
        assert await guesses([f"2001:db8:7:{number:x}::1" for number in range(20)]) == 8
        assert await guesses([f"2001:db8:7:{number:x}00::1" for number in range(1, 40)]) == 24
        assert await guesses(["2001:db8:8::1"]) == 1
        assert await guesses([f"192.0.2.{number}" for number in range(40)]) == 40


@pytest.mark.parametrize(
    ("block", "other"), [("2001:db8:{:x}::1", "2001:db9::1"), ("198.51.{}.1", "198.52.0.1")]
)
async def test_a_provider_has_not_as_many_budgets_as_customers(
    open_registry: OpenRegistry, block: str, other: str
) -> None:
    async with open_registry(rules=PairingRules(address_budget=1)) as registry:
        joining = registry.joining
        for number in range(256):
            wrong = joining.exchange("BBBB-BBBB", address=block.format(number))
            assert await refused_code(wrong) == "code_unknown"
        one_more = block.format(256) if ":" in block else "198.51.0.2"
        refused = joining.exchange("BBBB-BBBB", address=one_more)
        assert await refused_code(refused) == "too_many_guesses"
        elsewhere = joining.exchange("BBBB-BBBB", address=other)
        assert await refused_code(elsewhere) == "code_unknown"


async def test_a_neighbour_uses_up_no_budget_of_a_person(open_registry: OpenRegistry) -> None:
    async with open_registry(rules=PairingRules(address_budget=2)) as registry:
        tenant = await registry.installation(ANN).tenants.find_named("default")
        pairings = registry.tenant(tenant.id, by=ANN).pairings
        _, code, _ = await registry.joining.request(address=ADDRESS, name="cam1")
        for _ in range(4):
            await refused_code(registry.joining.exchange("BBBB-BBBB", address=ANN.address))
        found = await pairings.find_request(letters_of(code))
        assert found.name == "cam1"
        # Her own guesses count, wherever she is.
        for address, answer in (
            ("192.0.2.1", "code_unknown"),
            ("192.0.2.2", "code_unknown"),
            ("192.0.2.3", "too_many_guesses"),
        ):
            her = registry.tenant(tenant.id, by=replace(ANN, address=address)).pairings
            assert await refused_code(her.find_request("BBBB-BBBB")) == answer


async def test_who_asks_from_many_networks_keeps_no_other_device_out(
    open_registry: OpenRegistry,
) -> None:
    async with open_registry(rules=PairingRules(max_waiting=4)) as registry:
        joining = registry.joining

        async def ask(address: str) -> Secret:
            return (await joining.request(address=address))[2]

        # Four networks (/64) of one customer's block (/48) take all places.
        first, *others = [await ask(f"2001:db8:0:{number}::1") for number in range(4)]
        assert await refused_code(ask("2001:db8:0:9::1")) == "too_many_requests"
        device = await ask("203.0.113.9")
        assert await refused_code(joining.poll(first)) == "pairing_unknown"
        again = await ask("2001:db9:1::1")  # another provider's block
        for poll in (*others[1:], device, again):
            waiting = await joining.poll(poll)
            assert isinstance(waiting, Pairing)
            assert waiting.state == "open"
        # Two of one block and one each of two others: the next of a new block still gets in.
        await ask("198.51.100.1")
        # Four blocks with one each: none gives way any more.
        assert await refused_code(ask("192.0.2.1")) == "too_many_requests"


@pytest.mark.parametrize(
    "flood",
    ["2001:db8:{}::1", "198.51.{}.1"],  # a /32 has 65,536 blocks of one customer, a /16 has 256
)
async def test_who_asks_from_many_blocks_of_one_provider_keeps_no_other_device_out(
    open_registry: OpenRegistry, flood: str
) -> None:
    async with open_registry(rules=PairingRules(max_waiting=4)) as registry:
        joining = registry.joining
        first, *others = [
            (await joining.request(address=flood.format(number)))[2] for number in range(4)
        ]
        one_more = joining.request(address=flood.format(9))
        assert await refused_code(one_more) == "too_many_requests"
        device = (await joining.request(address="203.0.113.9"))[2]
        assert await refused_code(joining.poll(first)) == "pairing_unknown"
        for poll in (*others, device):
            waiting = await joining.poll(poll)
            assert isinstance(waiting, Pairing)
            assert waiting.state == "open"


async def test_a_device_that_asks_is_found_by_its_code_and_let_in(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    asked, code, poll = await registry.joining.request(
        address=ADDRESS, name="cam1", serial="S1", fingerprint="SHA256:x", agent_version="1"
    )
    waiting = await registry.joining.poll(poll)
    assert isinstance(waiting, Pairing)
    assert waiting.state == "open"
    found = await acme.pairings.find_request(letters_of(code))
    assert (found.id, found.serial, found.fingerprint) == (asked.id, "S1", "SHA256:x")
    device = await acme.pairings.approve(found.id, name="front-door", labels={"a": "b"})
    assert (device.name, device.serial, device.paired_by) == ("front-door", "S1", "ann")
    # It is this tenant's from now on.
    assert await refused_code(other.pairings.find_request(letters_of(code))) == "code_used"
    arrival = await registry.joining.poll(poll)
    assert isinstance(arrival, Arrival)
    assert arrival.device.id == device.id
    assert await registry.fleet.identify(hash_token(arrival.token)) is not None
    assert await refused_code(registry.joining.poll(poll)) == "pairing_used"


async def test_a_code_of_the_console_is_no_request_of_a_device(
    registry: Registry, acme: TenantRegistry
) -> None:
    _, mine = await acme.pairings.make_code(name="cam1")
    assert await refused_code(acme.pairings.find_request(letters_of(mine))) == "code_unknown"
    _, shown, _ = await registry.joining.request(address=ADDRESS)
    stolen = registry.joining.exchange(letters_of(shown), address=ADDRESS, name="cam2")
    assert await refused_code(stolen) == "code_unknown"


async def test_a_denied_or_unknown_request_gets_nothing(
    registry: Registry, acme: TenantRegistry
) -> None:
    _, code, poll = await registry.joining.request(address=ADDRESS, name="cam1")
    found = await acme.pairings.find_request(letters_of(code))
    await acme.pairings.deny(found.id)
    assert await refused_code(registry.joining.poll(poll)) == "pairing_denied"
    assert await refused_code(acme.pairings.approve(found.id, name="cam1")) == "pairing_over"
    assert await refused_code(registry.joining.poll(Secret("tmp_no"))) == "pairing_unknown"


async def test_a_device_installed_anew_takes_its_old_place(
    registry: Registry, acme: TenantRegistry
) -> None:
    old, old_token = await acme.devices.add("cam1", serial="S1", labels={"site": "north"})
    _, code, poll = await registry.joining.request(address=ADDRESS, serial="S1")
    found = await acme.pairings.find_request(letters_of(code))
    # Not without saying so.
    assert await refused_code(acme.pairings.approve(found.id, name="cam2")) == "serial_taken"
    device = await acme.pairings.approve(found.id, name="", replace=old.id)
    assert (device.id, device.name, device.labels) == (old.id, "cam1", {"site": "north"})
    assert await registry.fleet.identify(hash_token(old_token)) is None
    arrival = await registry.joining.poll(poll)
    assert isinstance(arrival, Arrival)
    assert arrival.device.id == old.id


async def test_all_addresses_of_one_ipv6_subscriber_count_as_one(
    open_registry: OpenRegistry,
) -> None:
    async with open_registry(rules=PairingRules(address_budget=2)) as registry:
        for call in (
            lambda address: registry.joining.exchange("BBBB-BBBB", address=address),
            lambda address: registry.joining.request(address=address),
        ):
            for address in ("2001:db8::1", "2001:db8::2"):
                try:
                    await call(address)
                except RegistryRefused as error:
                    assert error.code == "code_unknown"
            assert (await refused_code(call("2001:db8::3"))).startswith("too_many_")
        await registry.joining.request(address="2001:db8:0:1::1")


async def test_the_device_of_another_tenant_is_not_replaced(
    registry: Registry, acme: TenantRegistry, other: TenantRegistry
) -> None:
    theirs, token = await other.devices.add("cam1", serial="S1")
    _, code, poll = await registry.joining.request(address=ADDRESS, name="cam1", serial="S1")
    found = await acme.pairings.find_request(letters_of(code))
    with pytest.raises(NoSuchRecord):
        await acme.pairings.approve(found.id, name="", replace=theirs.id)
    known = await registry.fleet.identify(hash_token(token))
    assert known is not None and known.device_id == theirs.id
    waiting = await registry.joining.poll(poll)
    assert isinstance(waiting, Pairing)
    assert waiting.state == "open"  # it can still be approved, as a device of its own


async def test_requests_of_an_address_give_way_to_its_next_ones(
    open_registry: OpenRegistry, clock: WallClock
) -> None:
    async with open_registry(rules=PairingRules(address_budget=2)) as registry:
        tenant = await registry.installation(ANN).tenants.find_named("default")
        pairings = registry.tenant(tenant.id, by=ANN).pairings
        polls = []

        async def flood(times: int) -> None:
            for number in range(times):
                polls.append((await registry.joining.request(address=ADDRESS))[2])
                if number % 2:
                    clock.pass_time(2.1)

        await flood(2)
        _, code, poll = await registry.joining.request(address="203.0.113.10")
        await registry.joining.request(address=ADDRESS)  # two of them within two seconds
        too_fast = registry.joining.request
        await too_fast(address=ADDRESS)
        assert await refused_code(too_fast(address=ADDRESS)) == "too_many_requests"
        clock.pass_time(2.1)
        await flood(20)
        assert await refused_code(registry.joining.poll(polls[0])) == "pairing_unknown"
        assert await refused_code(registry.joining.poll(polls[-11])) == "pairing_unknown"
        await registry.joining.poll(polls[-10])  # five times the budget wait
        await registry.joining.poll(poll)

        # What an operator has looked up stays, however many more come.
        _, code, poll = await registry.joining.request(address=ADDRESS)
        found = await pairings.find_request(letters_of(code))
        clock.pass_time(2.1)
        await flood(20)
        await pairings.approve(found.id, name="cam1")
        assert isinstance(await registry.joining.poll(poll), Arrival)


async def test_requests_that_wait_are_bounded_in_all(open_registry: OpenRegistry) -> None:
    async with open_registry(rules=PairingRules(max_waiting=2)) as registry:
        tenant = await registry.installation(ANN).tenants.find_named("default")
        pairings = registry.tenant(tenant.id, by=ANN).pairings
        _, code, _ = await registry.joining.request(address="203.0.113.1")
        await registry.joining.request(address="203.0.113.2")
        one_more = registry.joining.request(address="203.0.113.3")
        assert await refused_code(one_more) == "too_many_requests"
        found = await pairings.find_request(letters_of(code))
        await pairings.deny(found.id)
        await registry.joining.request(address="203.0.113.3")
        again = registry.joining.request(address="203.0.113.4")
        assert await refused_code(again) == "too_many_requests"


async def test_an_install_key_lets_in_so_many_of_its_serials(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    key, secret = await acme.install_keys.add(
        "van 7", lifetime=3600, max_uses=2, serials=("S1", "S2", "S3"), labels={"van": "7"}
    )

    async def install(name: str, serial: str) -> object:
        return await registry.joining.install(secret, address=ADDRESS, name=name, serial=serial)

    assert await refused_code(install("cam0", "S9")) == "wrong_serial"
    first = await install("cam1", "S1")
    assert isinstance(first, Arrival)
    assert (first.device.labels, first.device.install_key_id) == ({"van": "7"}, key.id)
    await install("cam2", "S2")
    assert await refused_code(install("cam3", "S3")) == "key_used_up"
    assert (await acme.install_keys.find(key.id)).uses == 2
    clock.pass_time(3601)
    assert await refused_code(install("cam3", "S3")) == "key_expired"


async def test_revoking_an_install_key_says_what_becomes_of_its_devices(
    registry: Registry, acme: TenantRegistry
) -> None:
    key, secret = await acme.install_keys.add("van 7", lifetime=3600, max_uses=9)
    kept, _ = await acme.devices.add("own")
    arrival = await registry.joining.install(secret, address=ADDRESS, name="cam1")
    assert isinstance(arrival, Arrival)
    revoked, disabled, change = await acme.install_keys.revoke(key.id, devices="disable")
    assert revoked.revoked is not None
    assert disabled == [arrival.device.id]
    assert change == await registry.changes.latest()
    known = await registry.fleet.identify(hash_token(arrival.token))
    assert known is not None
    assert known.refused
    assert (await acme.devices.find(kept.id)).enabled
    again = registry.joining.install(secret, address=ADDRESS, name="cam2")
    assert await refused_code(again) == "key_revoked"


async def test_an_install_key_may_ask_for_approval(
    registry: Registry, acme: TenantRegistry
) -> None:
    _, secret = await acme.install_keys.add(
        "van 7", lifetime=3600, max_uses=9, needs_approval=True, labels={"van": "7"}
    )
    waiting = await registry.joining.install(secret, address=ADDRESS, name="cam1", serial="S1")
    assert isinstance(waiting, tuple)
    pairing, poll = waiting
    assert [p.id for p in (await acme.pairings.page(waiting=True)).items] == [pairing.id]
    await acme.pairings.approve(pairing.id, name="cam1")
    arrival = await registry.joining.poll(poll)
    assert isinstance(arrival, Arrival)
    assert arrival.device.labels == {"van": "7"}


async def test_a_code_may_give_a_new_machine_the_place_of_an_old_one(
    registry: Registry, acme: TenantRegistry, clock: WallClock
) -> None:
    old, _ = await acme.devices.add("cam1", serial="SN-1")
    before = (await acme.credentials.of(old.id))[0]
    pairing, code = await acme.pairings.make_code(replace=old.id, lifetime=3600)
    assert (pairing.name, pairing.replaces) == ("cam1", old.id)
    clock.pass_time(3000)
    arrival = await registry.joining.exchange(
        code.reveal(), address="192.0.2.5", name="other", serial="SN-2"
    )
    assert (arrival.device.id, arrival.device.name) == (old.id, "cam1")
    assert arrival.device.serial == "SN-2"
    ended = {item.id: item.ended for item in await acme.credentials.of(old.id)}
    assert ended[before.id] is not None
    with pytest.raises(NoSuchRecord):
        await acme.pairings.make_code(replace="nobody")
