"""What real daemons do about files and sockets before they run out."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.tunnels import Tunnel


@pytest.fixture
def few_of_many() -> Iterator[int]:
    """The limit that programs start with is less than they may have: how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def said_of(process: int, what: str) -> str:
    return Path(f"/proc/{process}/{what}").read_text("utf-8")


@pytest.mark.slow
async def test_daemons_may_open_as_many_files_as_their_user(
    tunnel: Tunnel, few_of_many: int
) -> None:
    """A shell gives 1024 as a rule: less than one address may have connections, and an agent
    streams."""
    await tunnel.start_proxy()
    agent = await tunnel.start_agent({"web": "8000"})
    for daemon in (tunnel.proxy, agent):
        (line,) = (
            line
            for line in said_of(daemon.pid, "limits").splitlines()
            if line.startswith("Max open files")
        )
        assert int(line.split()[3]) == few_of_many, daemon.name


@pytest.mark.slow
async def test_what_serves_a_visitor_is_loaded_before_the_first_one_comes(tunnel: Tunnel) -> None:
    """The library could not be opened where the first visitors took all descriptors, and the proxy
    ended."""
    await tunnel.start_proxy()
    assert "http_relay" in said_of(tunnel.proxy.pid, "maps")
