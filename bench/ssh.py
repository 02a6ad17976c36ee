"""Commands per second over SSH at 1, 10 and 100 at once: ours, OpenSSH's client and paramiko.

All run `true` on one sshd of this machine. A round is all clients, one after another, each with a
connection of its own for every number of commands at once.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

import trio

import tunnelmux
from bench.columns import SETTLE, Sample
from bench.medians import quantile
from bench.peers.tunnel import Unavailable
from bench.rounds import Outcome, scratch_folder

if TYPE_CHECKING:  # asyncssh takes long to import, and most runs do not need it
    from bench.ssh_clients import Commands
    from support.sshd import SshServer

SSH = "ssh"

LEVELS = {f"ssh-{at}": at for at in (1, 10, 100)}
"""Columns, and the commands at once in each."""


def ours() -> str:
    return f"{tunnelmux.__version__}, asyncssh {metadata.version('asyncssh')}"


def openssh() -> str:
    if shutil.which("ssh") is None:
        raise Unavailable("ssh is not installed: apt-get install openssh-client")
    done = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False)
    return done.stderr.split(",")[0].strip()


def paramiko() -> str:
    try:
        return metadata.version("paramiko")
    except metadata.PackageNotFoundError:
        raise Unavailable("it is not installed: pip install --group bench") from None


@dataclass(frozen=True)
class Client:
    """Something that runs commands over SSH. `bench.ssh_clients` knows how."""

    name: str
    what: str
    version: Callable[[], str]
    """Raises Unavailable, with what to install."""
    ours: bool = False

    def traits(self) -> dict[str, object]:
        """As those of a tunnel."""
        return {
            "what": self.what,
            "version": self.version(),
            "ours": self.ours,
            "tunnel": False,
            "visitors": "bytes",
            "encrypted": True,
            "multiplexes": False,
        }


CLIENTS = (
    Client("tunnelmux-ssh", "tunnelmux.ssh, its pool", ours, ours=True),
    Client("tunnelmux-ssh-each", "tunnelmux.ssh, a connection for each command", ours, ours=True),
    Client("ssh-master", "ssh with one ControlMaster", openssh),
    Client("ssh-each", "ssh, a connection for each command", openssh),
    Client("paramiko", "paramiko, one client, a thread for each command", paramiko),
)


def measure_ssh(
    names: Sequence[str],
    columns: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    outcome: Outcome,
) -> dict[str, dict[str, object]]:
    """Fill *outcome*; the traits of the clients that were there."""
    there: dict[str, dict[str, object]] = {}
    for client in CLIENTS:
        if client.name in names:
            try:
                there[client.name] = client.traits()
            except Unavailable as exc:
                skip(client.name, exc, outcome)
    try:
        trio.run(until_stopped, partial(run_rounds, list(there), columns, rounds, seconds, outcome))
    except BaseExceptionGroup as group:  # of Trio's nurseries, around the signal that ends the run
        for kind in (KeyboardInterrupt, SystemExit):
            if (found := group.subgroup(kind)) is not None:
                raise first_of(found) from None
        raise
    return {} if SSH in outcome.skipped else there


async def until_stopped(work: Callable[[], Awaitable[None]]) -> None:
    """Run it; a SIGTERM ends it in order, where an exception from a handler would break Trio."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on, signals)
            await work()
            nursery.cancel_scope.cancel()


async def stop_on(signals: AsyncIterator[int]) -> None:
    async for number in signals:
        sys.exit(128 + number)


def skip(name: str, why: Unavailable, outcome: Outcome) -> None:
    outcome.skipped[name] = str(why)
    print(f"without {name}: {why}", flush=True)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def run_rounds(
    names: Sequence[str], columns: Sequence[str], rounds: int, seconds: float, outcome: Outcome
) -> None:
    """Rounds over these clients, if there is an sshd."""
    from bench.ssh_clients import running_server

    async with AsyncExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder())
            server = await stack.enter_async_context(running_server(folder))
        except Unavailable as exc:
            skip(SSH, exc, outcome)
            return
        began = time.monotonic()
        total = rounds * len(names)
        for done in range(total):
            number, place = divmod(done, len(names))
            print(f"round {number + 1}/{rounds}  {names[place]:18}", end="", flush=True)
            for column in columns:
                await measure_client(server, names[place], column, seconds, outcome)
            left = (time.monotonic() - began) / (done + 1) * (total - done - 1)
            print(f"  {left / 60:4.1f} min left", flush=True)


async def measure_client(
    server: SshServer, name: str, column: str, seconds: float, outcome: Outcome
) -> None:
    from bench.ssh_clients import CLIENTS as HOW

    try:
        async with HOW[name](server) as load:
            commands = await load(LEVELS[column], seconds)
    except Exception as exc:  # noqa: BLE001  each library has errors of its own; the others go on
        outcome.failures.append(f"{name}, {column}: {str(exc) or type(exc).__name__}")
        print(f"  {column} failed: {exc}", end="", flush=True)
    else:
        if commands.problems:
            count, why = len(commands.problems), commands.problems[0]
            outcome.failures.append(f"{name}, {column}: {count} commands failed: {why}")
        if commands.times:
            sample = sample_of(commands)
            outcome.add(name, column, sample)
            print(f"  {column} {sample['commands_per_s']:.4g}/s", end="", flush=True)
    await trio.sleep(SETTLE)


def sample_of(commands: Commands) -> Sample:
    """The figures of one load, of which at least one command ended well."""
    return {
        "commands_per_s": len(commands.times) / commands.took,
        "p50_ms": quantile(commands.times, 0.5) * 1000,
        "p99_ms": quantile(commands.times, 0.99) * 1000,
        "failed": len(commands.problems),
    }
