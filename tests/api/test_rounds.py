"""Strangers' connections go on one by one, so that those of others do not wait for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from support.apis import live_api
from support.tenants import person
from tunnelmux.api.rounds import Pace


class Crowd:
    """2,000 connections that have sent something: eight of each of 250 blocks of addresses."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.gone_on: list[str] = []

    async def one(self, address: str) -> None:
        await self.pace.wait(address)
        self.gone_on.append(address)

    async def come(self, nursery: trio.Nursery) -> None:
        for number in range(2000):
            nursery.start_soon(self.one, f"198.18.{number % 250}.{number // 250}")
        await trio.testing.wait_all_tasks_blocked()


async def gone_on_before(pace: Pace, address: str) -> int:
    """How many of a crowd go on before a connection of this address, which came after them."""
    crowd = Crowd(pace)
    async with trio.open_nursery() as nursery:
        await crowd.come(nursery)
        nursery.start_soon(crowd.one, address)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pace.run)
        while address not in crowd.gone_on:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return crowd.gone_on.index(address)


async def test_a_known_address_goes_on_at_once() -> None:
    pace = Pace()
    pace.note_known("2001:db8::7")
    assert await gone_on_before(pace, "2001:db8::8") <= 1  # of the same /64


async def test_an_address_that_is_new_waits_for_one_of_each_block() -> None:
    assert await gone_on_before(Pace(), "192.0.2.1") <= 250


async def test_one_stranger_goes_on_between_two_turns_of_the_scheduler() -> None:
    pace = Pace()
    crowd = Crowd(pace)
    async with trio.open_nursery() as nursery:
        await crowd.come(nursery)
        nursery.start_soon(pace.run)
        for turns in range(1, 101):
            await trio.lowlevel.checkpoint()
            assert len(crowd.gone_on) <= turns
        while len(crowd.gone_on) < 2000:
            await trio.lowlevel.checkpoint()
        assert len(pace) == 0
        await crowd.one("192.0.2.1")  # it goes on calling
        nursery.cancel_scope.cancel()


async def test_who_leaves_is_called_no_more() -> None:
    pace = Pace()
    crowd = Crowd(pace)
    async with trio.open_nursery() as nursery:
        await crowd.come(nursery)
        nursery.cancel_scope.cancel()
    assert len(pace) == 0


def test_so_many_addresses_are_known() -> None:
    pace = Pace()
    for number in range(10_001):
        pace.note_known(f"10.0.{number // 256}.{number % 256}")
    assert len(pace._addresses) == 10_000
    assert "10.0.0.0" not in pace._addresses


@pytest.mark.slow
async def test_an_address_is_known_by_a_token_that_is_good(tmp_path: Path) -> None:
    noted: list[str] = []

    class Noting(Pace):
        def note_known(self, address: str) -> None:
            noted.append(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunnelmux.api.server.Pace", Noting)
        async with live_api(tmp_path) as api:
            ada = await person(api, "ada")
            assert (await api.call("GET", "/api/devices", "tma_wrong")).status_code == 401
            assert (await api.call("GET", "/api/openapi.json")).status_code == 200
            assert noted == []
            assert (await api.call("GET", "/api/devices", ada.token)).status_code == 200
    assert noted == ["127.0.0.1"]
