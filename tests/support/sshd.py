"""A real sshd on a loopback port, with its own host key and one key that may log in."""

from __future__ import annotations

import getpass
import os
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
Subsystem sftp internal-sftp
"""


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
    folder: Path, program: Callable[[str, str], str]
) -> AsyncIterator[SshServer]:
    """An sshd for the length of the block; *program* finds a Debian package's program."""
    sshd = program("sshd", "openssh-server")
    keygen = program("ssh-keygen", "openssh-client")
    _make_privilege_separation_folder()
    for name in ("host_key", "user_key"):
        key = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        await trio.run_process(key)
    public = (folder / "host_key.pub").read_text("ascii")
    (folder / "known_hosts").write_text(f"device {public}")
    port = free_port()
    configuration = folder / "sshd_config"
    configuration.write_text(CONFIGURATION.format(port=port, folder=folder))
    process = await trio.lowlevel.open_process(
        [sshd, "-D", "-e", "-f", str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    async with trio.open_nursery() as nursery:
        listening = trio.Event()
        nursery.start_soon(_watch, process.stderr, listening)
        try:
            with trio.fail_after(20):
                await listening.wait()
            yield SshServer(Address("127.0.0.1", port), folder)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                process.terminate()
                await process.wait()


def _make_privilege_separation_folder() -> None:
    if os.geteuid() == 0:
        PRIVILEGE_SEPARATION_FOLDER.mkdir(mode=0o755, exist_ok=True)


async def _watch(log: trio.abc.ReceiveStream, listening: trio.Event) -> None:
    """Print what it writes, for a failing test to show."""
    text = ""
    async with log:
        async for data in log:
            text += data.decode("utf-8", "replace")
            if "Server listening on" in text:
                listening.set()
    print(f"--- sshd ---\n{text}")  # noqa: T201
