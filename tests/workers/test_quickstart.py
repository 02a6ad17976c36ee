"""A proxy without keys of its own, in two processes: a device that joins at one is known to all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from support.daemons import Daemon, DaemonSet
from support.visitor import fetch
from support.workers import PATIENCE
from tunnelmux.config import Address
from tunnelmux.config.quickstart_state import INTERNAL_SECRET, QuickstartState
from tunnelmux.proxy.quickstart import invite

pytestmark = [pytest.mark.long, pytest.mark.timeout(300, func_only=True)]

PROGRAM = Path(sys.executable).with_name("tunnelmux-proxy")
FILE = """
[tunnel]
listen = "127.0.0.1:0"
[ingress.http]
listen = "127.0.0.1:0"
[proxy]
workers = 2
[drain]
grace = 1
"""


@asynccontextmanager
async def quickstarted(folder: Path) -> AsyncIterator[tuple[trio.Process, Path]]:
    """The proxy, which serves, and the file that it writes to."""
    file, output = folder / "proxy.toml", folder / "output"
    file.write_text(FILE)
    options = ["--quickstart", "--state-dir", str(folder / "state"), "--public-host", "127.0.0.1"]
    with output.open("wb") as written:
        process = await trio.lowlevel.open_process(
            [PROGRAM, "--config", file, *options],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, "XDG_STATE_HOME": str(folder / "state-home")},
        )
    try:
        await written_to(output, "Paste this line on a device")
        yield process, output
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def written_to(output: Path, text: str) -> None:
    with trio.fail_after(PATIENCE):
        while text not in await trio.Path(output).read_text():  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_devices_join_and_are_replaced(
    daemons: DaemonSet, web: Address, tmp_path: Path
) -> None:
    state_dir = tmp_path / "state"

    async def join(name: str, replace: str | None = None) -> Daemon:
        made = invite(state_dir, replace=replace)
        folder = tmp_path / f"of-{name}{replace}"
        options = ("--join", made.join, "--name", name, "--state-dir", str(folder))
        service = f'[[services]]\nname = "web"\ntarget = "http://{web}"\n'
        agent = await daemons.start("agent", service, *options)
        await agent.logged("session started")
        return agent

    async with quickstarted(tmp_path) as (process, output):
        first = await join("dev1")
        await join("dev2")
        state = QuickstartState.read(state_dir)
        assert state.internal_url is not None
        internal = Address(*_host_and_port(state.internal_url))
        http = await _ingress(output)
        for _ in range(6):  # visitors come to either worker
            for device in ("dev1", "dev2"):
                answer = await fetch(http, device=device, timeout=PATIENCE)
                assert (answer.status, answer.body) == (200, b"hello\n")
        secret = (state_dir / INTERNAL_SECRET).read_text()
        fields = [("Authorization", f"Bearer {secret}")]
        told = await fetch(internal, "/internal/sessions", headers=fields, timeout=PATIENCE)
        assert {b'"dev1"' in told.body, b'"dev2"' in told.body} == {True}

        # A new machine in place of dev1 joins at one worker; the session ends, wherever it is.
        since = len(first.events)
        await join("dev1", replace="dev1")
        await first.logged("session ended", since=since)
        answer = await fetch(http, device="dev1", timeout=PATIENCE)
        assert (answer.status, answer.body) == (200, b"hello\n")

        process.send_signal(signal.SIGHUP)
        await written_to(output, '"configuration reloaded"')
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 0
    assert "Traceback" not in output.read_text()
    assert QuickstartState.read(state_dir).internal_url is None
    assert len(msgspec.json.decode((state_dir / "devices.json").read_bytes())) == 2


async def _ingress(output: Path) -> Address:
    lines = (await trio.Path(output).read_text()).splitlines()
    [line] = [line for line in lines if line.startswith("Visitors come in at")]
    return Address(*_host_and_port(line.split()[-1]))


def _host_and_port(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
