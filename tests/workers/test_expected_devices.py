"""A device that has just connected is found from every worker, as soon as its agent knows it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.agents import TunnelBench
from tunnelmux.directory import Heard, Node, PlaceBook
from tunnelmux.directory.workers import DirectoryDesk, ExpectedDevices, WorkersDirectory


@pytest.fixture
async def directories() -> list[WorkersDirectory]:
    """What two workers see of their parent's book."""
    book, expected = PlaceBook(), ExpectedDevices()
    names = ["worker-1", "worker-2"]
    desks = [DirectoryDesk(book, name, "1", expected) for name in names]
    found = [WorkersDirectory(desk.answer, trio.sleep_forever) for desk in desks]
    for name, directory in zip(names, found, strict=True):
        await directory.beat(Node(name=name, incarnation="1"), Heard())
    return found


class Search:
    """A look-up, and how it went."""

    def __init__(self, directory: WorkersDirectory, device: str) -> None:
        self._directory = directory
        self._device = device
        self.took: float | None = None
        self.nodes: list[str] = []

    async def run(self) -> None:
        began = trio.current_time()
        self.nodes = [place.node for place in await self._directory.find(self._device)]
        self.took = trio.current_time() - began


async def test_a_look_up_waits_for_a_session_that_is_about_to_begin(
    directories: list[WorkersDirectory], autojump_clock: MockClock
) -> None:
    here, there = directories
    async with trio.open_nursery() as nursery:
        await here.expect("dev1")
        searches = [Search(there, "dev1"), Search(there, "dev2")]
        for search in searches:
            nursery.start_soon(search.run)
        await trio.sleep(0.1)
        assert [search.took for search in searches] == [None, 0]
        await here.claim("dev1", "a")
    assert searches[0].nodes == ["worker-1"]
    assert searches[0].took == pytest.approx(0.1)


async def test_it_does_not_wait_for_one_that_never_begins(
    directories: list[WorkersDirectory], autojump_clock: MockClock
) -> None:
    here, there = directories
    await here.expect("dev1")
    for took in (0.5, 0):
        search = Search(there, "dev1")
        await search.run()
        assert (search.took, search.nodes) == (took, [])
    # What was expected and never came is forgotten.
    for number in range(100):
        await here.expect(f"other{number}")
        await trio.sleep(1)
    desk = there._ask_parent.__self__  # type: ignore[attr-defined]
    assert len(desk._expected._arrivals) == 1


async def test_an_agent_is_answered_when_its_session_is_expected(nursery: trio.Nursery) -> None:
    bench = TunnelBench(nursery)
    asked, go_on = trio.Event(), trio.Event()

    async def expect(device: str) -> None:
        assert device == "dev1"
        asked.set()
        await go_on.wait()

    bench.store.expect = expect  # type: ignore[method-assign]
    is_connected = trio.Event()

    async def connect() -> None:
        async with bench.dial():
            is_connected.set()

    nursery.start_soon(connect)
    with trio.fail_after(30):
        await asked.wait()
        await wait_all_tasks_blocked()
        assert not is_connected.is_set()
        go_on.set()
        await is_connected.wait()
