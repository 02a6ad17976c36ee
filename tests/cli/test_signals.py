"""What a daemon does on SIGTERM, SIGINT and SIGHUP, with a daemon made for the test."""

from __future__ import annotations

import gc
import signal

import pytest
import trio
import trio.testing

from tunnelmux.cli.signals import run_until_signalled
from tunnelmux.errors import ConfigError


class Daemon:
    """Runs until drained; a drain takes `drain_time` seconds of its grace."""

    def __init__(self, drain_time: float = 0.0) -> None:
        self.drain_time = drain_time
        self.graces: list[float] = []
        self.ended = False
        self.done = trio.Event()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        try:
            task_status.started(self)
            await self.done.wait()
        finally:
            self.ended = True

    async def drain(self, grace: float) -> None:
        self.graces.append(grace)
        await trio.sleep(min(self.drain_time, grace))
        self.done.set()


async def run_and_raise(daemon: Daemon, *numbers: int, reload=None) -> int:
    """Run the daemon and signal this process, once the daemon is up and then once a second."""

    async def send_signals() -> None:
        for number in numbers:
            await trio.sleep(1)
            signal.raise_signal(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_signals)
        status = await run_until_signalled(daemon.run, grace=10, reload=reload)
        nursery.cancel_scope.cancel()
    return status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains(autojump_clock, number):
    daemon, start = Daemon(drain_time=4), trio.current_time()
    assert await run_and_raise(daemon, number) == 0
    assert daemon.graces == [10]
    assert daemon.ended
    assert trio.current_time() - start == pytest.approx(5)


async def test_the_second_ends_it_at_once(autojump_clock):
    daemon = Daemon(drain_time=9)
    assert await run_and_raise(daemon, signal.SIGTERM, signal.SIGINT) == 1
    assert daemon.ended
    assert daemon.graces == [10]


async def test_a_drain_that_does_not_keep_its_word_is_cut(autojump_clock):
    daemon, start = Daemon(), trio.current_time()

    async def drain_for_ever(grace: float) -> None:
        await trio.sleep_forever()

    daemon.drain = drain_for_ever
    assert await run_and_raise(daemon, signal.SIGTERM) == 0
    assert daemon.ended
    assert trio.current_time() - start == pytest.approx(16)


async def test_a_daemon_that_ends_by_itself_ends_the_command(autojump_clock):
    daemon = Daemon()
    daemon.done.set()
    assert await run_until_signalled(daemon.run, grace=10) == 0


async def test_what_the_daemon_raises_comes_out():
    async def run(*, task_status):
        task_status.started(None)
        raise ConfigError("why")

    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="^why$")):
        await run_until_signalled(run, grace=10)


async def test_a_signal_while_starting_ends_it(autojump_clock):
    daemon = Daemon()

    async def start_for_ever(*, task_status):
        try:
            await trio.sleep_forever()
        finally:
            daemon.ended = True

    daemon.run = start_for_ever
    assert await run_and_raise(daemon, signal.SIGTERM) == 0
    assert daemon.ended


async def test_sighup_reloads(autojump_clock):
    daemon, reloaded = Daemon(), []

    async def reload(running: Daemon) -> None:
        reloaded.append(running)

    assert await run_and_raise(daemon, signal.SIGHUP, signal.SIGTERM, reload=reload) == 0
    assert reloaded == [daemon]


async def test_a_bad_new_configuration_changes_nothing(autojump_clock, capsys):
    daemon, attempts = Daemon(), []

    async def reload(running: Daemon) -> None:
        attempts.append(running)
        raise ConfigError("proxy.toml: tunel: is not a known key")

    status = await run_and_raise(
        daemon, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, reload=reload
    )
    assert status == 0
    assert len(attempts) == 2
    assert "proxy.toml: tunel: is not a known key" in "".join(capsys.readouterr())


@pytest.fixture
def full_looks():
    """Counts how often Python has looked through all objects for garbage."""
    looks = []
    before = gc.get_threshold()

    def note(phase, info):
        if phase == "start" and info["generation"] == 2:
            looks.append(info)

    gc.callbacks.append(note)
    yield looks
    gc.callbacks.remove(note)
    gc.set_threshold(*before)
    gc.unfreeze()


async def test_objects_of_new_sessions_do_not_make_it_look_through_all_others(full_looks):
    """Each look stops all traffic: up to 2 s with 10,000 sessions."""
    daemon, made = Daemon(), []

    async def make_objects():
        await trio.testing.wait_all_tasks_blocked()
        full_looks.clear()  # one at the start is meant
        made.extend([[]] for _ in range(200_000))  # 1,000 sessions
        daemon.done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_objects)
        await run_until_signalled(daemon.run, grace=10)
    assert full_looks == []
