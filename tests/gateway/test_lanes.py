"""One person's calls of the registry wait for each other, and another's do not wait for them."""

from __future__ import annotations

import asyncio

import trio

from tunnelmux.gateway.guest import Bridge, run_as_guest


def test_heaps_of_one_persons_calls_are_no_queue_for_another() -> None:
    registry = trio.CapacityLimiter(1)
    done: list[str] = []

    async def call(name: str) -> None:
        async with registry:
            await trio.lowlevel.checkpoint()
            done.append(name)

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        async with trio.open_nursery() as nursery:
            bridge = Bridge(loop, nursery)
            for _ in range(50):
                bridge.lane("one").spawn(call, "one")
            await bridge.in_asyncio(asyncio.sleep(0))  # they have begun
            await bridge.in_asyncio(bridge.lane("another").in_trio(call, "another"))
            assert len(done) < 10
            await bridge.settle()
            assert not bridge.lane("one").is_full

    run_as_guest(main)
    assert done.count("one") == 50
    assert "another" in done


def test_a_lane_is_full_as_long_as_128_calls_wait() -> None:
    async def main(loop: asyncio.AbstractEventLoop) -> None:
        go_on = trio.Event()
        async with trio.open_nursery() as nursery:
            bridge = Bridge(loop, nursery)
            lane = bridge.lane("one")
            for _ in range(127):
                lane.spawn(go_on.wait)
            await bridge.in_asyncio(asyncio.sleep(0))  # they have begun
            assert not lane.is_full
            bridge.lane("one").spawn(go_on.wait)
            await bridge.in_asyncio(asyncio.sleep(0))
            assert lane.is_full
            assert not bridge.lane("another").is_full
            go_on.set()
            await bridge.settle()
            assert not lane.is_full

    run_as_guest(main)
