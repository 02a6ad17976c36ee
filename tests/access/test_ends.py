"""What is under way ends with what it came by; and what holds while the registry is away."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from support.guarded import BROWSER, PROGRAM
from support.promised import kept_within
from support.streams import next_bytes
from support.tenants import TEST
from support.visiting import World, access_cookie, visiting
from support.visits_under_way import WEBSOCKET, begun, is_cut
from tunnelmux.config.access import AccessRule

PROMISED = 2.0
# Seconds from a change to the end of what is under way.


@pytest.mark.parametrize("end", ["session", "member", "user", "rule", "link"])
async def test_what_is_under_way_ends_with_its_grant(tmp_path: Path, end: str) -> None:
    """A download in the pump, one by h11 and a WebSocket, within 2 s; another visitor's go on."""

    async def scenario(number: int) -> float:
        folder = tmp_path / str(number)
        folder.mkdir()
        async with visiting(folder) as world:
            return await seconds_to_the_end(world, end)

    await kept_within(PROMISED, scenario)


async def seconds_to_the_end(world: World, end: str) -> float:
    anna, berta = await world.person("anna"), await world.person("berta", "admin")
    link_id, path = await world.link()
    if end == "link":
        shown = {"Cookie": access_cookie(await world.this.ask(path, BROWSER))}
    else:
        shown = await world.come_in(anna)
    others = await world.come_in(berta)
    by_h11 = await begun(world, "/endless", shown, b"begun")
    await world.this.warm_up(shown)
    in_pump = await begun(world, "/endless", shown, b"begun")
    websocket = await begun(world, "/ws", shown | WEBSOCKET, b"\r\n\r\n")
    neighbour = await begun(world, "/ws", others | WEBSOCKET, b"\r\n\r\n")
    began = trio.current_time()
    installation = world.registry.installation(TEST)
    match end:
        case "session":
            assert await installation.browser_sessions.end(anna.session_id)
        case "member":
            await world.tenant.members.remove(anna.user.id)
        case "user":
            await installation.users.set_enabled(anna.user.id, False)
        case "rule":
            # What `set_rule` waits for is what is measured here.
            rule = AccessRule(let_in=["login"], roles=["admin"])
            await world.tenant.visitor_rules.set(world.device_id, "", rule)
        case _:
            await world.tenant.service_links.revoke(world.device_id, link_id)
    with trio.fail_after(60):
        for stream in (by_h11, in_pump, websocket):
            assert await is_cut(stream)
    took = trio.current_time() - began
    assert (await world.this.ask("/x", PROGRAM | shown)).status in {401, 403}
    if end in {"session", "member", "user"}:
        await neighbour.send_all(b"still here")
        assert await next_bytes(neighbour, 10) == b"still here"
        assert (await world.this.ask("/x", PROGRAM | others)).status == 200
    await trio.aclose_forcefully(neighbour)
    return took


async def test_the_end_of_one_is_not_that_of_another_on_the_same_connection(tmp_path: Path) -> None:
    """A proxy in front sends the requests of several people on one connection."""
    async with visiting(tmp_path) as world:
        anna, berta = await world.person("anna"), await world.person("berta")
        hers, others = await world.come_in(anna), await world.come_in(berta)
        shared, again = await world.this.visitor(), await world.this.visitor()
        for visitor, first in ((shared, hers), (again, others)):
            assert (await visitor.ask("/x", PROGRAM | first)).status == 200
        upgrade = others | WEBSOCKET
        bertas = await begun(world, "/ws", upgrade, b"\r\n\r\n", stream=shared.stream)
        annas = await begun(world, "/endless", hers, b"begun", stream=again.stream)
        assert await world.registry.installation(TEST).browser_sessions.end(anna.session_id)
        with trio.fail_after(60):
            assert await is_cut(annas)
        await bertas.send_all(b"still here")
        assert await next_bytes(bertas, 10) == b"still here"
        await trio.aclose_forcefully(bertas)


@pytest.mark.slow
async def test_a_link_that_ends_takes_its_visits_along(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        _, path = await world.link(lifetime=3)
        shown = {"Cookie": access_cookie(await world.this.ask(path, BROWSER))}
        websocket = await begun(world, "/ws", shown | WEBSOCKET, b"\r\n\r\n")
        with trio.fail_after(15):
            assert await is_cut(websocket)
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 401


async def test_a_cookie_is_renewed_while_the_session_lasts(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        shown = await world.come_in(await world.person())
        await world.this.warm_up(shown)
        assert (await world.this.ask("/x", PROGRAM | shown)).all("set-cookie") == []
        gate = world.this.proxy._gate
        begin, ahead = gate._now, 400.0

        def later() -> float:
            return begin() + ahead

        gate._now = gate.sign_in._now = later
        public = b"max-age=600, public"
        world.this.set_cookies = [
            b"a=b\r\nCache-Control: %s\r\nCDN-Cache-Control: %s" % (public, public)
        ]
        answer = await world.this.ask("/x", PROGRAM | shown)
        assert answer.status == 200
        # A cache that others share must not keep what has this person's cookie.
        assert answer.all("cache-control") == ["private, no-cache"]
        assert answer.all("cdn-cache-control") == []
        renewed = {"Cookie": access_cookie(answer)}
        assert renewed != shown
        world.this.set_cookies = []
        # Once in a while, and not with each request.
        assert (await world.this.ask("/x", PROGRAM | shown)).all("set-cookie") == []
        ahead = 1000.0
        assert (await world.this.ask("/x", PROGRAM | shown)).status == 401
        assert (await world.this.ask("/x", PROGRAM | renewed)).status == 200


async def test_while_the_registry_is_away_who_is_known_goes_on(tmp_path: Path) -> None:
    async with visiting(tmp_path) as world:
        anna, berta = await world.person("anna"), await world.person("berta")
        known = await world.come_in(anna)
        asked, cookie = await world.begin()
        ticket = await world.ticket(berta, asked)
        grants = world.this.proxy._access.grants
        grants.note_away()
        await world.this.warm_up(known)
        assert (await world.this.ask("/x", PROGRAM | known)).status == 200
        answer = await world.this.ask(ticket, BROWSER | {"Cookie": cookie})
        assert answer.status == 503
        assert (await world.this.ask("/x", BROWSER)).status == 302
        await grants.greet(world.registry)
        assert (await world.this.ask(ticket, BROWSER | {"Cookie": cookie})).status == 303
