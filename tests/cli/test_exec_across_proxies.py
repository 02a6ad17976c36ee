"""exec by tunnelmux-api on devices of several proxies: what ends it on one ends it on all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.apis import live_api
from support.exec_agent import ExecAgent, exec_proxy
from support.shapes import Exit, of_lines
from support.tenants import TEST, person
from support.tree import ROOT
from tunnelmux.config import Secret
from tunnelmux.config.proxy import RegistrySource

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NAMES = ("dev1", "dev2", "dev3")


@asynccontextmanager
async def proxies(folder: Path) -> AsyncIterator[tuple[dict[str, str], dict[str, ExecAgent]]]:
    """The environment of a person who is signed in, and three devices, each at a proxy of its
    own."""
    registry = f"sqlite:///{folder}/registry.db"
    async with live_api(folder, registry_url=registry) as api, AsyncExitStack() as stack:
        ada = await person(api, "ada")
        agents: dict[str, ExecAgent] = {}
        for name in NAMES:
            await api.running.api.registry.tenant(ada.tenant_id, TEST).devices.add(name)
            source = RegistrySource(url=Secret(registry), name=f"proxy-of-{name}")
            _, mine = await stack.enter_async_context(exec_proxy(name, registry=source))
            agents |= mine
        with trio.fail_after(60):  # until each proxy has told its address
            while len(  # noqa: ASYNC110
                (await api.running.api.proxies.survey()).sessions
            ) < len(NAMES):
                await trio.sleep(0.05)
        kept = {name: value for name, value in os.environ.items() if "TUNNELMUX" not in name}
        yield {**kept, "TUNNELMUX_SERVER": api.base, "TUNNELMUX_TOKEN": ada.token}, agents


def begun(env: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cmd" / "tunnelmux"), "exec", "all", "--json", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_what_ends_it_on_one_ends_it_on_all(tmp_path: Path) -> None:
    async with proxies(tmp_path) as (env, agents):
        for count, number in enumerate([signal.SIGINT, signal.SIGKILL], 1):
            with begun(env, "--timeout", "600", "--", "sleep 600") as process:
                await until(lambda: all(agent.running for agent in agents.values()))
                process.send_signal(number)
                await until(lambda: not any(agent.running for agent in agents.values()))
                said, _ = await trio.to_thread.run_sync(process.communicate)
            assert [agent.ended_early for agent in agents.values()] == [count] * len(NAMES)
            assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
        words = ("--timeout", "600", "--abort-on-error", "--", "trouble dev2")
        with begun(env, *words) as process:
            said, _ = await trio.to_thread.run_sync(process.communicate)
        assert process.returncode == 3
        ends = {
            end.device: end for end in of_lines("tunnelmux exec", said) if isinstance(end, Exit)
        }
        assert ends.keys() == set(NAMES)
        assert ends["dev2"].exit_code == 3
        # One that had not begun by then is skipped.
        assert {ends[name].reason for name in ("dev1", "dev3")} <= {"aborted", "skipped"}
        await until(lambda: not any(agent.running for agent in agents.values()))
