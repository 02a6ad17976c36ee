"""Many times, one task."""

from __future__ import annotations

import trio
import trio.testing

from tunnelmux.relay.timeouts import Timeouts


async def test_each_runs_out_at_its_time_unless_it_was_cleared_or_set_anew(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ran_out: list[tuple[str, float]] = []
    timeouts: Timeouts[str] = Timeouts(lambda name: ran_out.append((name, trio.current_time())))
    start = trio.current_time()
    nursery.start_soon(timeouts.run)
    for number, name in enumerate(["a", "b", "c", "d"]):
        timeouts.set(name, start + 10 + number)
    timeouts.clear("b")
    timeouts.clear("b")
    timeouts.set("c", start + 20)
    assert list(timeouts) == ["a", "d", "c"]
    await trio.sleep(15)
    assert len(timeouts) == 1
    await trio.sleep(100)
    timeouts.set("e", trio.current_time() + 1)
    await trio.sleep(2)
    assert [(name, when - start) for name, when in ran_out] == [
        ("a", 10),
        ("d", 13),
        ("c", 20),
        ("e", 116),
    ]


async def test_who_runs_out_may_be_given_more_time(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    looks: list[float] = []

    def look(name: str) -> None:
        looks.append(trio.current_time())
        if len(looks) < 3:
            timeouts.set(name, trio.current_time() + 5)

    timeouts: Timeouts[str] = Timeouts(look)
    start = trio.current_time()
    nursery.start_soon(timeouts.run)
    timeouts.set("a", start + 5)
    await trio.sleep(60)
    assert [when - start for when in looks] == [5, 10, 15]


async def test_coming_and_going_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    timeouts: Timeouts[int] = Timeouts(lambda _: None)
    nursery.start_soon(timeouts.run)
    await trio.testing.wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    for number in range(100):
        timeouts.set(number, trio.current_time() + 1000)
        await trio.lowlevel.checkpoint()
        timeouts.clear(number)
        await trio.lowlevel.checkpoint()
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert len(timeouts) == 0
