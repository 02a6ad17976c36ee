"""Services that are lent: for the people of a lease only, until its end, by name and by serial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from support.guarded import BROWSER, PROGRAM
from support.promised import kept_within
from support.streams import next_bytes
from support.visiting import World, access_cookie, visiting
from support.visits_under_way import WEBSOCKET, begun, is_cut
from tunnelmux.registry import AuditFilter

pytestmark = pytest.mark.slow

HOST = "web--dev1.localhost"
SERIAL = "web--sn-123.localhost"


async def lent(world: World) -> None:
    await world.set_rule("web", let_in=["lease"])


async def serial_is_known(world: World) -> None:
    """Wait until the agent has said the device's serial number."""
    assert world.this.proxy.devices is not None
    with trio.fail_after(30):
        while world.this.proxy.devices.named("sn-123") != "dev1":  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_only_the_holder_of_a_running_lease_comes_in(tmp_path: Path) -> None:
    """By h11 and in the pump; a member without a lease does not, whatever their role."""
    async with visiting(tmp_path, assists=tmp_path) as world:
        await lent(world)
        anna, berta = await world.person("anna"), await world.person("berta", "owner")
        for person in (anna, berta):
            asked, cookie = await world.begin(host=HOST)
            path = await world.ticket(person, asked)
            answer = await world.this.ask(path, BROWSER | {"Cookie": cookie}, host=HOST)
            assert answer.status == 403
            assert b"no lease" in answer.body
        lease = await world.lease(anna)
        shown = await world.come_in(anna, host=HOST)
        for _ in range(3):
            answer = await world.this.ask("/x", PROGRAM | shown, host=HOST)
            assert answer.status == 200
            assert answer.seen["tunnelmux-user"] == [anna.user.id]
        # The host without a service means the same one, and needs a cookie of its own.
        assert (await world.this.ask("/x", PROGRAM, host="dev1.localhost")).status == 401
        asked, cookie = await world.begin(host=HOST)
        path = await world.ticket(berta, asked)
        answer = await world.this.ask(path, BROWSER | {"Cookie": cookie}, host=HOST)
        assert answer.status == 403
        answer = await world.this.ask("/x", PROGRAM, host=HOST)
        assert answer.status == 401
        assert "while your lease runs" in json.loads(answer.body)["detail"]
        [use] = (await world.tenant.audit.page(where=AuditFilter(action="lease.use"))).items
        assert (use.object_id, use.actor.id) == (lease.id, anna.user.id)
        assert json.loads(use.after) == {"uses": 1, "what": "browser", "service": "web"}


async def test_a_lease_is_good_for_its_services_addresses_and_uses(tmp_path: Path) -> None:
    async with visiting(tmp_path, services=("web", "other"), assists=tmp_path) as world:
        await world.set_rule(let_in=["lease"])
        anna = await world.person("anna")
        await world.lease(anna, addresses=("192.0.2.0/24",))
        await world.lease(anna, services=("other",), max_uses=1)
        for host, status in ((HOST, 403), ("other--dev1.localhost", 303)):
            asked, cookie = await world.begin(host=host)
            path = await world.ticket(anna, asked)
            answer = await world.this.ask(path, BROWSER | {"Cookie": cookie}, host=host)
            assert answer.status == status, host
        # It is used up: this browser goes on, and no other comes in.
        shown = {"Cookie": access_cookie(answer)}
        for _ in range(3):
            answer = await world.this.ask("/x", PROGRAM | shown, host="other--dev1.localhost")
            assert answer.status == 200
        asked, cookie = await world.begin(host="other--dev1.localhost")
        path = await world.ticket(anna, asked)
        shown = BROWSER | {"Cookie": cookie}
        answer = await world.this.ask(path, shown, host="other--dev1.localhost")
        assert answer.status == 403


@pytest.mark.parametrize(
    ("end", "host"),
    [("registry", HOST), ("clock", SERIAL), ("device", HOST)],
    ids=lambda said: said,
)
async def test_what_is_under_way_ends_with_the_lease(tmp_path: Path, end: str, host: str) -> None:
    """Within 2 s: a download by h11, one in the pump and a WebSocket; those of another lease go on.

    By the serial number too, which is the host that people are told.
    """

    async def scenario(number: int) -> float:
        folder = tmp_path / str(number)
        folder.mkdir()
        async with visiting(folder, assists=folder) as world:
            return await seconds_to_the_end(world, end, host)

    await kept_within(2.0, scenario)


async def seconds_to_the_end(world: World, end: str, host: str) -> float:
    await lent(world)
    if host == SERIAL:
        await serial_is_known(world)
    anna, berta = await world.person("anna"), await world.person("berta")
    lease, _ = await world.lease(anna), await world.lease(berta)
    shown = await world.come_in(anna, host=host)
    others = await world.come_in(berta, host=host)
    by_h11 = await begun(world, "/endless", shown, b"begun", host=host)
    await world.this.warm_up(shown, host)
    in_pump = await begun(world, "/endless", shown, b"begun", host=host)
    websocket = await begun(world, "/ws", shown | WEBSOCKET, b"\r\n\r\n", host=host)
    neighbour = await begun(world, "/ws", others | WEBSOCKET, b"\r\n\r\n", host=host)
    assert world.this.proxy.registered is not None
    book = world.this.proxy.registered.leases
    began = trio.current_time()
    match end:
        case "registry":
            await world.tenant.leases.end(lease.id, "done")
        case "device":
            await world.registry.fleet.end_lease(lease.id, world.device_id, "switched off")
        case _:
            # Its end by the proxy's own clock is now; nobody tells it.
            book._leases[lease.id].until = now = trio.current_time()
            book._due.insert(0, (now, lease.id))
            book._timer.deadline = now
    with trio.fail_after(60):
        for stream in (by_h11, in_pump, websocket):
            assert await is_cut(stream)
    took = trio.current_time() - began
    assert book.goes_on(lease.id, "dev1") is None
    for _ in range(2):
        answer = await world.this.ask("/x", PROGRAM | shown, host=host)
        assert answer.status == 403
        assert "no lease" in json.loads(answer.body)["detail"]
    await neighbour.send_all(b"still here")
    assert await next_bytes(neighbour, 10) == b"still here"
    assert (await world.this.ask("/x", PROGRAM | others, host=host)).status == 200
    await trio.aclose_forcefully(neighbour)
    return took


async def test_who_gets_another_lease_is_sent_to_sign_in_once_more(tmp_path: Path) -> None:
    async with visiting(tmp_path, assists=tmp_path) as world:
        await lent(world)
        anna = await world.person("anna")
        lease = await world.lease(anna)
        shown = await world.come_in(anna, host=HOST)
        _, change = await world.tenant.leases.end(lease.id, "done")
        assert not (await world.registry.changes.effects(change, within=30)).missing
        assert (await world.this.ask("/x", BROWSER | shown, host=HOST)).status == 403
        await world.lease(anna)
        assert (await world.this.ask("/x", BROWSER | shown, host=HOST)).status == 302
        shown = await world.come_in(anna, host=HOST)
        assert (await world.this.ask("/x", PROGRAM | shown, host=HOST)).status == 200


async def test_a_member_who_may_come_anyway_uses_no_lease(tmp_path: Path) -> None:
    async with visiting(tmp_path, assists=tmp_path) as world:
        await world.set_rule(let_in=["login", "lease"], roles=["admin"])
        anna, berta = await world.person("anna", "viewer"), await world.person("berta", "admin")
        lease = await world.lease(anna)
        await world.lease(berta)
        holder = await world.come_in(anna, host=HOST)
        member = await world.come_in(berta, host=HOST)
        _, change = await world.tenant.leases.end(lease.id, "done")
        assert not (await world.registry.changes.effects(change, within=30)).missing
        assert (await world.this.ask("/x", PROGRAM | holder, host=HOST)).status == 403
        assert (await world.this.ask("/x", PROGRAM | member, host=HOST)).status == 200
        uses = (await world.tenant.audit.page(where=AuditFilter(action="lease.use"))).items
        assert [use.actor.id for use in uses] == [anna.user.id]


async def test_a_device_is_found_by_its_serial_number(tmp_path: Path) -> None:
    """By the same rule as by its name, and not by a number that another device has by now."""
    async with visiting(tmp_path, assists=tmp_path) as world:
        devices = world.this.proxy.devices
        await serial_is_known(world)
        await lent(world)
        anna = await world.person("anna")
        await world.lease(anna)
        assert (await world.this.ask("/x", PROGRAM, host=SERIAL)).status == 401
        shown = await world.come_in(anna, host=SERIAL)
        for host in (SERIAL, SERIAL, "WEB--SN-123.localhost"):
            answer = await world.this.ask("/x", PROGRAM | shown, host=host)
            assert answer.status == 200, host
        other, _ = await world.tenant.devices.add("sn-123")  # a name counts more
        number = await world.registry.changes.latest()
        assert not (await world.registry.changes.effects(number, within=30)).missing
        assert devices.registered[other.id].name == devices.named("sn-123") == "sn-123"
        for _ in range(2):
            assert (await world.this.ask("/x", PROGRAM | shown, host=SERIAL)).status == 401
        assert (await world.this.ask("/x", PROGRAM, host=HOST)).status == 401
