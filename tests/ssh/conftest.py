"""A real sshd, and pools of connections to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from support.proxies import free_port
from support.ssh_client import Asker
from support.sshd import SshServer, running_sshd
from tunnelmux.limits import ExecLimits
from tunnelmux.ssh import HostKeys
from tunnelmux.ssh.connection import Login
from tunnelmux.ssh.pool import SshPool, open_pool

Program = Callable[[str, str], str]


@pytest.fixture
async def sshd(tmp_path: Path, debian_program: Program) -> AsyncIterator[SshServer]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    async with running_sshd(folder, debian_program) as server:
        yield server


@pytest.fixture
def ask(sshd: SshServer) -> Asker:
    return Asker(sshd)


@pytest.fixture
def login(tmp_path: Path) -> Callable[..., Login]:
    """`login(max_output=5)` is what a pool is made from; host keys are pinned in a file."""

    def make(**limits: object) -> Login:
        keys = HostKeys("tofu", store=tmp_path / "state" / "pinned")
        return Login(ExecLimits(**limits), keys)  # type: ignore[arg-type]

    return make


@pytest.fixture
async def pool(login: Callable[..., Login]) -> AsyncIterator[SshPool]:
    async with open_pool(login()) as running:
        yield running


@pytest.fixture
def word() -> str:
    """A number of seconds to sleep that no other process of the machine has on its command line."""
    return f"30.{secrets.randbelow(10**12):012}"


@pytest.fixture
def unused_port() -> int:
    return free_port()
