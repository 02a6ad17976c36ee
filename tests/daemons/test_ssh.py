"""The real ssh, scp and sftp to a real sshd behind the agent."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from support.origin import numbered_blocks
from support.sshd import SshServer, running_sshd
from support.tunnels import Tunnel
from tunnelmux.config import Address

pytestmark = pytest.mark.slow  # each starts processes

SIZE = 8 << 20


@pytest.fixture
async def sshd(
    tmp_path: Path, debian_program: Callable[[str, str], str]
) -> AsyncIterator[SshServer]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    async with running_sshd(folder, debian_program) as server:
        yield server


@pytest.fixture
async def port(tunnel: Tunnel, sshd: SshServer) -> str:
    """A port of the proxy that leads to the sshd behind the agent."""
    await tunnel.start_proxy(tcp=[("127.0.0.1:0", "dev1", "ssh")])
    await tunnel.start_agent({"ssh": f"tcp://{sshd.address}"})
    address: Address = await tunnel.at_tcp()
    return str(address.port)


async def test_ssh_runs_a_command_and_brings_its_status_back(
    port: str, sshd: SshServer, run
) -> None:
    command = "cat; echo on the device; echo complaint >&2; exit 7"
    where = f"{sshd.user}@127.0.0.1"
    result = await run(
        *("ssh", "openssh-client", *sshd.client_options(), "-p", port, where, command),
        send=b"what was typed\n",
    )
    assert result.stdout == b"what was typed\non the device\n"
    assert result.stderr == b"complaint\n"
    assert result.returncode == 7


@pytest.mark.parametrize("program", ["scp", "sftp"])
async def test_files_arrive_whole_both_ways(
    port: str, sshd: SshServer, run, tmp_path: Path, program: str
) -> None:
    local, remote, back = (tmp_path / name for name in ("local", "remote", "back"))
    local.write_bytes(b"".join(numbered_blocks(SIZE)))
    options = [*sshd.client_options(), "-P", port]
    where = f"{sshd.user}@127.0.0.1"
    if program == "scp":
        transfers = [
            (("scp", "openssh-client", *options, str(local), f"{where}:{remote}"), b""),
            (("scp", "openssh-client", *options, f"{where}:{remote}", str(back)), b""),
        ]
    else:
        batch = f"put {local} {remote}\nget {remote} {back}\n".encode()
        transfers = [(("sftp", "openssh-client", *options, "-b", "-", where), batch)]
    for command, send in transfers:
        result = await run(*command, send=send)
        assert (result.returncode, result.stderr) == (0, b"")
    wanted = hashlib.sha256(local.read_bytes()).hexdigest()
    assert hashlib.sha256(remote.read_bytes()).hexdigest() == wanted
    assert hashlib.sha256(back.read_bytes()).hexdigest() == wanted
