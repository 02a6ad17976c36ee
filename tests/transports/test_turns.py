"""Turns: few tasks at once, and the addresses one after the other."""

from __future__ import annotations

import trio
import trio.testing

from tunnelmux.transports.turns import Turns


async def test_few_have_their_turn_between_two_looks_for_other_tasks() -> None:
    turns, order = Turns(), []

    async def take(source: str) -> None:
        await turns.wait(source)
        order.append(source)

    async def other() -> None:
        while len(order) < 40:
            order.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(take, "flood")
        await trio.lowlevel.checkpoint()
        nursery.start_soon(other)
    text = "".join("o" if what == "other" else "f" for what in order)
    assert text.count("f") == 20
    assert "fffff" not in text  # two of this pass and two of the next


async def test_addresses_take_turns() -> None:
    turns, order = Turns(), []

    async def take(source: str) -> None:
        await turns.wait(source)
        order.append(source)

    async with trio.open_nursery() as nursery:
        for source in ["a"] * 30 + ["b"] * 2:
            nursery.start_soon(take, source)
    assert max(place for place, source in enumerate(order) if source == "b") < 10
    assert order.count("a") == 30


async def test_those_that_are_cancelled_leave_their_turn_to_others() -> None:
    turns = Turns()
    done = 0

    async def take(source: str) -> None:
        nonlocal done
        await turns.wait(source)
        done += 1

    async with trio.open_nursery() as nursery, trio.open_nursery() as leaving:
        for number in range(20):
            leaving.start_soon(take, f"leaving{number % 2}")
        nursery.start_soon(take, "stays")
        leaving.cancel_scope.cancel()
    assert turns.waiting == 0
    assert done == 1
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(take, "later")
        await trio.testing.wait_all_tasks_blocked()
    assert done == 7
