"""A real sshd on a loopback port, with its own host key and one key that may log in."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from support.proxies import free_port
from tunnelmux.config import Address

__all__ = ["SshServer", "running_sshd"]

PRIVILEGE_SEPARATION_FOLDER = Path("/run/sshd")
"""An sshd that starts as root wants it; where sshd is a service, systemd makes it."""

CONFIGURATION = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
SetEnv SHLVL=1
Subsystem sftp internal-sftp
{more}
"""
"""SHLVL keeps bash from reading the .bashrc of whoever runs the tests, which may take its time."""


DEBIANS = "AcceptEnv LANG LC_*"
"""What Debian's sshd_config has beyond OpenSSH's own defaults."""


@dataclass(frozen=True)
class SshServer:
    """Where it listens, and what a client needs to log in as the user who runs the tests."""

    address: Address
    folder: Path

    def client_options(self) -> list[str]:
        """For ssh, scp and sftp: nothing of the user's own configuration, and no questions."""
        settings = [
            f"UserKnownHostsFile={self.folder}/known_hosts",
            f"IdentityFile={self.folder}/user_key",
            "HostKeyAlias=device",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "ConnectTimeout=20",
            "LogLevel=ERROR",
        ]
        return ["-F", "none", *(word for setting in settings for word in ("-o", setting))]

    @property
    def user(self) -> str:
        return getpass.getuser()


@asynccontextmanager
async def running_sshd(
    folder: Path,
    program: Callable[[str, str], str],
    more: str = DEBIANS,
    port: int | None = None,
    *,
    quiet: bool = False,
) -> AsyncIterator[SshServer]:
    """An sshd for the length of the block; *program* finds a Debian package's program.

    *more* is further configuration; the default is what Debian has beyond OpenSSH's own. Keys that
    are in *folder* already are used again. Its log is printed at the end, unless *quiet*.
    """
    sshd = program("sshd", "openssh-server")
    keygen = program("ssh-keygen", "openssh-client")
    make_privilege_separation_folder()
    for name in ("host_key", "user_key"):
        if (folder / name).exists():
            continue
        key = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        await trio.run_process(key)
    public = (folder / "host_key.pub").read_text("ascii")
    (folder / "known_hosts").write_text(f"device {public}")
    port = port or free_port()
    configuration = folder / "sshd_config"
    configuration.write_text(CONFIGURATION.format(port=port, folder=folder, more=more))
    process = await trio.lowlevel.open_process(
        [sshd, "-D", "-e", "-f", str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    async with trio.open_nursery() as nursery:
        listening = trio.Event()
        nursery.start_soon(_watch, process.stderr, listening, quiet)
        try:
            with trio.fail_after(60):
                await listening.wait()
            yield SshServer(Address("127.0.0.1", port), folder)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                connections = _children(process.pid)
                process.terminate()
                await process.wait()
                for number in connections:  # a stopped sshd leaves them at work
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text("utf-8", "replace").rpartition(") ")[2].split()
            if int(state[1]) == parent:
                found.append(int(folder.name))
    return found


def make_privilege_separation_folder() -> None:
    """For an sshd that starts as root."""
    if os.geteuid() == 0:
        PRIVILEGE_SEPARATION_FOLDER.mkdir(mode=0o755, exist_ok=True)


async def _watch(log: trio.abc.ReceiveStream, listening: trio.Event, quiet: bool) -> None:
    """Print what it writes, for a failing test to show."""
    text = ""
    async with log:
        async for data in log:
            text += data.decode("utf-8", "replace")
            if "Server listening on" in text:
                listening.set()
    if not quiet:
        print(f"--- sshd ---\n{text}")  # noqa: T201
