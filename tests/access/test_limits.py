"""What proving themselves may cost: each limit is reached, and said."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from support.guarded import BROWSER, PROGRAM
from support.visiting import World, visiting
from tunnelmux.access.passwords import hash_password
from tunnelmux.config.access import AccessConfig
from tunnelmux.http.head import RequestHead
from tunnelmux.http.refusal import Refused
from tunnelmux.limits import AccessLimits
from tunnelmux.proxy.access.gate import Gate
from tunnelmux.proxy.access.passwords import PasswordCheck, TooManyGuesses
from tunnelmux.proxy.access.proofs import Asked, Sender
from tunnelmux.proxy.tunnels.devices import DeviceRegister, KnownDevice
from tunnelmux.sessions import MemoryStore

HASH = hash_password("geheim")


async def set_limits(world: World, **limits: int) -> None:
    """By a reload, as `[limits]` in proxy.toml would."""
    config = world.this.proxy.config
    access = replace(config.limits.access, **limits)
    wanted = msgspec.structs.replace(config.limits, access=access)
    await world.this.proxy.reload(msgspec.structs.replace(config, limits=wanted))


async def test_so_many_proofs_are_remembered() -> None:
    """One more, and all are judged again; those that are good stay so."""
    token = "a" * 64
    tokens = ["deploy:" + hashlib.sha256(token.encode()).hexdigest()]
    gate = Gate(DeviceRegister([KnownDevice(name="dev1", token_sha256=b"1" * 32)]), MemoryStore())
    rule = AccessConfig(let_in=["token"], tokens=tokens)
    gate.configure(rule, AccessLimits(access_max_passes=3), is_local=True)
    senders = [Sender(f"192.0.2.{number}") for number in range(4)]
    first = [gate.find("dev1", None, one, token=token.encode()) for one in senders[:3]]
    assert [gate.find("dev1", None, one, token=token.encode()) for one in senders[:3]] == first
    assert gate.find("dev1", None, senders[3], token=token.encode()) is not None
    again = gate.find("dev1", None, senders[0], token=token.encode())
    assert again is not None and again is not first[0]
    asked = Asked(RequestHead(b"GET", b"/", b"1.1", []), senders[0], token=token.encode())
    assert (await gate.admit("dev1", None, asked)).by is again


@pytest.mark.slow
async def test_so_many_people_are_known_and_the_idle_make_room(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        anna, berta = await world.person("anna"), await world.person("berta")
        await set_limits(world, access_max_grants=1)
        await world.come_in(anna)
        asked, cookie = await world.begin()
        path = await world.ticket(berta, asked)
        answer = await world.this.ask(path, BROWSER | {"Cookie": cookie})
        assert answer.status == 503
        assert b"limits.access_max_grants" in answer.body
        # When nobody came by the other one for a while, there is room.
        [grant] = world.this.proxy._access.grants._known.values()
        grant.used = False
        shown = await world.come_in(berta)
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 200


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    return Checks(monkeypatch)


class Checks:
    """Passwords are looked at by threads that stay until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running = 0
        self.most = 0
        self.go_on = threading.Event()
        self._lock = threading.Lock()
        monkeypatch.setattr("tunnelmux.proxy.access.passwords.is_password", self._check)

    def _check(self, password: bytes, _kept: str) -> bool:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.go_on.wait(60)
        with self._lock:
            self.running -= 1
        return password == b"geheim"


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not is_so():  # noqa: ASYNC110  threads tell nobody
            await trio.sleep(0.005)


async def test_a_block_has_not_as_many_guesses_as_networks(checks: Checks) -> None:
    check, users = PasswordCheck(), {"anna": HASH}
    check.configure(AccessLimits(access_max_guesses=1))
    checks.go_on.set()

    async def guesses(password: bytes, sources: list[str]) -> int:
        """How many passwords are looked at from these addresses."""
        looked_at = 0
        for source in sources:
            with contextlib.suppress(TooManyGuesses):
                await check.check(users, "anna", password, source)
                looked_at += 1
        return looked_at

    assert await guesses(b"x", [f"2001:db8:7:{number:x}::1" for number in range(9)]) == 4
    assert await guesses(b"x", [f"2001:db8:7:{number:x}00::1" for number in range(1, 40)]) == 12
    assert await guesses(b"x", ["2001:db8:8::1"]) == 1
    # A right one is no guess.
    users["anna"] = hash_password("geheim")
    sources = [f"2001:db9:7:{number:x}::1" for number in range(9)]
    for source in sources:
        users["anna"] += " "  # so that it was not right before
        assert await guesses(b"geheim", [source]) == 1


async def test_so_many_passwords_are_checked_at_once(checks: Checks) -> None:
    check = PasswordCheck()
    check.configure(AccessLimits(access_max_checks=1))
    users = {"anna": HASH}
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(check.check, users, "anna", b"geheim", f"192.0.2.{number}")
        await until(lambda: checks.running == 1)
        checks.go_on.set()
    assert checks.most == 1


async def test_so_many_wait_for_a_check(checks: Checks) -> None:
    check = PasswordCheck()
    check.configure(AccessLimits(access_max_checks=1, access_max_waiting_checks=2))
    users = {"anna": HASH}
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(check.check, users, "anna", b"geheim", f"192.0.2.{number}")
        await until(lambda: checks.running == 1)
        with pytest.raises(TooManyGuesses):
            await check.check(users, "anna", b"geheim", "192.0.2.9")
        checks.go_on.set()
    assert await check.check(users, "anna", b"geheim", "192.0.2.9")


@pytest.mark.parametrize(
    ("most", "addresses", "tenant"),
    [
        pytest.param(9, [f"198.51.100.{number}" for number in range(12)], "evil", id="one tenant"),
        pytest.param(3, ["2001:db8:0:1::1", "2001:db8:0:1::2"], "", id="one address"),
    ],
)
async def test_one_tenant_or_address_leaves_places_for_others(
    checks: Checks, most: int, addresses: list[str], tenant: str
) -> None:
    """Of twelve places, with the one that is checked."""
    check = PasswordCheck()
    check.configure(AccessLimits(access_max_checks=1, access_max_waiting_checks=11))
    users = {"anna": HASH}
    refused = 0

    async def try_from(address: str, tenant: str) -> None:
        nonlocal refused
        try:
            await check.check(users, "anna", b"geheim", address, tenant)
        except TooManyGuesses:
            refused += 1

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(try_from, addresses[number % len(addresses)], tenant)
        await until(lambda: checks.running == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 12 - most
        for number in range(12 - most):
            nursery.start_soon(try_from, f"192.0.2.{number}", "good")
        await trio.testing.wait_all_tasks_blocked()
        assert refused == 12 - most
        checks.go_on.set()
    # Those that ended hold no place.
    assert not check._waiting


async def test_passwords_for_one_tenants_devices_leave_places_for_others(checks: Checks) -> None:
    names = ["dev1--evil", "dev1--good"]
    devices = [KnownDevice(name=one, token_sha256=bytes([n]) * 32) for n, one in enumerate(names)]
    gate = Gate(DeviceRegister(devices), MemoryStore())
    limits = AccessLimits(access_max_checks=1, access_max_waiting_checks=3)
    gate.configure(AccessConfig(let_in=["basic"], users=[f"anna:{HASH}"]), limits, is_local=True)
    login = b"Basic " + base64.b64encode(b"anna:geheim")
    statuses = []

    async def ask(device: str, address: str) -> None:
        asked = Asked(RequestHead(b"GET", b"/", b"1.1", []), Sender(address), login=login)
        try:
            await gate.admit(device, None, asked)
            statuses.append((device, 200))
        except Refused as exc:
            statuses.append((device, exc.refusal.status))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, "dev1--evil", f"198.51.100.{number}")
        await until(lambda: checks.running == 1)
        nursery.start_soon(ask, "dev1--good", "192.0.2.1")
        await trio.testing.wait_all_tasks_blocked()
        checks.go_on.set()
    assert sorted(statuses) == [("dev1--evil", 200)] * 3 + [("dev1--evil", 429)] * 7 + [
        ("dev1--good", 200)
    ]


async def test_so_many_guessers_are_remembered(checks: Checks) -> None:
    """The one heard of first makes room, and begins anew."""
    checks.go_on.set()
    check = PasswordCheck()
    check.configure(AccessLimits(access_max_guesses=1, access_max_guessers=2))
    users = {"anna": HASH}
    for number in (1, 2):
        assert not await check.check(users, "anna", b"wrong", f"192.0.2.{number}")
        with pytest.raises(TooManyGuesses):
            await check.check(users, "anna", b"wrong", f"192.0.2.{number}")
    assert not await check.check(users, "anna", b"wrong", "192.0.2.3")
    with pytest.raises(TooManyGuesses):
        await check.check(users, "anna", b"wrong", "192.0.2.2")
    assert not await check.check(users, "anna", b"wrong", "192.0.2.1")


async def test_who_came_in_before_is_not_kept_out_by_guesses_from_the_same_address(
    checks: Checks,
) -> None:
    checks.go_on.set()
    check = PasswordCheck()
    check.configure(AccessLimits(access_max_guesses=2, access_max_passes=1))
    users, here = {"anna": HASH, "berta": HASH}, "192.0.2.1"
    assert await check.check(users, "anna", b"geheim", here)
    for name in ("anna", "berta"):
        assert not await check.check(users, name, b"wrong", here)
    for name, password in (("anna", b"wrong"), ("berta", b"geheim"), ("no one", b"geheim")):
        with pytest.raises(TooManyGuesses):
            await check.check(users, name, password, here)
    assert await check.check(users, "anna", b"geheim", here)
    changed = {"anna": hash_password("geheim")}
    with pytest.raises(TooManyGuesses):
        await check.check(changed, "anna", b"geheim", here)
    # As many are remembered as other proofs.
    assert await check.check(users, "berta", b"geheim", "192.0.2.2")
    with pytest.raises(TooManyGuesses):
        await check.check(users, "anna", b"geheim", here)


async def test_one_session_signs_in_so_often_in_a_minute(tmp_path: Path) -> None:
    """Each is a write to the registry, where stale ones go with each that comes."""
    async with visiting(tmp_path) as world:
        anna, berta = await world.person("anna"), await world.person("berta")
        await set_limits(world, access_max_sign_ins=3)
        for _ in range(3):
            await world.come_in(anna)
        asked, cookie = await world.begin()
        path = await world.ticket(anna, asked)
        answer = await world.this.ask(path, BROWSER | {"Cookie": cookie})
        assert answer.status == 429
        assert int(answer.first("retry-after")) > 0
        await world.come_in(berta)
        begin = world.this.proxy._gate.sign_in._now
        world.this.proxy._gate.sign_in._now = world.proofs._now = lambda: begin() + 61
        asked, cookie = await world.begin()
        path = await world.ticket(anna, asked)
        answer = await world.this.ask(path, BROWSER | {"Cookie": cookie})
        assert answer.status == 303
