"""A device is small: what an agent does not need, it does not import."""

from __future__ import annotations

import datetime
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from support.proxies import proxy_config, running
from tunnelmux.config import ProxyConfig
from tunnelmux.proxy.tunnels.certificate import make_certificate, pin_of

UNNEEDED = (
    "_decimal",
    "_hashlib",
    "_ssl",
    "_uuid",
    "aiohttp",
    "asyncio",
    "asyncssh",
    "bz2",
    "concurrent.futures",
    "cryptography",
    "ctypes",
    "difflib",
    "email",
    "engineio",
    "gettext",
    "greenlet",
    "html",
    "idna",
    "importlib.metadata",
    "lzma",
    "pickle",
    "prometheus_client",
    "pygments",
    "rich",
    "socketio",
    "sqlalchemy",
    "trio_asyncio",
    "tunnelmux.cli.assist",
    "tunnelmux.cli.pair",
    "tunnelmux.config.api",
    "tunnelmux.config.gateway",
    "tunnelmux.config.proxy",
    "tunnelmux.proxy",
    "tunnelmux.socketio",
    "tunnelmux.ssh",
    "typing_extensions",
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
# What it needs is imported when the first person comes.
[shell]
enabled = true
user = "{user}"
authorized_keys = "/dev/null"
"""


@pytest.mark.slow
async def test_an_agent_that_is_connected_has_imported_what_it_needs_and_no_more(
    tmp_path: Path,
) -> None:
    imported = await imported_by_an_agent(proxy_config(), CONFIGURATION, tmp_path)
    assert {"trio", "tunnelmux.agent", "tunnelmux.pump.tunnel"} <= imported
    found = {n for n in imported for name in UNNEEDED if n == name or n.startswith(f"{name}.")}
    assert sorted(found) == []


@pytest.mark.slow
async def test_an_agent_with_a_pinned_proxy_has_what_tls_needs_besides(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tunnel.pem", tmp_path / "tunnel.key"
    make_certificate(certificate, key, "127.0.0.1", datetime.datetime.now(datetime.UTC))
    config = proxy_config()
    tunnel = replace(config.tunnel, tls_certificate=certificate, tls_key=key)
    agent = CONFIGURATION.replace("ws:", "wss:").replace(
        "[device]", f'pin = "{pin_of(certificate)}"\n[device]'
    )
    imported = await imported_by_an_agent(replace(config, tunnel=tunnel), agent, tmp_path)
    assert {"ssl", "_ssl", "tunnelmux.pump.tunnel"} <= imported


async def imported_by_an_agent(config: ProxyConfig, agent: str, folder: Path) -> set[str]:
    """The modules that an agent process had at its end, after it had connected to such a proxy."""
    async with running(config) as proxy:
        file = folder / "agent.toml"
        user = pwd.getpwuid(os.geteuid()).pw_name
        file.write_text(agent.format(address=proxy.tunnel_address, user=user))
        file.chmod(0o600)
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", RUN, "--config", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        log = b""
        async for part in process.stderr:
            log += part
            if b"session started" in log:
                break
        else:
            pytest.fail(f"the agent did not connect: {log.decode()}")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        imported = b"".join([part async for part in process.stdout]).decode().split()
        assert await process.wait() == 0
    return set(imported)
