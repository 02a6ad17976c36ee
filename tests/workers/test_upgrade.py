"""A proxy's program is replaced while visitors ask: no request fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from support.daemons import DaemonSet
from support.http_rig import Peer
from support.tunnels import Tunnel
from support.workers import PATIENCE, Workers
from tunnelmux.cli.upgrade_signal import ask_for_upgrade
from tunnelmux.config import Address
from tunnelmux.errors import ConfigError
from tunnelmux.proxy.workers.upgrade import PassVisitor, start_successor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

PAUSE = 0.005
"""Seconds between requests: the load is light."""

PROGRAM = str(Path(sys.executable).with_name("tunnelmux-proxy"))


@dataclass
class Load:
    """Visitors that ask again and again, on new connections and on one that is kept."""

    tunnel: Tunnel
    answered: dict[str, int] = field(default_factory=lambda: {"new": 0, "kept": 0})
    problems: list[str] = field(default_factory=list)

    async def ask_anew(self) -> None:
        """Requests on connections of their own."""
        try:
            while True:
                for device in ("dev1", "dev2"):
                    answer = await self.tunnel.fetch(device=device, timeout=PATIENCE)
                    assert answer.status == 200, f"{device}: {answer.status} {answer.reason}"
                    self.answered["new"] += 1
                    await trio.sleep(PAUSE)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, AssertionError) as error:
            self.problems.append(f"new: {error!r}")

    async def ask_on(self) -> None:
        """Requests on one connection, which may never be closed."""
        visitor = Peer(await self.tunnel.visit())
        try:
            while True:
                for device in (b"dev1", b"dev2"):
                    head = b"GET / HTTP/1.1\r\nHost: x\r\nTunnelmux-Device: %s\r\n\r\n" % device
                    with trio.fail_after(PATIENCE):
                        await visitor.send(head)
                        answer = await visitor.read_head()
                        assert answer.startswith(b"HTTP/1.1 200"), answer
                        assert await visitor.read_exactly(6) == b"hello\n"
                    self.answered["kept"] += 1
                    await trio.sleep(PAUSE)
        except (trio.BrokenResourceError, trio.TooSlowError, AssertionError) as error:
            self.problems.append(f"kept: {error!r}")
        finally:
            await trio.aclose_forcefully(visitor.stream)

    async def more(self, count: int) -> None:
        """Return after so many more answers of each kind, or the first problem."""
        wanted = {kind: had + count for kind, had in self.answered.items()}
        with trio.fail_after(PATIENCE):
            while any(self.answered[one] < wanted[one] for one in wanted):
                await trio.sleep(0.01)
                if self.problems:
                    return


@asynccontextmanager
async def loaded(tunnel: Tunnel) -> AsyncIterator[Load]:
    """Visitors who ask both devices, and all programs of the proxy ended behind them."""
    load = Load(tunnel)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.ask_anew)
            nursery.start_soon(load.ask_on)
            await load.more(5)
            yield load
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for line in tunnel.proxy.events:
                if line.get("event") == "upgraded":
                    await end(int(str(line["pid"])))


async def upgrade(pid: int) -> tuple[int, str]:
    """What `tunnelmux-proxy upgrade` ends with, and says."""
    with trio.fail_after(2 * PATIENCE):
        done = await trio.run_process(
            [PROGRAM, "upgrade", str(pid)],
            check=False,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
    return done.returncode, done.stdout.decode().strip()


async def end(pid: int) -> None:
    """End a process that is not our child, as a service manager would."""
    with suppress(ProcessLookupError), trio.fail_after(PATIENCE):
        os.kill(pid, signal.SIGTERM)
        while True:
            os.kill(pid, 0)
            await trio.sleep(0.02)


async def replaced(tunnel: Tunnel, times: int) -> None:
    """Replace the program under load, and see that nothing failed."""
    async with loaded(tunnel) as load:
        pid = tunnel.proxy.pid
        for _ in range(times):
            since = len(tunnel.proxy.events)
            status, said = await upgrade(pid)
            assert status == 0, said
            pid = int(said)
            await tunnel.proxy.logged("stopped", since=since)
            lines = tunnel.proxy.events[since:]
            moved = [line for line in lines if line.get("event") == "agents moved"]
            assert sum(int(str(line["count"])) for line in moved) == 2
            await load.more(20)
            assert load.problems == []


async def two_agents(daemons: DaemonSet, web: Address) -> Tunnel:
    """A proxy in one process, and its devices."""
    tunnel = Tunnel(daemons)
    await tunnel.start_proxy()
    for device in ("dev1", "dev2"):
        await tunnel.start_agent({"web": f"http://{web}"}, device=device)
    return tunnel


async def test_a_program_that_cannot_serve_changes_nothing_and_the_next_replaces_it(
    daemons: DaemonSet, web: Address
) -> None:
    tunnel = await two_agents(daemons, web)
    async with loaded(tunnel) as load:
        file = daemons.file("proxy-1")
        good = file.read_text()
        daemons.write(file, good + "[nonsense]\n")
        status, said = await upgrade(tunnel.proxy.pid)
        assert status == 1
        assert "goes on as before" in said
        daemons.write(file, good)
        await load.more(5)
        assert load.problems == []
    await replaced(tunnel, 1)


async def test_a_parent_and_its_workers_are_replaced(workers: Workers) -> None:
    await replaced(workers, 1)


@pytest.mark.long
async def test_it_is_replaced_again_and_again(daemons: DaemonSet, web: Address) -> None:
    await replaced(await two_agents(daemons, web), 5)


@pytest.mark.long
async def test_workers_are_replaced_again_and_again(workers: Workers) -> None:
    await replaced(workers, 5)


# -- a program that ends too early -----------------------------------------------------------------

TAKES_AGENTS_AND_ENDS = """
import socket, sys, trio
from tunnelmux.proxy.workers.upgrade import Predecessor

async def main():
    before = Predecessor(socket.socket(fileno=int(sys.argv[-1])))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(before.run)
        await before.takes_agents()
        nursery.cancel_scope.cancel()

trio.run(main)
"""


class Running:
    """A proxy that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def sockets_at(self, slot: str, address: Address) -> list[int]:
        return []

    async def move_agents(self) -> None:
        self.told.append("move agents")

    def keep_agents(self) -> None:
        self.told.append("keep agents")

    async def make_way(self, pass_visitor: PassVisitor) -> None:
        self.told.append("make way")


async def test_agents_are_taken_again_when_the_next_program_ends_before_it_serves() -> None:
    running, command = Running(), [sys.executable, "-c", TAKES_AGENTS_AND_ENDS]
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE), pytest.raises(ConfigError, match="the new program ended"):
            await start_successor(running, command, os.environ, nursery)
        assert running.told == ["move agents", "keep agents"]
        with pytest.raises(ConfigError, match="could not be started"):
            await start_successor(running, ["/nonexistent/program"], os.environ, nursery)


@pytest.mark.parametrize(("pid", "problem"), [(0, "there is no process"), (-1, "no upgrade")])
def test_a_process_that_would_die_of_the_signal_is_left_alone(pid: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ask_for_upgrade(os.getpid() if pid < 0 else 2**22 + 1)


PYTHON_THAT_CATCHES_IT = """\
import signal, sys
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "trap 'exit 7' USR2; echo; read line", "tunnelmux-proxy"],
        [sys.executable, "-c", PYTHON_THAT_CATCHES_IT],
    ],
    ids=["shell", "python"],
)
def test_another_program_that_catches_the_signal_is_left_alone(command: list[str]) -> None:
    """Shells do, and end by it: a wrong process id is enough."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ConfigError, match="takes no upgrade: give the first process"):
            ask_for_upgrade(process.pid)
        process.communicate()
    assert process.returncode != 7
