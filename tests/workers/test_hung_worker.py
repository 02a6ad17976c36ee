"""A worker that hangs: its parent notices, and it is replaced."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from support.daemons import DaemonSet
from support.workers import Workers
from tunnelmux.config import Address
from tunnelmux.config.rules import InvalidSetting
from tunnelmux.config.workers import ProcessConfig
from tunnelmux.directory import Heard, Held, Node, PlaceBook, Swept
from tunnelmux.proxy.workers.watch import Watch


class Hanging:
    """A worker that may hang, and what its parent notices."""

    def __init__(self, timeout: float) -> None:
        self.goes_on = trio.Event()
        self.goes_on.set()
        self.noted: list[tuple[float, bool]] = []
        self.ended_at: float | None = None
        self.watch = Watch(self.ask, timeout, self.note)

    async def ask(self) -> None:
        await self.goes_on.wait()

    def note(self, *, is_silent: bool) -> None:
        self.noted.append((trio.current_time(), is_silent))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        async def run() -> None:
            await self.watch.run()
            self.ended_at = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield
            nursery.cancel_scope.cancel()

    def hangs(self) -> None:
        self.goes_on = trio.Event()


async def test_a_worker_that_hangs_is_noticed(autojump_clock: MockClock) -> None:
    worker = Hanging(6.0)
    async with worker.watched():
        await trio.sleep(100.25)
        assert worker.noted == []
        worker.hangs()
        began = trio.current_time()
        await trio.sleep(20)
    [(silent_at, is_silent)] = worker.noted
    assert is_silent
    assert silent_at - began == pytest.approx(3.0, abs=0.5)
    assert worker.ended_at is not None
    assert worker.ended_at - began == pytest.approx(6.0, abs=0.5)


async def test_one_that_goes_on_in_time_stays(autojump_clock: MockClock) -> None:
    worker = Hanging(6.0)
    async with worker.watched():
        await trio.sleep(10)
        for _ in range(3):  # each pause counts for itself
            worker.hangs()
            await trio.sleep(5)
            worker.goes_on.set()
            await trio.sleep(5)
    assert [is_silent for _, is_silent in worker.noted] == [True, False] * 3
    assert worker.ended_at is None


async def test_a_pause_of_the_parent_is_no_silence(mock_clock: MockClock) -> None:
    worker = Hanging(6.0)
    async with worker.watched():
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            worker.hangs()  # both stand still
            mock_clock.jump(0.5)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(3600)
            await trio.testing.wait_all_tasks_blocked()
            worker.goes_on.set()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.5)
            await trio.testing.wait_all_tasks_blocked()
    assert worker.noted == []
    assert worker.ended_at is None


def test_a_hidden_worker_keeps_its_devices_for_itself() -> None:
    changed: list[str] = []
    book = PlaceBook(lambda: 1.0, on_change=changed.append)
    first, second = (Node(name=name, incarnation="1") for name in ("worker-1", "worker-2"))
    book.beat(first, Heard())
    book.beat(second, Heard())
    book.claim("worker-1", "1", Held("dev1", "a", 0))
    before = book.beat(second, Heard()).heard
    changed.clear()

    book.hide("worker-1", is_hidden=True)
    assert book.find("dev1") == []
    assert changed == ["dev1"]
    beat = book.beat(second, before)
    assert set(beat.nodes or ()) == {"worker-2"}
    assert book.sweep() == Swept(0)

    book.hide("worker-1", is_hidden=False)
    assert [place.node for place in book.find("dev1")] == ["worker-1"]
    assert set(book.beat(second, beat.heard).nodes or ()) == {
        "worker-1",
        "worker-2",
    }

    # What is newer supersedes a session of a hidden one as well.
    book.hide("worker-1", is_hidden=True)
    book.claim("worker-2", "1", Held("dev1", "b", 0))
    assert [device for device, _ in book.beat(first, Heard()).superseded] == ["dev1"]


@pytest.mark.parametrize("seconds", [0, 1.9, 86_401])
def test_a_time_that_cannot_be(seconds: float) -> None:
    with pytest.raises(InvalidSetting, match="is not from 2 to 86400 seconds"):
        ProcessConfig(worker_timeout=seconds)


@pytest.mark.slow
async def test_a_worker_that_is_stopped_is_replaced(daemons: DaemonSet, web: Address) -> None:
    workers = Workers(daemons)
    workers.timeout = 6
    await workers.start(web)
    hangs = workers.worker_of("dev2")
    since = len(workers.proxy.events)
    workers.kill(hangs, signal.SIGSTOP)
    silent = await workers.proxy.logged("worker silent", since=since, worker=hangs)
    assert silent["seconds"] == 3
    assert (await workers.fetch(device="dev1")).status == 200
    await workers.answers("dev2")
    ended = await workers.proxy.logged("worker ended", since=since, worker=hangs)
    assert ended["cause"] == "it gave no answer for 6 s and was killed"
    await workers.proxy.logged("worker ready", since=since, worker=hangs)
    for device in ("dev1", "dev2"):
        await workers.answers(device)
