"""The processes of a soak, and how each of them is restarted."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from soak.cable import Cable
from support.programs import find_program
from support.proxies import free_port
from support.sshd import CONFIGURATION, DEBIANS, make_privilege_separation_folder
from support.tree import ROOT
from tunnelmux.backend import ProxyClient
from tunnelmux.errors import TunnelmuxError

__all__ = ["Process", "Restart", "Stage", "running_stage"]

DEVICE, SOCKETIO_AGENT = "dev1", "sio-1"

PROXY = """\
[tunnel]
listen = "127.0.0.1:{tunnel}"
[internal]
listen = "127.0.0.1:{internal}"
secret = "{secret}"
[[devices]]
name = "dev1"
token = "{token}"
[audit]
file = "{folder}/proxy-audit.jsonl"
[drain]
grace = 5.0
{more}
"""

SOCKETIO = """\
[socketio]
listen = "127.0.0.1:{socketio}"
[[socketio.agents]]
proxy_id = "sio-1"
api_key = "{token}"
"""

AGENT = """\
[device]
name = "{name}"
state_dir = "{folder}/{name}"
{way}
[exec]
enabled = true
hosts = ["127.0.0.1"]
users = ["*"]
commands = ["*"]
[audit]
file = "{folder}/{name}-audit.jsonl"
[drain]
grace = 5.0
"""

TUNNEL_WAY = """\
[proxy]
url = "ws://127.0.0.1:{port}/tunnel/connect"
token = "{token}"
[[services]]
name = "web"
target = "http://127.0.0.1:1"
"""

SOCKETIO_WAY = """\
[socketio]
url = "http://127.0.0.1:{port}"
proxy_id = "sio-1"
api_key = "{token}"
"""


class Process:
    """One program that can be ended and started again; what it writes goes to a file."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.generation = 0
        self._arguments = arguments
        self._log = log
        self._process: trio.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self.generation += 1
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNNELMUX_")}
        with self._log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    async def stop(self, number: signal.Signals) -> None:
        """End it and wait; what is not gone after 15 s is killed."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        with trio.move_on_after(15) as patience:
            await self._process.wait()
        if patience.cancelled_caught:
            self._process.kill()
            await self._process.wait()

    def resident(self) -> int:
        """Bytes it has in memory now (VmRSS of proc(5)); 0 while it is not there."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        except OSError:
            return 0
        lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(lines[0].split()[1]) * 1024 if lines else 0

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        try:
            return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        except OSError:
            return 0


@dataclass(frozen=True)
class Restart:
    """One thing that was done to the stage, `at` seconds from the start."""

    what: str
    at: float


@dataclass
class Stage:
    """All that runs; `destinations` are the names that commands can be sent to."""

    client: ProxyClient
    ssh: dict[str, object]
    processes: dict[str, Process]
    cables: dict[str, Cable]
    destinations: list[str] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)

    async def restart(self, name: str, number: signal.Signals) -> None:
        process = self.processes[name]
        if name == "sshd":
            # Its sessions are processes of their own, and would survive it.
            for child in descendants(process.pid):
                kill(child)
        await process.stop(number)
        await process.start()

    async def wait_ready(self, name: str, timeout: float = 30.0) -> bool:
        """Whether a command on that destination comes through in time."""
        from soak.ledger import make_request  # it needs the stage as well

        with trio.move_on_after(timeout):
            while True:
                try:
                    request = make_request(self, f"ready-{secrets.token_hex(4)}", "true")
                    [result] = await self.client.exec_results(name, request, timeout=10)
                    if result.result.exit_code == 0:
                        return True
                except TunnelmuxError:
                    pass
                await trio.sleep(0.2)
        return False


@asynccontextmanager
async def running_stage(folder: Path, *, with_socketio: bool) -> AsyncIterator[Stage]:
    """Everything on loopback ports, for the length of the block."""
    ports = {name: free_port() for name in ("tunnel", "internal", "socketio", "sshd")}
    secret, token = secrets.token_hex(16), secrets.token_hex(16)
    async with trio.open_nursery() as nursery:
        cables = {"tunnel": await Cable.plug(nursery, ports["tunnel"])}
        if with_socketio:
            cables["socketio"] = await Cable.plug(nursery, ports["socketio"])
        configurations = {
            "proxy": PROXY.format(
                **ports,
                secret=secret,
                token=token,
                folder=folder,
                more=SOCKETIO.format(**ports, token=token) if with_socketio else "",
            ),
            DEVICE: AGENT.format(
                name=DEVICE,
                folder=folder,
                way=TUNNEL_WAY.format(port=cables["tunnel"].port, token=token),
            ),
        }
        if with_socketio:
            configurations[SOCKETIO_AGENT] = AGENT.format(
                name=SOCKETIO_AGENT,
                folder=folder,
                way=SOCKETIO_WAY.format(port=cables["socketio"].port, token=token),
            )
        processes = {"sshd": await make_sshd(folder, ports["sshd"])}
        for name, text in configurations.items():
            (folder / name).mkdir()
            processes[name] = make_daemon(folder, name, text)
        stage = Stage(
            ProxyClient(f"http://127.0.0.1:{ports['internal']}", secret=secret),
            {
                "host": "127.0.0.1",
                "port": ports["sshd"],
                "username": getpass.getuser(),
                "privateKey": (folder / "user_key").read_text("ascii"),
            },
            processes,
            cables,
        )
        try:
            for process in processes.values():
                await process.start()
            for name in (DEVICE, SOCKETIO_AGENT)[: 1 + with_socketio]:
                if not await stage.wait_ready(name):
                    raise SystemExit(f"{name} runs no command; see the logs in {folder} (--keep)")
                stage.destinations.append(name)
            yield stage
        finally:
            with trio.CancelScope(shield=True):
                for process in reversed(list(processes.values())):
                    await process.stop(signal.SIGTERM)
            nursery.cancel_scope.cancel()


def make_daemon(folder: Path, name: str, text: str) -> Process:
    file = folder / f"{name}.toml"
    file.touch(mode=0o600)
    file.write_text(text)
    launcher = ROOT / "cmd" / ("tunnelmux-proxy" if name == "proxy" else "tunnelmux-agent")
    arguments = [sys.executable, str(launcher), "--config", str(file)]
    return Process(name, arguments, folder / f"{name}.log")


async def make_sshd(folder: Path, port: int) -> Process:
    sshd, keygen = find_program("sshd"), find_program("ssh-keygen")
    if sshd is None or keygen is None:
        raise SystemExit("sshd is not installed: apt-get install openssh-server")
    make_privilege_separation_folder()
    for name in ("host_key", "user_key"):
        await trio.run_process(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        )
    configuration = folder / "sshd_config"
    configuration.write_text(CONFIGURATION.format(port=port, folder=folder, more=DEBIANS))
    return Process("sshd", [sshd, "-D", "-e", "-f", str(configuration)], folder / "sshd.log")


def descendants(pid: int) -> list[int]:
    """Every process below that one."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except OSError:
        return []
    children = [int(word) for word in text.split()]
    return [*children, *(below for child in children for below in descendants(child))]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
