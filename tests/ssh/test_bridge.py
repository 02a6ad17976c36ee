"""Trio and asyncio in one run: results, failures and cancellation cross, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest
import trio
import trio.testing

from tunnelmux.ssh.bridge import open_bridge


async def test_a_result_and_a_failure_come_across() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("in asyncio")

    async with open_bridge() as bridge:
        assert await bridge.call(double(4)) == 8
        with pytest.raises(KeyError, match="in asyncio"):
            await bridge.call(fail())
        assert bridge.task_count == 0


async def test_cancelling_from_trio_waits_until_the_task_is_unwound() -> None:
    steps = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            steps.append("unwound")
            raise

    async with open_bridge() as bridge:
        with trio.move_on_after(0.02) as scope:
            await bridge.call(work())
        assert scope.cancelled_caught
        assert steps == ["unwound"]
        assert bridge.task_count == 0


async def test_a_cancel_that_a_thread_swallowed_comes_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As in a connect of asyncssh, which reads its options in a thread and then waits for ever."""
    in_thread, cancelled = threading.Event(), threading.Event()
    steps = []

    def block() -> None:
        in_thread.set()
        cancelled.wait(30)

    async def work() -> None:
        await asyncio.get_running_loop().run_in_executor(None, block)
        steps.append("went on")
        await asyncio.get_running_loop().create_future()

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.call, work())
        await trio.to_thread.run_sync(in_thread.wait)
        nursery.cancel_scope.cancel()
        cancelled.set()
    assert steps == ["went on"]
    assert bridge.task_count == 0


async def test_asyncios_own_cancellation_never_reaches_trio() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    async with open_bridge() as bridge:
        with pytest.raises(ConnectionError):
            await bridge.call(give_up())


async def test_a_wait_that_is_cancelled_leaves_its_task_alone() -> None:
    async with open_bridge() as bridge:
        going_on = asyncio.Event()

        async def work() -> str:
            await going_on.wait()
            return "done"

        pending = bridge.start(work())
        with trio.move_on_after(0.01):
            await pending.wait()
        assert not pending.done
        with bridge.entered():
            going_on.set()
        await pending.wait()
        assert pending.result() == "done"


async def test_tasks_from_another_context_may_use_it() -> None:
    """A connection's task is not a child of the one that made the loop."""
    async with trio.open_nursery() as outer, open_bridge() as bridge:
        results = []

        async def elsewhere() -> None:
            results.append(await bridge.call(asyncio.sleep(0, "here")))

        outer.start_soon(elsewhere)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert results == ["here"]


@pytest.mark.slow
def test_the_repairs_for_new_pythons_leave_a_working_loop() -> None:
    """Forced here, where none is needed; CI runs all of tests/ssh on the Pythons that need them."""
    code = """
import asyncio, trio, tunnelmux.ssh.python314 as repairs
repairs._PYTHON = (3, 15)
from tunnelmux.ssh.bridge import open_bridge

async def talk():
    server = await asyncio.start_server(lambda r, w: (w.write(b"hello"), w.close()), "127.0.0.1")
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    text = await reader.read()
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert asyncio.current_task() is not None and asyncio.get_running_loop().is_running()
    return text

async def main():
    async with open_bridge() as bridge:
        print(await bridge.call(talk()))

for _ in range(2):
    repairs.repair_asyncio()  # may be called again
    trio.run(main)
assert asyncio.run(asyncio.sleep(0, "plain")) == "plain"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.stdout, done.stderr) == ("b'hello'\n" * 2, "")
