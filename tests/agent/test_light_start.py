"""A device is small: what an agent does not need, it does not import."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from support.proxies import proxy_config, running

UNNEEDED = (
    "aiohttp",
    "asyncio",
    "asyncssh",
    "concurrent.futures",
    "cryptography",
    "engineio",
    "greenlet",
    "prometheus_client",
    "pygments",
    "rich",
    "socketio",
    "sqlalchemy",
    "trio_asyncio",
    "tunnelmux.proxy",
    "tunnelmux.socketio",
    "tunnelmux.ssh",
)

# attrs is there because Trio needs it. What was imported is said at the end of a real run.
RUN = (
    "import atexit, sys; "
    "atexit.register(lambda: print(*sys.modules, sep='\\n')); "
    "from tunnelmux.cli.agent import main; main()"
)

CONFIGURATION = """
[proxy]
url = "ws://{address}/tunnel/connect"
token = "token-of-dev1"
[device]
name = "dev1"
[[services]]
name = "web"
target = "http://127.0.0.1:8000"
"""


@pytest.mark.slow
async def test_an_agent_that_is_connected_has_imported_what_it_needs_and_no_more(
    tmp_path: Path,
) -> None:
    async with running(proxy_config()) as proxy:
        file = tmp_path / "agent.toml"
        file.write_text(CONFIGURATION.format(address=proxy.tunnel_address))
        file.chmod(0o600)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", RUN, "--config", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        handle = await proxy.store.wait_for_device("dev1", trio.current_time() + 30)
        assert handle is not None, "the agent did not connect"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        imported = b"".join([part async for part in process.stdout]).decode().split()
        assert await process.wait() == 0
    assert "trio" in imported and "tunnelmux.agent" in imported
    found = {n for n in imported for name in UNNEEDED if n == name or n.startswith(f"{name}.")}
    assert sorted(found) == []


def test_what_structlog_hides_is_there_for_those_who_need_it() -> None:
    code = (
        "import tunnelmux.observability, structlog, asyncio, rich.console; "
        "assert asyncio.run(asyncio.sleep(0, 7)) == 7; "
        "assert structlog.stdlib.asyncio.get_running_loop is asyncio.get_running_loop; "
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"fine\n"
