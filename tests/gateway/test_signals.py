"""Signals and ends by a signal, both ways through the gateway. OpenSSH's client sends none and its
server takes none for root, so the person's client is asyncssh here, and the device has its own
shell.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import asyncssh
import pytest
import trio

from support.gateways import Site, User
from tunnelmux.config.shell import ShellConfig

pytestmark = pytest.mark.slow

T = TypeVar("T")

OpenSite = Callable[..., AbstractAsyncContextManager[Site]]

ME = pwd.getpwuid(os.geteuid()).pw_name
SHELL = ShellConfig(enabled=True, user=ME, authorized_keys="overwritten")  # type: ignore[arg-type]

PATIENCE = 60.0

# Blocked before it says that it is ready, so that no signal is missed.
WAITS = """\
import signal, sys
wanted = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", flush=True)
print("got", signal.sigwait(wanted).name, flush=True)
print("got", signal.sigwait(wanted).name, flush=True)
sys.exit(9)
"""


async def as_person(site: Site, user: User, act: Callable[[Any], Awaitable[T]]) -> T:
    """`act(connection)` of a person with asyncssh, in a thread of its own."""

    async def main() -> T:
        async with (
            asyncio.timeout(PATIENCE),
            asyncssh.connect(
                "127.0.0.1",
                site.port,
                username=f"{ME}@cam1",
                client_keys=[str(user.key)],
                known_hosts=str(site.folder / "gateway_known_hosts"),
                config=None,
                agent_path=None,
            ) as connection,
        ):
            return await act(connection)

    return await trio.to_thread.run_sync(partial(asyncio.run, main()))


async def signalled(connection: Any) -> Any:
    command = shlex.join([sys.executable, "-c", WAITS])
    async with connection.create_process(command) as process:
        assert await process.stdout.readline() == "ready\n"
        process.send_signal("USR1")
        assert await process.stdout.readline() == "got SIGUSR1\n"
        process.send_signal("TERM")
        return await process.wait()


async def killed(connection: Any) -> Any:
    async with connection.create_process("echo ready; exec sleep 60") as process:
        assert await process.stdout.readline() == "ready\n"
        process.send_signal("KILL")
        return await process.wait()


async def test_signals_reach_the_device_and_an_end_by_one_comes_back(open_site: OpenSite) -> None:
    async with open_site(shell=SHELL) as site:
        bob = await site.user("bob")
        lease = await site.lease(bob)
        ended = await as_person(site, bob, signalled)
        assert (ended.stdout, ended.exit_status) == ("got SIGTERM\n", 9)
        ended = await as_person(site, bob, killed)
        assert ended.exit_signal is not None
        assert ended.exit_signal[0] == "KILL"
        assert len(await site.records_of(lease, 2, "lease.session")) == 2
