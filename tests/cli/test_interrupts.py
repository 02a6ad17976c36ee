"""Ctrl-C at a command that waits."""

from __future__ import annotations

import re
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tunnelmux import cli
from tunnelmux.cli.interrupts import run_interruptible
from tunnelmux.errors import ConfigError


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class Interrupting:
    """A connection whose closing is interrupted before its first step."""

    def __init__(self) -> None:
        self.is_closed = False

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        press_ctrl_c()
        self.is_closed = True


def test_what_was_opened_is_closed() -> None:
    connection = Interrupting()

    async def work() -> None:
        async with connection:
            pass
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work)
    assert connection.is_closed


def test_tasks_that_wait_are_ended() -> None:
    ended = []

    @asynccontextmanager
    async def held(name: str):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                yield
            finally:
                ended.append(name)
                nursery.cancel_scope.cancel()

    async def hold(name: str) -> None:
        async with held(name):
            await trio.sleep_forever()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            for name in "ab":
                nursery.start_soon(hold, name)
            await trio.testing.wait_all_tasks_blocked()
            press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work)
    assert sorted(ended) == ["a", "b"]


def test_what_breaks_meanwhile_does_not_hide_it() -> None:
    async def break_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ConfigError("why")

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_when_cancelled)
            await trio.testing.wait_all_tasks_blocked()
            press_ctrl_c()
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work)


def test_without_an_interrupt_it_is_as_trio_run() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    async def fail(error: Exception) -> None:
        async with trio.open_nursery():
            raise error

    assert run_interruptible(add, 1, 2) == 3
    with pytest.raises(ExceptionGroup):
        run_interruptible(partial(fail, ConfigError("why")))


def test_every_command_ends_by_it() -> None:
    """A daemon has receivers for its signals; every other command is run interruptibly."""
    folder = Path(cli.__file__).parent
    for file in folder.rglob("*.py"):
        if file.name == "interrupts.py":
            continue
        for call in re.findall(r"trio\.run\((.{0,40})", file.read_text(), re.DOTALL):
            assert call.lstrip().startswith("partial(run_until_signalled"), f"{file.name}: {call}"
