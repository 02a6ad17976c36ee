"""Processes that are started for a measurement: their end, their processor time, their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

START_TIMEOUT = 30.0
"""Seconds for a program to do what shows that it has started; all need less than two."""

STOP_TIMEOUT = 5.0
"""Seconds between the request to end and the order to."""

HOST = "127.0.0.1"

TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds per unit of processor time in /proc/PID/stat."""


class StartFailure(Exception):
    """A program did not start; the message holds the end of what it wrote."""


# -- /proc --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat tells of a process."""

    parent: int
    seconds: float
    """Processor time, its own and that of the children it has collected."""
    began: int
    """Clock ticks after the boot: with the id it names one process for ever."""


def parse_stat(text: str) -> Stat:
    """One line of proc(5)'s stat; the name in parentheses may hold spaces and parentheses."""
    fields = text.rpartition(")")[2].split()
    seconds = sum(map(int, fields[11:15])) * TICK
    return Stat(parent=int(fields[1]), seconds=seconds, began=int(fields[19]))


def parse_resident_kib(status: str) -> int:
    """VmRSS of /proc/PID/status in KiB; 0 for a process that has no memory any more."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def descendants(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """*roots* and all below them, by the parent of each process."""
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def read_all_stats() -> dict[int, Stat]:
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since
                stats[int(entry.name)] = parse_stat((entry / "stat").read_text("utf-8", "replace"))
    return stats


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of the processes, their living and their collected children."""
    stats = read_all_stats()
    family = descendants(roots, {pid: stat.parent for pid, stat in stats.items()})
    return sum(stats[pid].seconds for pid in family if pid in stats)


def resident_kib(roots: Iterable[int]) -> int:
    """Resident memory of the processes and their living children."""
    parents = {pid: stat.parent for pid, stat in read_all_stats().items()}
    total = 0
    for pid in descendants(roots, parents):
        with contextlib.suppress(OSError):
            total += parse_resident_kib(Path(f"/proc/{pid}/status").read_text("utf-8", "replace"))
    return total


# -- starting and ending ------------------------------------------------------------------------


class Started:
    """Processes that one measurement started; leaving its block ends them, by their ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _name, process in reversed(self._processes):
            end(process)

    def start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> int:
        """Start *command* with its output in *name*.log; its process id."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append((name, process))
        return process.pid

    def has_ended(self, pid: int) -> bool:
        """Whether this process, one of these, is over."""
        return all(one.poll() is not None for _name, one in self._processes if one.pid == pid)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def check(self) -> None:
        """Raise StartFailure when one of them has ended."""
        for name, process in self._processes:
            if process.poll() is not None:
                wrote = self.log(name).strip()[-600:]
                raise StartFailure(f"{name} ended with {process.returncode}: {wrote}")

    def wait_until(
        self, what: str, condition: Callable[[], bool], timeout: float = START_TIMEOUT
    ) -> None:
        """Wait until *condition*; StartFailure when a process ends first, or it takes too long."""
        deadline = time.monotonic() + timeout
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise StartFailure(f"no {what} within {timeout:.0f} s")
            time.sleep(0.02)

    def wait_for_port(self, port: int) -> None:
        """Wait until something listens there. It sees one connection that sends nothing."""
        self.wait_until(f"listener on port {port}", lambda: can_connect(port))

    def wait_for_log(self, name: str, text: str, timeout: float = START_TIMEOUT) -> None:
        self.wait_until(f"{text!r} from {name}", lambda: text in self.log(name), timeout)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then make it; whatever it started goes with it or before it."""
    if process.poll() is not None:
        return
    stats = read_all_stats()
    parents = {pid: stat.parent for pid, stat in stats.items()}
    children = descendants([process.pid], parents) - {process.pid}
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    now = read_all_stats()
    for pid in children:  # an sshd leaves its sessions running
        if pid in now and pid in stats and now[pid].began == stats[pid].began:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


# -- addresses ----------------------------------------------------------------------------------


def can_connect(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports nobody uses now, below those the system gives to outgoing connections."""
    return [port for port, _ in zip(_unused_ports(), range(count), strict=False)]


def _unused_ports() -> Iterator[int]:
    global _next_port  # noqa: PLW0603 - no port is given out twice in one run
    while True:
        _next_port = FIRST_PORT + (_next_port + 1 - FIRST_PORT) % (LAST_PORT - FIRST_PORT)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, _next_port))
            yield _next_port


FIRST_PORT, LAST_PORT = 20_000, 32_000
_next_port = FIRST_PORT + os.getpid() % (LAST_PORT - FIRST_PORT)
