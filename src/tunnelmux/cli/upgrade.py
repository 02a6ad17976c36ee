"""A proxy makes way for its program anew: what the command line adds to `proxy.workers.upgrade`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tunnelmux.cli.upgrade_signal import PATIENCE
from tunnelmux.errors import ConfigError
from tunnelmux.proxy.workers.upgrade import MakesWay, NextProgram, Predecessor, start_successor

__all__ = ["follow", "upgrader"]

Upgrade = Callable[[MakesWay, trio.Nursery], Awaitable[NextProgram]]


def upgrader() -> Upgrade:
    """Starts this program anew, with the arguments that this process was given."""
    command = [sys.executable, "-P", "-m", "tunnelmux.cli.successor", *sys.argv[1:]]

    async def upgrade(running: MakesWay, nursery: trio.Nursery) -> NextProgram:
        with trio.move_on_after(PATIENCE):
            return await start_successor(running, command, os.environ, nursery)
        raise ConfigError(f"the new program did not serve within {PATIENCE:g} s")

    return upgrade


async def follow(
    start: Callable[..., Awaitable[object]],
    link: socket.socket | None,
    *,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a proxy, by *start* with its `binder`, as the successor of the program that *link* leads
    to, where there is one."""
    if link is None:
        await start(task_status=task_status)
        return
    before = Predecessor(link)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(before.run)
        async with trio.open_nursery() as serving:
            running = await serving.start(partial(start, binder=before))
            before.serves()
            task_status.started(running)
        nursery.cancel_scope.cancel(reason="the proxy has ended")
