"""A lease's end comes whatever happens to the programs that keep it, and to their clocks."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from support.daemons import Daemon, DaemonSet
from support.lease_stage import LeaseStage, running_stage
from support.registries import Templates
from tunnelmux.config import Secret
from tunnelmux.registry import Lease, open_registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OpenStage = Callable[..., AbstractAsyncContextManager[LeaseStage]]

TIMES_UP = "the lease has ended: its time is over"


@pytest.fixture
async def open_stage(
    tmp_path: Path,
    templates: Templates,
    debian_program: Callable[[str, str], str],
    daemons: DaemonSet,
) -> AsyncIterator[OpenStage]:
    """`async with open_stage(clocks={"proxy": ENVIRONMENT}) as stage`."""
    url = templates.sqlite(tmp_path)
    async with open_registry(Secret(url), migrate=False) as registry:

        def make(
            clocks: Mapping[str, Mapping[str, str]] | None = None,
        ) -> AbstractAsyncContextManager[LeaseStage]:
            return running_stage(tmp_path, registry, url, debian_program, daemons, clocks=clocks)

        yield make


@pytest.fixture
def off_by(debian_program: Callable[[str, str], str]) -> Callable[[str], dict[str, str]]:
    """`off_by("-1d")`: the environment of a process whose clock on the wall is wrong by that."""
    debian_program("faketime", "faketime")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")

    def environment(offset: str) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME": offset,
            # Clocks that cannot be set stay right, as on a machine.
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    return environment


@contextlib.contextmanager
def frozen(*daemons: Daemon) -> Iterator[None]:
    """Those processes do nothing while the block runs, and do not know it."""
    for daemon in daemons:
        daemon.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for daemon in daemons:
            daemon.send_signal(signal.SIGCONT)


async def ended_alone(stage: LeaseStage, lease: Lease) -> None:
    """Until the device's agent has ended the lease by its own clock, and not before its time."""
    reason = "its time is over"
    await stage.running["agent"].logged("assistance", what="ended", lease=lease.id, reason=reason)
    assert lease.ends is not None
    assert datetime.now(UTC) > lease.ends - timedelta(seconds=3)


async def test_all_are_killed_in_a_lease_and_it_ends_at_its_second(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        # A lease that is over before all are back shows nothing: then one that is longer.
        for seconds in (15, 60, 240):
            lease = await stage.lease(seconds)
            assert lease.ends is not None
            async with await stage.terminal() as before:
                await stage.kill_and_restart("proxy")
                await before.expect("the device's connection ended")
            await stage.kill_and_restart("gateway")
            await stage.kill_and_restart("api")
            if datetime.now(UTC) + timedelta(seconds=5) < lease.ends:
                break
        async with await stage.terminal() as terminal:
            # A network that is lost for a moment loses nothing of the session.
            with frozen(stage.running["agent"]):
                await terminal.type("echo still he''re\n")
                await trio.sleep(0.5)
            await terminal.expect("still here")
            await trio.sleep((lease.ends - datetime.now(UTC)).total_seconds() - 1)
            await terminal.expect("your lease has ended")
            assert datetime.now(UTC) >= lease.ends - timedelta(seconds=1)
            assert await terminal.wait() != 0
        await stage.running["proxy"].logged("lease ended", lease=lease.id, reason=TIMES_UP)
        await stage.running["agent"].logged("assistance", what="ended", lease=lease.id)
        refused = await stage.run("-l", f"{stage.sshd.user}@cam1", stage.host, "true")
        assert b'nothing lets you into "cam1" now' in refused.stderr


async def test_an_agent_that_was_killed_and_has_a_wrong_clock_ends_it_alone(
    open_stage: OpenStage, off_by: Callable[[str], dict[str, str]]
) -> None:
    async with open_stage({"agent": off_by("-1d")}) as stage:
        lease = await stage.lease(12)
        stage.clocks["agent"] = off_by("+1d")
        await stage.kill_and_restart("agent")
        async with await stage.terminal():
            with frozen(stage.running["proxy"], stage.running["gateway"]):
                await ended_alone(stage, lease)
                # What went to the device's sshd is cut there, and written down there.
                agent = stage.running["agent"]
                await agent.logged("assistance", what="disconnected", lease=lease.id)


@pytest.mark.long
async def test_a_gateway_whose_clock_is_a_day_wrong_prolongs_nothing(
    open_stage: OpenStage, off_by: Callable[[str], dict[str, str]]
) -> None:
    async with open_stage({"gateway": off_by("-1d")}) as stage:
        # By the clock of the gateway it has begun, and runs for a day more.
        lease = await stage.lease(12, starts=datetime.now(UTC) - timedelta(days=2))
        assert lease.ends is not None
        banner = await stage.run("-l", "any", "-W", "cam1:22", stage.host)
        assert banner.stdout.startswith(b"SSH-2.0-OpenSSH")
        await stage.running["proxy"].logged("lease ended", lease=lease.id, reason=TIMES_UP)
        over = await stage.run("-l", "any", "-W", "cam1:22", stage.host)
        assert over.stdout == b""
        assert over.returncode == 255
        # A day ahead, it lets nobody in.
        await stage.lease(3600)
        stage.clocks["gateway"] = off_by("+1d")
        await stage.kill_and_restart("gateway")
        refused = await stage.run("-l", f"{stage.sshd.user}@cam1", stage.host, "true")
        assert refused.returncode == 255
        assert b'nothing lets you into "cam1" now' in refused.stderr
