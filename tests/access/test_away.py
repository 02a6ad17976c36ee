"""What holds while tunnelmux-api, or the registry, is not there or slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from support.guarded import BROWSER, PROGRAM, guarded
from support.tenants import TEST
from support.visiting import visiting
from tunnelmux.config import Secret
from tunnelmux.registry import open_registry


class Stuck:
    """A registry whose database does not answer."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.visitors = self

    async def look_up(self, *_grants: object, **_more: object) -> list[object]:
        self.asked.set()
        await trio.sleep_forever()
        return []

    async def use_ticket(self, *_arguments: object) -> bool:
        return True


async def test_where_no_api_is_there_a_browser_is_told_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    async with open_registry(Secret(url), migrate=True) as registry:
        [home] = (await registry.installation(TEST).tenants.page()).items
        _, token = await registry.tenant(home.id, TEST).devices.add("dev1")
        async with guarded(registry_url=url, token=token) as this:
            answer = await this.ask("/x", BROWSER)
            assert answer.status == 503
            assert answer.first("retry-after") == "5"
            assert b"no tunnelmux-api has said where" in answer.body
            answer = await this.ask("/x", PROGRAM)
            assert (answer.status, json.loads(answer.body)["reason"]) == (401, "access-unproven")
            assert this.requests == 0


@pytest.mark.slow
async def test_where_the_registry_is_slow_only_those_wait_who_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By h11 and in the pump; whoever waits is told within a bound, and comes in later."""
    async with visiting(tmp_path) as world:
        anna, berta = await world.person("anna"), await world.person("berta")
        known = await world.come_in(anna)
        await world.this.warm_up(known)
        asked, cookie = await world.begin()
        ticket, shown = await world.ticket(berta, asked), BROWSER | {"Cookie": cookie}
        grants = world.this.proxy._access.grants
        stuck, there = Stuck(), grants._registry
        monkeypatch.setattr(grants, "_registry", stuck)
        monkeypatch.setattr("tunnelmux.proxy.access.grants._LOOK_UP", 1.0)
        answers = []

        async def wait() -> None:
            answers.append(await world.this.ask(ticket, shown))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await stuck.asked.wait()
            for _ in range(3):
                assert (await world.this.ask("/x", PROGRAM | known)).status == 200
        assert answers[0].status == 503
        assert b"did not answer in time" in answers[0].body
        monkeypatch.setattr(grants, "_registry", there)
        await world.come_in(berta)
