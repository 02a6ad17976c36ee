"""Real processes for one test each; whatever happens, they are ended and their logs looked at."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from support.daemons import DaemonSet
from support.origin import Origin, serving
from support.tunnels import Tunnel
from tunnelmux.config import Address

Run = Callable[..., Awaitable[subprocess.CompletedProcess[bytes]]]


@pytest.fixture
async def tunnel(daemons: DaemonSet) -> Tunnel:
    """A proxy and agents, none of which is started yet."""
    return Tunnel(daemons)


@pytest.fixture
async def origin() -> Origin:
    """The web server behind an agent, before it serves."""
    return Origin()


@pytest.fixture
async def web(origin: Origin) -> AsyncIterator[Address]:
    """Where that server listens."""
    async with serving(origin.handle) as address:
        yield address


@pytest.fixture
def run(debian_program: Callable[[str, str], str]) -> Run:
    """`await run("curl", "curl", *arguments)` runs the program of that Debian package."""

    async def start(
        name: str, package: str, *arguments: str, send: bytes = b"", timeout: float = 30.0
    ) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(timeout):
            return await trio.run_process(
                [debian_program(name, package), *arguments],
                stdin=send,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )

    return start
