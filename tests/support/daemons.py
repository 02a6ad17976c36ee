"""tunnelmux-proxy and tunnelmux-agent as real processes, watched through what they log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from support.tree import ROOT
from tunnelmux.config import Address

__all__ = ["Daemon", "DaemonSet"]

START_TIMEOUT = 90.0
"""Seconds for what takes well under one on an idle machine: tests run beside each other."""


class Daemon:
    """One process, with everything it has written so far."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self.output = ""
        """Standard output and standard error together."""
        self.events: list[dict[str, object]] = []
        """The log lines among it."""
        self._process = process
        self._news = trio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    @property
    def peak_memory(self) -> int:
        """The most bytes it ever had resident (VmHWM of proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait(self, timeout: float = START_TIMEOUT) -> int:
        """Its exit status, when it has ended and all it wrote is here."""
        with trio.fail_after(timeout):
            status = await self._process.wait()
            while self._process.stdout is not None:
                await self._news.wait()
        return status

    async def logged(self, event: str, *, since: int = 0, **fields: object) -> dict[str, object]:
        """The first log line of that event with those fields, as soon as it is there.

        *since* is how many lines to pass over, for an event that was there before.
        """
        seen = since
        with trio.fail_after(START_TIMEOUT):
            while True:
                news = self._news
                for line in self.events[seen:]:
                    if line.get("event") == event and fields.items() <= line.items():
                        return line
                seen = len(self.events)
                assert self._process.stdout is not None, (
                    f"{self.name} ended ({self.status}) without logging {event!r} {fields}"
                )
                await news.wait()

    async def has_started(self) -> None:
        """Return when it has logged more than what is odd about its configuration."""
        while not any(line.get("event") != "odd configuration" for line in self.events):
            news = self._news
            assert self._process.stdout is not None, f"{self.name} ended before it began"
            await news.wait()

    async def listening(self, setting: str, *, since: int = 0) -> Address:
        """Where the listener of that setting is bound, once it is."""
        line = await self.logged("listening", since=since, setting=setting)
        host, _, port = str(line["address"]).rpartition(":")
        return Address(host, int(port))

    async def read(self) -> None:
        """Collect what it writes, to its end."""
        assert self._process.stdout is not None
        rest = b""
        async with self._process.stdout as source:
            async for data in source:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line.decode("utf-8", "replace"))
        self._take(rest.decode("utf-8", "replace"))
        self._process.stdout = None
        self._tell()

    def _take(self, line: str) -> None:
        if line:
            self.output += line + "\n"
            if line.startswith("{"):
                self.events.append(json.loads(line))
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


class DaemonSet:
    """Starts daemons for one test and ends them all, by their process ids.

    `secrets` are texts that none of them may ever write. Configurations go to *folder*; *bytecode*
    is a folder that several sets may share.
    """

    def __init__(self, folder: Path, nursery: trio.Nursery, bytecode: Path) -> None:
        self.secrets: set[str] = set()
        self._folder = folder
        self._bytecode = bytecode
        self._nursery = nursery
        self._daemons: list[Daemon] = []
        self._ended_here: list[Daemon] = []

    async def start(
        self,
        program: str,
        configuration: str,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
    ) -> Daemon:
        """`tunnelmux-PROGRAM` with this configuration file, as cmd/ launches it."""
        count = sum(daemon.name.startswith(program) for daemon in self._daemons) + 1
        name = f"{program}-{count}"
        file = self.file(name)
        self.write(file, configuration)
        launcher = ROOT / "cmd" / f"tunnelmux-{program}"
        process = await trio.lowlevel.open_process(
            [sys.executable, str(launcher), "--config", str(file), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **_environment(os.environ, self._bytecode),
                "XDG_STATE_HOME": str(self._folder / "state-home"),
                **(environ or {}),
            },
        )
        daemon = Daemon(name, process)
        self._daemons.append(daemon)
        self._nursery.start_soon(daemon.read)
        return daemon

    def file(self, name: str) -> Path:
        """The configuration file of the daemon with that name."""
        return self._folder / f"{name}.toml"

    def write(self, file: Path, configuration: str) -> None:
        """Replace a configuration, which only its owner may read: it holds tokens."""
        file.touch(mode=0o600)
        file.write_text(configuration)

    async def finish(self) -> None:
        """End what still runs, and print what all of them wrote: pytest shows it on failure."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:
                    for daemon in self._daemons:
                        if daemon.status is None:
                            self._ended_here.append(daemon)
                            nursery.start_soon(_terminate, daemon)
            for daemon in self._daemons:
                if daemon.status is None:
                    daemon.send_signal(signal.SIGKILL)
                await daemon.wait()
                print(f"--- {daemon.name} ({daemon.status}) ---\n{daemon.output}")  # noqa: T201

    def check(self) -> None:
        """What holds for every daemon in every test."""
        for daemon in self._daemons:
            text = daemon.output
            assert "Traceback" not in text, f"{daemon.name} met a bug"
            assert "unhandled error" not in text, f"{daemon.name} met a bug"
            if daemon in self._ended_here:
                assert daemon.status == 0, f"SIGTERM ended {daemon.name} with {daemon.status}"
            shown = [secret for secret in self.secrets if secret in text]
            assert shown == [], f"{daemon.name} wrote a secret"
            for line in text.splitlines():
                assert line.startswith(("{", f"tunnelmux-{daemon.name.partition('-')[0]}: ")), (
                    f"{daemon.name} wrote what is no log line: {line}"
                )


def _environment(inherited: Mapping[str, str], bytecode: Path) -> dict[str, str]:
    """What a daemon gets: settings from the tester's own environment do not count."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("TUNNELMUX_") and not name.lower().endswith("_proxy")
    }
    if kept.pop("PYTHONDONTWRITEBYTECODE", None):
        # It would compile every module at every start, which is half of what a start takes.
        kept["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return kept


async def _terminate(daemon: Daemon) -> None:
    # Not before it can have said that it listens to signals: a test may have ended at once.
    with trio.move_on_after(START_TIMEOUT), contextlib.suppress(AssertionError):
        await daemon.has_started()
    daemon.send_signal(signal.SIGTERM)
    await daemon.wait()
