"""A whole installation for people's SSH: registry, proxy, a device with a real sshd, and
tunnelmux-gateway as a process of its own."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import trio

from support.daemons import Daemon, DaemonSet
from support.proxies import free_port
from support.registered import agent_at, config_for, following
from support.sshd import DEBIANS, SshServer, running_sshd
from support.terminal import Terminal, open_terminal
from support.tree import ROOT
from tunnelmux.agent.app import RunningAgent
from tunnelmux.config import (
    AgentConfig,
    Device,
    InternalListener,
    ProxyEndpoint,
    Secret,
    ServiceConfig,
)
from tunnelmux.config.assist import AssistConfig
from tunnelmux.config.shell import ShellConfig
from tunnelmux.proxy import RunningProxy
from tunnelmux.registry import Actor, Lease, LeaseTerms, Recording, Registry, TenantRegistry

__all__ = ["TEST", "Site", "User", "running_site"]

TEST = Actor.program("tests")

SECRET = "internal-secret-of-the-tests-0123456789"

Program = Callable[[str, str], str]


@dataclass
class User:
    """A person with an SSH key in a file, registered or not."""

    id: str
    name: str
    key: Path


@dataclass
class SshOnly:
    """A device that has nothing but OpenSSH, and its key in a file."""

    id: str
    name: str
    serial: str
    key: Path
    key_id: str


@dataclass
class Site:
    """What a test uses."""

    folder: Path
    registry: Registry
    tenant: TenantRegistry
    program: Program
    daemons: DaemonSet
    sshd: SshServer
    proxy: RunningProxy
    agent: RunningAgent
    device_id: str
    port: int
    gateway: Daemon
    registry_url: str

    # -- people -----------------------------------------------------------------------------------

    async def user(
        self, name: str, role: str | None = "viewer", *, registered: bool = True
    ) -> User:
        """A person who has this role in the tenant, and a key."""
        installation = self.registry.installation(TEST)
        person = await installation.users.sign_in(
            issuer="https://id.example.com", subject=name, email=f"{name}@example.com"
        )
        if role is not None:
            await installation.users.grant(
                self.tenant.tenant_id,
                role,  # type: ignore[arg-type]
                issuer=person.issuer,
                subject=person.subject,
                force=True,
            )
        key = self.folder / f"{name}.key"
        keygen = self.program("ssh-keygen", "openssh-client")
        await trio.run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        if registered:
            await installation.ssh_keys.add(person.id, key.with_suffix(".key.pub").read_text())
        return User(person.id, f"{name}@example.com", key)

    async def ssh_device(
        self, name: str, serial: str, *, kind: str = "ed25519", lifetime: float = 3600
    ) -> SshOnly:
        """A device that has nothing but OpenSSH, and a key that is registered for it."""
        device, _ = await self.tenant.devices.add(name, serial=serial)
        file = self.folder / f"{name}.key"
        keygen = self.program("ssh-keygen", "openssh-client")
        await trio.run_process([keygen, "-q", "-t", kind, "-N", "", "-f", str(file)])
        line = file.with_suffix(".key.pub").read_text()
        added = await self.tenant.device_ssh_keys.add(device.id, line, lifetime)
        return SshOnly(device.id, name, serial, file, added.id)

    @asynccontextmanager
    async def connected(self, device: SshOnly, *words: str) -> AsyncIterator[trio.Process]:
        """`ssh WORDS SERIAL@GATEWAY` of that device, for the length of the block."""
        user = User(device.id, device.name, device.key)
        ssh = [self.program("ssh", "openssh-client"), *self.client(user, "BatchMode=yes")]
        process = await trio.lowlevel.open_process(
            [*ssh, "-p", str(self.port), "-l", device.serial, "127.0.0.1", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def offers(self, device: SshOnly, *services: str) -> None:
        """Until the registry has the device online with these services."""
        with trio.fail_after(30):
            while True:
                state = (await self.tenant.devices.find(device.id)).state
                if state.online == bool(services) and (
                    not services or set(state.services) == set(services)
                ):
                    return
                await trio.sleep(0.05)

    async def lease(self, user: User, *, seconds: float = 3600, **more: Any) -> Lease:
        """A lease, once the device has agreed to it."""
        now = datetime.now(UTC)
        values: dict[str, Any] = {
            "device_id": self.device_id,
            "services": ("ssh", "web"),
            "rights": ("shell", "exec", "sftp"),
            "holder": user.id,
            "reason": "ticket 7",
            "starts": now - timedelta(seconds=1),
            "ends": now + timedelta(seconds=seconds),
        }
        lease, _ = await self.tenant.leases.add(LeaseTerms(**(values | more)), approved=True)
        with trio.fail_after(30):
            while True:
                lease = await self.tenant.leases.find(lease.id)
                if lease.consent == "given":
                    return lease
                assert not lease.end_reason, lease.end_reason
                await trio.sleep(0.05)

    async def wait_online(self) -> None:
        """Until the registry knows that the device is connected, and with which services."""
        with trio.fail_after(30):
            while True:
                state = (await self.tenant.devices.find(self.device_id)).state
                if state.services and state.assist is not None:
                    return
                await trio.sleep(0.05)

    # -- OpenSSH ----------------------------------------------------------------------------------

    def client(self, user: User, *more: str) -> list[str]:
        """Options for ssh, scp and sftp as this user."""
        hosts = self.folder / "gateway_known_hosts"
        settings = [
            f"IdentityFile={user.key}",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            f"UserKnownHostsFile={hosts} {self.sshd.folder}/known_hosts",
            "StrictHostKeyChecking=yes",
            "ConnectTimeout=60",
            "LogLevel=INFO",
            "NumberOfPasswordPrompts=1",
            *more,
        ]
        return ["-F", "none", *(word for setting in settings for word in ("-o", setting))]

    async def ssh(
        self,
        user: User,
        target: str,
        *command: str,
        send: bytes = b"",
        options: list[str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """`ssh TARGET@GATEWAY COMMAND` to its end."""
        words = [self.program("ssh", "openssh-client"), *(options or []), *self.client(user)]
        words += ["-p", str(self.port), "-l", target, "127.0.0.1", *command]
        return await self.run(words, send=send)

    async def terminal(self, user: User, target: str) -> Terminal:
        """`ssh TARGET@GATEWAY` with a terminal of 80 columns and 24 rows."""
        words = [self.program("ssh", "openssh-client"), *self.client(user), "-p", str(self.port)]
        return await open_terminal([*words, "-tt", "-l", target, "127.0.0.1"])

    async def run(
        self, words: list[str], *, send: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """A program to its end."""
        with trio.fail_after(90):
            return await trio.run_process(
                words, stdin=send, capture_stdout=True, capture_stderr=True, check=False
            )

    def jump_configuration(self, user: User) -> Path:
        """A file for `ssh -F`: the gateway under the name gw, the device as sn123."""
        file = self.folder / f"{user.name}.ssh_config"
        file.write_text(
            f"Host gw\n HostName 127.0.0.1\n Port {self.port}\n"
            f"Host *\n IdentityFile {user.key}\n IdentitiesOnly yes\n IdentityAgent none\n"
            f" UserKnownHostsFile {self.folder}/gateway_known_hosts\n"
            " StrictHostKeyChecking yes\n LogLevel INFO\n BatchMode yes\n"
            f"Host cam1 sn123\n UserKnownHostsFile {self.sshd.folder}/known_hosts\n"
            f" HostKeyAlias device\n IdentityFile {self.sshd.folder}/user_key\n"
        )
        return file

    @asynccontextmanager
    async def ssh_agent(self, key: Path) -> AsyncIterator[Path]:
        """An ssh-agent with this key: the path of its socket."""
        socket = self.folder / "agent.sock"
        words = [self.program("ssh-agent", "openssh-client"), "-D", "-a", str(socket)]
        process = await trio.lowlevel.open_process(words, stdout=subprocess.DEVNULL)
        try:
            add = [self.program("ssh-add", "openssh-client"), "-q", str(key)]
            # Its socket is there some time before it takes connections.
            with trio.fail_after(60):
                while True:
                    added = await self.run(["env", f"SSH_AUTH_SOCK={socket}", *add])
                    if added.returncode == 0:
                        break
                    await trio.sleep(0.05)
            yield socket
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def stop_agent(self) -> None:
        """Have the device's tunnel end for good."""
        await self.agent.drain(0)
        with trio.fail_after(30):
            while True:
                if not await self.proxy.store.list():
                    return
                await trio.sleep(0.05)

    # -- what is kept -----------------------------------------------------------------------------

    async def records(self, lease: Lease) -> list[dict[str, Any]]:
        """What was written down under a lease, as `action` and details."""
        entries = await self.tenant.leases.report(lease.id)
        return [
            {"action": entry.action, **(json.loads(entry.after) if entry.after else {})}
            for entry in entries
        ]

    async def records_of(self, lease: Lease, count: int, action: str) -> list[dict[str, Any]]:
        """The records with this action, once there are so many."""
        with trio.fail_after(30):
            while True:
                found = [item for item in await self.records(lease) if item["action"] == action]
                if len(found) >= count:
                    return found
                await trio.sleep(0.05)

    async def about(self, recording: Path) -> dict[str, Any]:
        """What is beside a recording, once that has ended."""
        with trio.fail_after(30):
            while True:
                found: dict[str, Any] = json.loads(recording.with_suffix(".json").read_text())
                if "ended" in found:
                    return found
                await trio.sleep(0.05)

    async def listed(self, recording: Path) -> Recording:
        """The registry's record of a recording, once that has ended."""
        with trio.fail_after(30):
            while True:
                found = await self.tenant.recordings.find(recording.stem)
                if found.ended is not None:
                    return found
                await trio.sleep(0.05)

    def recordings(self) -> list[Path]:
        return sorted((self.folder / "gateway-state" / "recordings").rglob("*.cast"))


@asynccontextmanager
async def running_site(
    folder: Path,
    registry: Registry,
    registry_url: str,
    program: Program,
    daemons: DaemonSet,
    web: str,
    more: str = "",
    *,
    sshd_more: str = "",
    authority: bool = True,
    public: tuple[str, ...] = (),
    codes: bool = False,
    shell: ShellConfig | None = None,
) -> AsyncIterator[Site]:
    """All of it for the length of the block. `more` is further configuration of the gateway. With
    `shell` the device has that in the place of its sshd, and the file for who may log in is made.
    """
    (folder / "sshd").mkdir()
    for name, secret in (("internal.secret", SECRET), ("authority.key", secrets.token_hex(32))):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(secret + "\n")
    daemons.secrets.add(SECRET)
    configuration = _gateway_toml(folder, registry_url, more)
    if not authority:
        key_line = f'authority_file = "{folder}/authority.key"'
        configuration = configuration.replace(key_line, "")
    file = folder / "gateway.toml"
    file.write_text(configuration)
    trusted = await _printed("authority", "--config", str(file)) if authority else ""
    (folder / "sshd" / "ca.pub").write_text(trusted)
    trust = f"{DEBIANS} TUNNELMUX_*\nTrustedUserCAKeys {folder}/sshd/ca.pub\nLogLevel VERBOSE\n"
    tenant = registry.tenant(
        (await registry.installation(TEST).tenants.find_named("default")).id, TEST
    )
    device, token = await tenant.devices.add("cam1", serial="SN123")
    internal = InternalListener(listen=f"127.0.0.1:{free_port()}", secret=Secret(SECRET))
    config = config_for(registry_url, public=public)
    async with (
        running_sshd(folder / "sshd", program, trust + sshd_more) as sshd,
        following(_with(config, internal=internal)) as proxy,
        agent_at(
            AgentConfig(
                device=Device(name="cam1", serial="SN123", state_dir=folder / "d"),
                assist=AssistConfig(
                    mode="allow", account_keys=folder / "sshd/user_key.pub" if codes else None
                ),
                proxy=ProxyEndpoint(url=f"ws://{proxy.tunnel_address}/tunnel/connect", token=token),
                services=[
                    *([] if shell else [ServiceConfig(name="ssh", target=f"tcp://{sshd.address}")]),
                    ServiceConfig(name="web", target=web),
                ],
                shell=_with(shell, authorized_keys=folder / "keys") if shell else ShellConfig(),
            )
        ) as agent,
    ):
        own_key = (folder / "sshd" / "user_key.pub").read_text()
        (folder / "keys").write_text(f"cert-authority {trusted}\n{own_key}")
        tunnel = f"ws://{proxy.tunnel_address}/tunnel/connect"
        gateway = await daemons.start(
            "gateway", configuration.replace("ws://proxy.example", tunnel)
        )
        line = await gateway.logged("gateway listening")
        port = int(str(line["address"]).rpartition(":")[2])
        key = (folder / "gateway-state" / "ssh_host_ed25519_key.pub").read_text()
        (folder / "gateway_known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
        site = Site(
            folder,
            registry,
            tenant,
            program,
            daemons,
            sshd,
            proxy,
            agent,
            device.id,
            port,
            gateway,
            registry_url,
        )
        await site.wait_online()
        yield site


def _gateway_toml(folder: Path, registry_url: str, more: str) -> str:
    tables = f"""
[gateway]
listen = "127.0.0.1:0"
state_dir = "{folder}/gateway-state"
console_url = "https://console.example.com"
[registry]
url = "{registry_url}"
[drain]
grace = 0.5
[proxies]
secret_file = "{folder}/internal.secret"
"""
    access = f'[access]\nauthority_file = "{folder}/authority.key"\n'
    if more.startswith("[gateway]"):
        own, bracket, rest = more.partition("\n[")
        tables = tables.replace("[gateway]", own)
        more = bracket.lstrip() + rest
    if "[access]" in more:
        return tables + more.replace("[access]", access.rstrip())
    return tables + access + more


async def _printed(*arguments: str) -> str:
    result = await trio.run_process(
        [sys.executable, str(ROOT / "cmd" / "tunnelmux-gateway"), *arguments], capture_stdout=True
    )
    return str(result.stdout, "utf-8")


def _with(config: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(config, **changes)
