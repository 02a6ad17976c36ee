"""What systemd is told, by a daemon made for the test and by the real ones."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from support.tree import ROOT
from tunnelmux.cli.service_manager import ServiceManager
from tunnelmux.cli.signals import run_until_signalled
from tunnelmux.errors import ConfigError


class FakeManager:
    """The end that systemd has: a socket, and the variables that it gives a service."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.environ = {"NOTIFY_SOCKET": name}

    def told(self) -> list[list[str]]:
        """The states of each datagram that has come."""
        datagrams = []
        while True:
            try:
                datagram = self.socket.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return datagrams
            datagrams.append(datagram.decode().split("\n"))


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeManager]:
    manager = FakeManager(str(tmp_path / "notify"))
    with manager.socket:
        yield manager


async def serve(*, task_status=trio.TASK_STATUS_IGNORED) -> None:
    class Daemon:
        async def drain(self, grace: float) -> None:
            scope.cancel()

    with trio.CancelScope() as scope:
        await trio.sleep(3)  # connecting to something, say
        task_status.started(Daemon())
        await trio.sleep_forever()


async def test_a_daemon_says_when_it_serves_reads_its_file_and_stops(autojump_clock, systemd):
    reloads = 0

    async def reload(_daemon: object) -> None:
        nonlocal reloads
        reloads += 1
        if reloads == 2:
            raise ConfigError("proxy.toml: tunnel.listen: is wrong:\nwrite another")

    async def send_signals() -> None:
        await trio.sleep(2)
        assert systemd.told() == []
        await trio.sleep(2)
        assert systemd.told() == [["READY=1", "STATUS="]]
        before = time.clock_gettime(time.CLOCK_MONOTONIC)
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(1)
        begun, ended = systemd.told()
        assert begun[0] == "RELOADING=1"
        since = int(re.fullmatch(r"MONOTONIC_USEC=(\d+)", begun[1])[1]) / 1e6
        assert before - 0.001 <= since <= time.clock_gettime(time.CLOCK_MONOTONIC)
        assert ended == ["READY=1", "STATUS="]
        signal.raise_signal(signal.SIGHUP)
        await trio.sleep(1)
        _, ended = systemd.told()
        assert ended == [
            "READY=1",
            "STATUS=not reloaded: proxy.toml: tunnel.listen: is wrong: write another",
        ]
        signal.raise_signal(signal.SIGTERM)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_signals)
        manager = ServiceManager(systemd.environ)
        await run_until_signalled(serve, grace=10, reload=reload, manager=manager)
    assert systemd.told() == [["STOPPING=1", "STATUS=draining"]]


async def test_the_watchdog_hears_of_the_event_loop_and_of_nothing_else(autojump_clock, systemd):
    manager = ServiceManager(
        {**systemd.environ, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    )
    with trio.move_on_after(61):
        await manager.watch()
    # At 0, 15, 30, 45 and 60 seconds of the loop's own clock: while it stands, none is sent.
    assert systemd.told() == [["WATCHDOG=1"]] * 5


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_a_watchdog_that_waits_for_nobody_or_another_is_not_fed(systemd, variables):
    await ServiceManager({**systemd.environ, **variables}).watch()
    assert systemd.told() == []


def test_a_name_in_the_abstract_namespace(tmp_path):
    manager = FakeManager(f"@tunnelmux-test-{os.getpid()}")
    with manager.socket:
        ServiceManager(manager.environ).ready()
        assert manager.told() == [["READY=1", "STATUS="]]


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "/nowhere/notify"])
def test_without_a_manager_that_listens_nothing_happens(name):
    ServiceManager({"NOTIFY_SOCKET": name}).ready()


@pytest.mark.slow  # it starts a proxy
def test_a_real_proxy_is_ready_when_it_listens(tmp_path, systemd):
    systemd.socket.settimeout(50)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from tunnelmux.cli.proxy import main; main()"),
            *("--quickstart", "--state-dir", str(tmp_path / "state")),
            *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        ],
        env={**os.environ, **systemd.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert systemd.socket.recv(4096) == b"READY=1\nSTATUS="
        # What it said to its operator was written before.
        os.set_blocking(process.stdout.fileno(), False)
        assert b"Devices connect to wss://127.0.0.1:" in process.stdout.read()
        process.terminate()
        assert systemd.socket.recv(4096).startswith(b"STOPPING=1")
        process.communicate(timeout=50)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("program", ["proxy", "agent", "api"])
def test_the_units_wait_for_what_the_daemons_say(program):
    unit = (ROOT / "cmd" / f"tunnelmux-{program}" / f"tunnelmux-{program}.service").read_text()
    assert "\nType=notify\n" in unit
    assert "\nWatchdogSec=" in unit
    reloads = re.findall(r"^ExecReload=(.*)$", unit, re.MULTILINE)
    if program == "api":
        assert reloads == []  # it reads its file once
    else:
        check, hang_up = reloads
        assert check == (
            f"/opt/tunnelmux/bin/tunnelmux-{program} check --config /etc/tunnelmux/{program}.toml"
        )
        assert hang_up == "/bin/kill -HUP $MAINPID"


def test_the_unit_of_the_proxy_waits_for_a_program_that_an_upgrade_has_started():
    # That is no child of systemd, which with "mixed" waits for the main process only if it is one.
    unit = (ROOT / "cmd" / "tunnelmux-proxy" / "tunnelmux-proxy.service").read_text()
    assert "\nKillMode=control-group\n" in unit
