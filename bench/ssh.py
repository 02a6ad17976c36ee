"""Commands per second over SSH, at 1, 10 and 100 at once: ours, OpenSSH's client and paramiko.

All of them run `true` on one sshd of Debian on this machine, as the same user with the same key.
`python bench/ssh.py` runs all of it, some two minutes; `--seconds 1 --at 10` a part.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from support.sshd import SshServer, running_sshd  # noqa: E402
from tunnelmux.commands import CommandRequest  # noqa: E402
from tunnelmux.config import Secret  # noqa: E402
from tunnelmux.limits import ExecLimits  # noqa: E402
from tunnelmux.ssh import HostKeys, Login, open_pool  # noqa: E402

# The server must not be what limits: its defaults are 10 sessions of a connection and 10 logins.
SERVER = "AcceptEnv LANG LC_*\nMaxSessions 200\nMaxStartups 300\n"

OneCommand = Callable[[], Awaitable[None]]
"""Runs one command; raises when it failed."""


class Figures(NamedTuple):
    """One contender at one concurrency."""

    rate: float
    """Commands per second."""
    median: float
    """Milliseconds of one command."""
    failed: int


class Failed(Exception):
    """A command that did not end with 0."""


# -- the contenders -----------------------------------------------------------------------------


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
async def pooled(server: SshServer, _at: int) -> AsyncIterator[OneCommand]:
    """tunnelmux.ssh with the limits that are its defaults."""
    request = request_for(server, (server.folder / "user_key").read_text("ascii"))
    async with open_pool(Login(ExecLimits(), HostKeys("off"))) as pool:

        async def one() -> None:
            result = await pool.run(request)
            if result.exit_code:
                raise Failed(result.stderr)

        await one()
        yield one


@asynccontextmanager
async def unpooled(server: SshServer, _at: int) -> AsyncIterator[OneCommand]:
    """tunnelmux.ssh with a connection for every command."""
    request = request_for(server, (server.folder / "user_key").read_text("ascii"))

    async def one() -> None:
        async with open_pool(Login(ExecLimits(), HostKeys("off"))) as pool:
            result = await pool.run(request)
        if result.exit_code:
            raise Failed(result.stderr)

    yield one


@asynccontextmanager
async def control_master(server: SshServer, _at: int) -> AsyncIterator[OneCommand]:
    """`ssh` with one ControlMaster for all."""
    path = server.folder / "master"
    command = ["ssh", *server.client_options(), "-p", str(server.address.port)]
    command += ["-o", f"ControlPath={path}", f"{server.user}@{server.address.host}"]
    start = [*command[:-1], "-o", "ControlMaster=yes", "-o", "ControlPersist=600", "-f", "-N"]
    await trio.run_process([*start, command[-1]], capture_stderr=True)
    try:
        yield partial(run_program, [*command, "true"])
    finally:
        await trio.run_process([*command[:-1], "-O", "exit", command[-1]], capture_stderr=True)


@asynccontextmanager
async def plain_ssh(server: SshServer, _at: int) -> AsyncIterator[OneCommand]:
    """`ssh` with a connection for every command."""
    command = ["ssh", *server.client_options(), "-p", str(server.address.port)]
    yield partial(run_program, [*command, f"{server.user}@{server.address.host}", "true"])


async def run_program(command: list[str]) -> None:
    done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    if done.returncode:
        raise Failed(done.stderr.decode("utf-8", "replace"))


@contextlib.contextmanager
def paramiko_client(server: SshServer) -> Iterator[Callable[[], None]]:
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
        yield one
    finally:
        client.close()


ASYNC = {
    "tunnelmux, pool": pooled,
    "tunnelmux, no pool": unpooled,
    "ssh, ControlMaster": control_master,
    "ssh, no ControlMaster": plain_ssh,
}
PARAMIKO = "paramiko, one client"


# -- measuring ----------------------------------------------------------------------------------


async def measure(one: OneCommand, at: int, seconds: float) -> Figures:
    """Run commands, *at* of them at any time, for that many seconds."""
    times: list[float] = []
    failed = 0
    began = time.perf_counter()

    async def work() -> None:
        nonlocal failed
        while time.perf_counter() < began + seconds:
            start = time.perf_counter()
            try:
                await one()
            except Failed:
                failed += 1
            else:
                times.append(time.perf_counter() - start)

    async with trio.open_nursery() as nursery:
        for _ in range(at):
            nursery.start_soon(work)
    return figures(times, failed, time.perf_counter() - began)


def measure_threads(one: Callable[[], None], at: int, seconds: float) -> Figures:
    """The same with a thread for each command that runs."""
    times: list[float] = []
    failures: list[str] = []
    began = time.perf_counter()

    def work() -> None:
        while time.perf_counter() < began + seconds:
            start = time.perf_counter()
            try:
                one()
            except Exception as exc:  # noqa: BLE001  paramiko raises its own and the system's
                failures.append(str(exc))
            else:
                times.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work) for _ in range(at)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures(times, len(failures), time.perf_counter() - began)


def figures(times: list[float], failed: int, took: float) -> Figures:
    median = statistics.median(times) * 1000 if times else float("nan")
    return Figures(len(times) / took, median, failed)


async def compare(
    levels: Sequence[int], seconds: float, only: str
) -> dict[str, dict[int, Figures]]:
    table: dict[str, dict[int, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with running_sshd(Path(folder), find_program, more=SERVER) as server:
            for name, contender in ASYNC.items():
                if only in name:
                    table[name] = {}
                    for at in levels:
                        async with contender(server, at) as one:
                            table[name][at] = await measure(one, at, seconds)
            if only in PARAMIKO and importlib.util.find_spec("paramiko") is None:
                print("without paramiko: pip install paramiko")
            elif only in PARAMIKO:
                table[PARAMIKO] = await trio.to_thread.run_sync(
                    compare_paramiko, server, levels, seconds
                )
    return table


def compare_paramiko(
    server: SshServer, levels: Sequence[int], seconds: float
) -> dict[int, Figures]:
    results = {}
    for at in levels:
        with paramiko_client(server) as one:
            results[at] = measure_threads(one, at, seconds)
    return results


def find_program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise SystemExit(f"{name} is not installed: apt-get install {package}")
    return found


def main(args: Sequence[str]) -> int:
    """Measure and print; 1 when a command failed."""
    parser = argparse.ArgumentParser(prog="bench/ssh.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="per contender and level (8)")
    parser.add_argument("--at", type=int, action="append", help="commands at once (1, 10, 100)")
    parser.add_argument("--only", default="", help="contenders with this in their name")
    options = parser.parse_args(args)
    levels = options.at or [1, 10, 100]
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    print(f"{version.strip()}, CPython {sys.version.split()[0]}, {options.seconds:g} s each")
    table = trio.run(partial(compare, levels, options.seconds, options.only))
    head = "".join(f"{f'{at} at once':>28}" for at in levels)
    print(f"{'commands/s (median ms)':<24}{head}")
    for name, results in table.items():
        cells = [f"{f.rate:.1f} ({f.median:.1f})" for f in results.values()]
        print(f"{name:<24}" + "".join(f"{cell:>28}" for cell in cells))
    failed = {
        name: sum(f.failed for f in results.values())
        for name, results in table.items()
        if any(f.failed for f in results.values())
    }
    for name, count in failed.items():
        print(f"{name}: {count} commands failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
