"""Programs and libraries that run commands over SSH, each made ready to run `true` on one sshd.

All log in as the same user with the same key, and none checks host keys twice.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from bench.peers.tunnel import Unavailable
from bench.tree import ROOT
from tunnelmux.commands import CommandRequest
from tunnelmux.config import Secret
from tunnelmux.limits import ExecLimits
from tunnelmux.ssh import HostKeys
from tunnelmux.ssh.connection import Login
from tunnelmux.ssh.pool import open_pool

sys.path.append(str(ROOT / "tests"))  # the sshd is that of the tests

from support.programs import find_program
from support.sshd import SshServer, running_sshd

# The server must not be what limits: its defaults are 10 sessions of a connection and 10 logins.
SERVER = "AcceptEnv LANG LC_*\nMaxSessions 200\nMaxStartups 300\n"

OneCommand = Callable[[], Awaitable[None]]
"""Runs one command; raises Failed when it did not end with 0."""


class Failed(Exception):
    """A command that did not end with 0."""


@dataclass
class Commands:
    """Those of one load."""

    times: list[float] = field(default_factory=list)
    """Seconds of each that ended well."""
    problems: list[str] = field(default_factory=list)
    took: float = 0.0
    """Seconds of all of it."""


Load = Callable[[int, float], Awaitable[Commands]]
"""Runs commands, so many of them at any time, for so many seconds."""


async def in_tasks(one: OneCommand, at: int, seconds: float) -> Commands:
    """A load with a task for each command that runs."""
    commands = Commands()
    began = time.perf_counter()

    async def work() -> None:
        while (start := time.perf_counter()) < began + seconds:
            try:
                await one()
            except Failed as exc:
                commands.problems.append(str(exc))
            else:
                commands.times.append(time.perf_counter() - start)

    async with trio.open_nursery() as nursery:
        for _ in range(at):
            nursery.start_soon(work)
    commands.took = time.perf_counter() - began
    return commands


def in_threads(one: Callable[[], None], at: int, seconds: float) -> Commands:
    """The same with a thread for each command that runs."""
    commands = Commands()
    began = time.perf_counter()

    def work() -> None:
        while (start := time.perf_counter()) < began + seconds:
            try:
                one()
            except Exception as exc:  # noqa: BLE001  paramiko raises its own and the system's
                commands.problems.append(str(exc) or type(exc).__name__)
            else:
                commands.times.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(at)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commands.took = time.perf_counter() - began
    return commands


def request_for(server: SshServer, key: str) -> CommandRequest:
    return CommandRequest(
        command_id="bench",
        host=server.address.host,
        port=server.address.port,
        username=server.user,
        private_key=Secret(key),
        command="true",
        timeout=60.0,
    )


@asynccontextmanager
async def pooled(server: SshServer) -> AsyncIterator[Load]:
    """tunnelmux.ssh with the limits that are its defaults."""
    request = request_for(server, (server.folder / "user_key").read_text("ascii"))
    async with open_pool(Login(ExecLimits(), HostKeys("off"))) as pool:

        async def one() -> None:
            result = await pool.run(request)
            if result.exit_code:
                raise Failed(result.stderr)

        await one()
        yield partial(in_tasks, one)


@asynccontextmanager
async def unpooled(server: SshServer) -> AsyncIterator[Load]:
    """tunnelmux.ssh with a connection for every command."""
    request = request_for(server, (server.folder / "user_key").read_text("ascii"))

    async def one() -> None:
        async with open_pool(Login(ExecLimits(), HostKeys("off"))) as pool:
            result = await pool.run(request)
        if result.exit_code:
            raise Failed(result.stderr)

    yield partial(in_tasks, one)


@asynccontextmanager
async def control_master(server: SshServer) -> AsyncIterator[Load]:
    """`ssh` with one ControlMaster for all."""
    path = server.folder / "master"
    command = ["ssh", *server.client_options(), "-p", str(server.address.port)]
    command += ["-o", f"ControlPath={path}", f"{server.user}@{server.address.host}"]
    start = [*command[:-1], "-o", "ControlMaster=yes", "-o", "ControlPersist=600", "-f", "-N"]
    await trio.run_process([*start, command[-1]], capture_stderr=True)
    try:
        yield partial(in_tasks, partial(run_program, [*command, "true"]))
    finally:
        await trio.run_process([*command[:-1], "-O", "exit", command[-1]], capture_stderr=True)


@asynccontextmanager
async def plain_ssh(server: SshServer) -> AsyncIterator[Load]:
    """`ssh` with a connection for every command."""
    command = ["ssh", *server.client_options(), "-p", str(server.address.port)]
    command += [f"{server.user}@{server.address.host}", "true"]
    yield partial(in_tasks, partial(run_program, command))


async def run_program(command: list[str]) -> None:
    done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    if done.returncode:
        raise Failed(done.stderr.decode("utf-8", "replace"))


@asynccontextmanager
async def paramiko_threads(server: SshServer) -> AsyncIterator[Load]:
    """One client of paramiko's; its calls block, so each command has a thread."""
    import paramiko

    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())  # noqa: S507  as with ours: off
    client.connect(
        server.address.host,
        server.address.port,
        server.user,
        key_filename=str(server.folder / "user_key"),
        allow_agent=False,
        look_for_keys=False,
    )

    def one() -> None:
        _stdin, stdout, _stderr = client.exec_command("true")
        if stdout.channel.recv_exit_status():
            raise Failed("exit status")
        stdout.channel.close()

    try:
        yield lambda at, seconds: trio.to_thread.run_sync(in_threads, one, at, seconds)
    finally:
        client.close()


CLIENTS: dict[str, Callable[[SshServer], AbstractAsyncContextManager[Load]]] = {
    "tunnelmux-ssh": pooled,
    "tunnelmux-ssh-each": unpooled,
    "ssh-master": control_master,
    "ssh-each": plain_ssh,
    "paramiko": paramiko_threads,
}


@asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[SshServer]:
    """The sshd that all of them use. Raises Unavailable where it is not installed."""
    async with running_sshd(folder, find, more=SERVER, quiet=True) as server:
        yield server


def find(name: str, package: str) -> str:
    path = find_program(name)
    if path is None:
        raise Unavailable(f"{name} is not installed: apt-get install {package}")
    return path
