"""An installation of which every part is a process of its own, and can be killed and started anew:
proxy, API, gateway and the device's agent, with a real sshd behind it."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio

from support.daemons import Daemon, DaemonSet
from support.gateways import TEST, User
from support.sshd import DEBIANS, SshServer, running_sshd
from support.terminal import Terminal, open_terminal
from support.tree import ROOT
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.registry import Lease, LeaseTerms, Registry, TenantRegistry

__all__ = ["LeaseStage", "running_stage"]

PROXY = """
[tunnel]
listen = "{host}:{port}0"
[internal]
listen = "{host}:{port}1"
secret_file = "{folder}/internal.secret"
[ingress.http]
listen = "{host}:0"
[registry]
url = "{registry}"
name = "p1"
migrate = false
"""

API = """
[api]
listen = "{host}:{port}2"
public_url = "http://{host}:{port}2"
[registry]
url = "{registry}"
migrate = false
[oidc]
issuer = "http://{host}:9"
client_id = "public"
timeout = 1
[browser_sessions]
key_file = "{folder}/session-keys"
[proxies]
secret_file = "{folder}/internal.secret"
"""

GATEWAY = """
[gateway]
listen = "{host}:{port}3"
state_dir = "{folder}/gateway-state"
[registry]
url = "{registry}"
migrate = false
[access]
authority_file = "{folder}/authority.key"
[proxies]
secret_file = "{folder}/internal.secret"
"""

AGENT = """
[proxy]
url = "ws://{host}:{port}0/tunnel/connect"
token = "{token}"
[device]
name = "cam1"
serial = "SN123"
state_dir = "{folder}/device"
[assist]
mode = "allow"
[[services]]
name = "ssh"
target = "tcp://{sshd}"
lease_only = true
"""

READY = {
    "proxy": "registry read",
    "api": "api listening",
    "gateway": "gateway listening",
    "agent": "session started",
}
"""What each logs when it is at work."""


@dataclass
class LeaseStage:
    """What a test uses."""

    folder: Path
    tenant: TenantRegistry
    registry: Registry
    program: Callable[[str, str], str]
    daemons: DaemonSet
    sshd: SshServer
    host: str
    port: int
    """All but the last digit of the ports of its parts."""
    device_id: str
    configurations: dict[str, str]
    clocks: dict[str, Mapping[str, str]] = field(default_factory=dict)
    running: dict[str, Daemon] = field(default_factory=dict)
    bob: User | None = None

    async def start(self, name: str) -> Daemon:
        """Start one part, and wait until it is at work."""
        daemon = await self.daemons.start(
            name, self.configurations[name], environ=self.clocks.get(name)
        )
        await daemon.logged(READY[name])
        self.running[name] = daemon
        return daemon

    async def kill_and_restart(self, name: str) -> Daemon:
        """SIGKILL, which no program can answer, and the same program again."""
        self.running[name].send_signal(signal.SIGKILL)
        await self.running[name].wait()
        daemon = await self.start(name)
        if name == "proxy":
            agent = self.running["agent"]
            started = sum(line.get("event") == "session started" for line in agent.events)
            if started < 2:
                await agent.logged("session started", since=_index_of(agent, "session started"))
        return daemon

    async def wait_online(self) -> None:
        """Until the registry knows what the device offers and takes."""
        with trio.fail_after(60):
            while True:
                state = (await self.tenant.devices.find(self.device_id)).state
                if state.services and state.assist is not None:
                    return
                await trio.sleep(0.05)

    async def lease(self, seconds: float, **more: Any) -> Lease:
        """A lease of bob's, once the device has agreed to it."""
        assert self.bob is not None
        now = datetime.now(UTC)
        values: dict[str, Any] = {
            "device_id": self.device_id,
            "services": ("ssh",),
            "rights": ("shell", "exec", "forward"),
            "sealed": True,
            "holder": self.bob.id,
            "reason": "ticket 7",
            "starts": now - timedelta(seconds=1),
            "ends": now + timedelta(seconds=seconds),
        }
        lease, _ = await self.tenant.leases.add(LeaseTerms(**(values | more)), approved=True)
        with trio.fail_after(60):
            while lease.consent != "given":
                await trio.sleep(0.05)
                lease = await self.tenant.leases.find(lease.id)
                assert not lease.end_reason, lease.end_reason
        return lease

    def ssh(self, *more: str) -> list[str]:
        """`ssh MORE` of bob's to the gateway."""
        assert self.bob is not None
        settings = [
            f"IdentityFile={self.bob.key}",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            f"UserKnownHostsFile={self.folder}/known_hosts",
            "StrictHostKeyChecking=accept-new",
            "BatchMode=yes",
            "ConnectTimeout=30",
        ]
        words = [word for setting in settings for word in ("-o", setting)]
        ssh = self.program("ssh", "openssh-client")
        return [ssh, "-F", "none", *words, "-p", f"{self.port}3", *more]

    async def terminal(self) -> Terminal:
        """A terminal on the device that has answered."""
        user = f"{self.sshd.user}@cam1"
        terminal = await open_terminal(self.ssh("-tt", "-l", user, self.host))
        await terminal.type("echo re''ady\n")
        await terminal.expect("ready")
        return terminal

    async def run(self, *more: str) -> subprocess.CompletedProcess[bytes]:
        """`ssh MORE` to its end."""
        with trio.fail_after(60):
            return await trio.run_process(
                self.ssh(*more), stdin=b"", capture_stdout=True, capture_stderr=True, check=False
            )


def _index_of(daemon: Daemon, event: str) -> int:
    for index, line in enumerate(daemon.events):
        if line.get("event") == event:
            return index + 1
    return 0


@asynccontextmanager
async def running_stage(
    folder: Path,
    registry: Registry,
    registry_url: str,
    program: Callable[[str, str], str],
    daemons: DaemonSet,
    *,
    clocks: Mapping[str, Mapping[str, str]] | None = None,
    gateway_more: str = "",
    sshd_more: str = "",
) -> AsyncIterator[LeaseStage]:
    """All of it for the length of the block. `clocks` has environments of parts, by which their
    clocks may be wrong; `gateway_more` and `sshd_more` are further configuration."""
    (folder / "sshd").mkdir()
    for name, secret in (
        ("internal.secret", secrets.token_hex(20)),
        ("authority.key", secrets.token_hex(32)),
        ("session-keys", new_key_line().strip()),
    ):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(secret + "\n")
        daemons.secrets.add(secret)
    # An address of loopback that nobody else listens on, below the ports that the system chooses:
    # parts find each other again.
    port = random.randint(1100, 3200)
    host = f"127.{'.'.join(str(random.randint(1, 254)) for _ in range(3))}"
    values: dict[str, Any] = {"host": host, "port": port, "folder": folder}
    values["registry"] = registry_url
    configurations = {
        "proxy": PROXY.format(**values),
        "api": API.format(**values),
        "gateway": GATEWAY.format(**values) + gateway_more,
    }
    file = folder / "authority.toml"
    file.write_text(configurations["gateway"])
    launcher = str(ROOT / "cmd" / "tunnelmux-gateway")
    trusted = await trio.run_process(
        [sys.executable, launcher, "authority", "--config", str(file)], capture_stdout=True
    )
    (folder / "sshd" / "ca.pub").write_bytes(trusted.stdout)
    trust = f"{DEBIANS} TUNNELMUX_*\nTrustedUserCAKeys {folder}/sshd/ca.pub\nLogLevel VERBOSE\n"
    trust += sshd_more
    installation = registry.installation(TEST)
    tenant = registry.tenant((await installation.tenants.find_named("default")).id, TEST)
    device, token = await tenant.devices.add("cam1", serial="SN123")
    daemons.secrets.add(token.reveal())
    async with running_sshd(folder / "sshd", program, trust) as sshd:
        configurations["agent"] = AGENT.format(token=token.reveal(), sshd=sshd.address, **values)
        stage = LeaseStage(
            folder,
            tenant,
            registry,
            program,
            daemons,
            sshd,
            host,
            port,
            device.id,
            configurations,
            dict(clocks or {}),
        )
        stage.bob = await _person(stage)
        async with trio.open_nursery() as starting:
            starting.start_soon(stage.start, "api")
            starting.start_soon(stage.start, "gateway")
            await stage.start("proxy")
            await stage.start("agent")
        await stage.wait_online()
        yield stage


async def _person(stage: LeaseStage) -> User:
    installation = stage.registry.installation(TEST)
    person = await installation.users.sign_in(
        issuer="https://id.example.com", subject="bob", email="bob@example.com"
    )
    await installation.users.grant(
        stage.tenant.tenant_id,
        "viewer",
        issuer=person.issuer,
        subject=person.subject,
        force=True,
    )
    key = stage.folder / "bob.key"
    keygen = stage.program("ssh-keygen", "openssh-client")
    await trio.run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    await installation.ssh_keys.add(person.id, key.with_suffix(".key.pub").read_text())
    return User(person.id, "bob@example.com", key)
