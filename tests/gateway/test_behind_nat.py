"""The whole story of remote assistance: a device and a person with nothing but OpenSSH, both behind
NAT, and a recording that players show."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from support.behind_nat import SERVER, Nets, nets_behind_nat
from support.gateways import TEST
from support.lease_stage import API, GATEWAY, PROXY, READY
from support.registries import Templates
from support.sshd import CONFIGURATION, DEBIANS, make_privilege_separation_folder
from support.terminal import Terminal, open_terminal
from support.tree import ROOT
from tunnelmux.api.browser_sessions.keys import new_key_line
from tunnelmux.config import Secret
from tunnelmux.registry import LeaseTerms, TenantRegistry, open_registry

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes networks"),
]

GATEWAY_OF_PEOPLE = "203.0.113.1"

Program = Callable[[str, str], str]


@asynccontextmanager
async def running(words: list[str], log: Path, ready: str = "") -> AsyncIterator[trio.Process]:
    """A program for the length of the block, which begins when it has written `ready`."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with trio.fail_after(60):
            await _written(log, ready, process)
        yield process
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()
        print(f"--- {log.name} ---\n{await trio.Path(log).read_text()}")  # noqa: T201


async def _written(log: Path, ready: str, process: trio.Process) -> None:
    while ready not in await trio.Path(log).read_text():
        assert process.poll() is None, await trio.Path(log).read_text()
        await trio.sleep(0.05)


@asynccontextmanager
async def server(nets: Nets, folder: Path, registry_url: str) -> AsyncIterator[None]:
    """Proxy, API and gateway on the public machine."""
    for name, content in (
        ("internal.secret", secrets.token_hex(20)),
        ("authority.key", secrets.token_hex(32)),
        ("session-keys", new_key_line().strip()),
    ):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(content + "\n")
    values = {"host": "0.0.0.0", "port": 380, "folder": folder, "registry": registry_url}
    tunnels = '[tunnels]\nurl = "ws://127.0.0.1:3800/tunnel/connect"\n'
    inside = {"host": "127.0.0.1"}
    texts = {
        "proxy": PROXY.format(**values | inside),
        "api": API.format(**values).replace("http://0.0.0.0", "https://tunnels.example.com"),
        "gateway": GATEWAY.format(**values) + tunnels,
    }
    async with trio.open_nursery() as nursery:
        over = trio.Event()

        async def run(name: str, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            file = folder / f"{name}.toml"
            file.touch(mode=0o600)
            file.write_text(texts[name])
            launcher = str(ROOT / "cmd" / f"tunnelmux-{name}")
            words = nets.at("server", sys.executable, launcher, "--config", str(file))
            async with running(words, folder / f"{name}.log", READY[name]):
                task_status.started()
                await over.wait()

        for name in texts:
            await nursery.start(run, name)
        yield
        over.set()


def ssh_words(program: Program, folder: Path, key: str, *words: str) -> list[str]:
    settings = [
        f"IdentityFile={folder}/{key}",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        f"UserKnownHostsFile={folder}/known_hosts_{key}",
        "StrictHostKeyChecking=accept-new",
        "BatchMode=yes",
        "ConnectTimeout=30",
    ]
    options = [word for setting in settings for word in ("-o", setting)]
    return [program("ssh", "openssh-client"), "-F", "none", *options, "-p", "3803", *words]


async def lease_of_bob(tenant: TenantRegistry, device_id: str, holder: str) -> None:
    now = datetime.now(UTC)
    terms = LeaseTerms(
        device_id=device_id,
        services=("ssh", "web"),
        rights=("shell", "forward"),
        sealed=True,
        holder=holder,
        reason="ticket 7",
        starts=now - timedelta(seconds=1),
        ends=now + timedelta(hours=1),
    )
    lease, _ = await tenant.leases.add(terms, approved=True)
    with trio.fail_after(60):
        while lease.consent != "given":
            await trio.sleep(0.05)
            lease = await tenant.leases.find(lease.id)


def check_recording(program: Program, folder: Path, shown: str) -> None:
    """It is asciicast version 2, and a player shows it."""
    (recording,) = (folder / "gateway-state" / "recordings").rglob("*.cast")
    header, *events = [json.loads(line) for line in recording.read_text().splitlines()]
    assert header["version"] == 2
    assert (header["width"], header["height"]) == (80, 24)
    assert isinstance(header["timestamp"], int)
    times = [at for at, _, _ in events]
    assert times == sorted(times)
    assert times[0] >= 0
    assert {kind for _, kind, _ in events} <= {"o", "i", "r", "m"}
    assert all(isinstance(text, str) for _, _, text in events)
    player = [sys.executable, "-m", "asciinema", "cat", str(recording)]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    played = subprocess.run(player, capture_output=True, check=True, env=environment, timeout=60)
    assert shown.encode() in played.stdout


async def test_device_and_person_behind_nat_with_nothing_but_openssh(
    tmp_path: Path, templates: Templates, debian_program: Program
) -> None:
    url = templates.sqlite(tmp_path)
    keygen = debian_program("ssh-keygen", "openssh-client")
    for key in ("host_key", "device", "bob"):
        await trio.run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key])
    make_privilege_separation_folder()
    (tmp_path / "user_key.pub").write_text("")
    configuration = tmp_path / "sshd_config"
    trust = f"{DEBIANS} TUNNELMUX_*\nTrustedUserCAKeys {tmp_path}/ca.pub"
    configuration.write_text(CONFIGURATION.format(port=22, folder=tmp_path, more=trust))
    (tmp_path / "index.html").write_text("the device's page\n")
    sshd = [debian_program("sshd", "openssh-server"), "-D", "-e", "-f", str(configuration)]
    web = [sys.executable, "-u", "-m", "http.server", "80", "--bind", "127.0.0.1"]
    with nets_behind_nat(debian_program) as nets:
        async with (
            open_registry(Secret(url), migrate=False) as registry,
            server(nets, tmp_path, url),
            running(nets.at("device", *sshd), tmp_path / "sshd.log", "listening"),
            running(
                nets.at("device", *web, "--directory", str(tmp_path)),
                tmp_path / "web.log",
                "Serving",
            ),
        ):
            authority = await trio.run_process(
                [
                    sys.executable,
                    str(ROOT / "cmd" / "tunnelmux-gateway"),
                    "authority",
                    "--config",
                    str(tmp_path / "gateway.toml"),
                ],
                capture_stdout=True,
            )
            (tmp_path / "ca.pub").write_bytes(authority.stdout)
            installation = registry.installation(TEST)
            tenant = registry.tenant((await installation.tenants.find_named("default")).id, TEST)
            bob = await installation.users.sign_in(
                issuer="https://id.example.com", subject="bob", email="bob@example.com"
            )
            await installation.users.grant(
                tenant.tenant_id, "viewer", issuer=bob.issuer, subject="bob", force=True
            )
            await installation.ssh_keys.add(bob.id, (tmp_path / "bob.pub").read_text())
            _, code = await tenant.pairings.make_code()
            await story(nets, tmp_path, debian_program, tenant, bob.id, code.reveal())


async def story(
    nets: Nets, folder: Path, program: Program, tenant: TenantRegistry, bob: str, code: str
) -> None:
    curl = program("curl", "curl")
    # 1. Neither of the two can be dialled, but both reach the server.
    for place, target in (
        ("server", "198.51.100.2"),
        ("server", "192.168.7.2"),
        ("person", "198.51.100.2"),
    ):
        dial = [curl, "-s", "--connect-timeout", "2", f"telnet://{target}:22"]
        assert not nets.run(place, *dial, check=False)
    # 2. The device brings its key, with a code from the console as the proof.
    body = {"key": (folder / "device.pub").read_text().strip(), "lifetime": 86_400, "code": code}
    where = f"http://{SERVER}:3802/api/devices/SN-0001/ssh-keys"
    nets.run("device", curl, "-sf", where, "--json", json.dumps(body))
    device = await tenant.devices.find_called("sn-0001")
    # 3. Assistance is switched on there.
    forwards = ["-R", "ssh:22:localhost:22", "-R", "web:80:localhost:80", "assist --for 2h"]
    switch = ssh_words(program, folder, "device", f"SN-0001@{SERVER}", *forwards)
    async with running(nets.at("device", *switch), folder / "assist.log", "offers ssh, web") as on:
        with trio.fail_after(60):
            while True:
                state = (await tenant.devices.find(device.id)).state
                if state.assist is not None and set(state.services) == {"ssh", "web"}:
                    break
                await trio.sleep(0.05)
        await lease_of_bob(tenant, device.id, bob)
        # 4. The person is there, by SSH and by HTTP.
        page = ssh_words(
            program, folder, "bob", "-W", "web--sn-0001:80", f"any@{GATEWAY_OF_PEOPLE}"
        )
        shown = await trio.run_process(
            nets.at("person", *page),
            stdin=b"GET /index.html HTTP/1.0\r\n\r\n",
            capture_stdout=True,
            check=False,
        )
        assert shown.stdout.endswith(b"the device's page\n"), shown
        target = f"root@SN-0001@{GATEWAY_OF_PEOPLE}"
        session = nets.at("person", *ssh_words(program, folder, "bob", "-tt", target))
        async with await open_terminal(session) as terminal:
            await assisted(nets, terminal)
            # 6. The device has the last word.
            on.terminate()
            await terminal.expect("the device's connection ended")
            assert await terminal.wait() != 0
    with trio.fail_after(60):
        while (await tenant.recordings.page()).items[0].ended is None:  # noqa: ASYNC110  nobody tells
            await trio.sleep(0.05)
    check_recording(program, folder, "still here")


async def assisted(nets: Nets, terminal: Terminal) -> None:
    await terminal.type("echo re''ady; ip -o addr show eth0 | grep -o 'inet [0-9.]*'\n")
    await terminal.expect("ready")
    await terminal.expect("inet 192.168.7.2")
    # 5. A network that is lost in the session and comes back loses nothing.
    for cable in ("left", "right"):
        nets.lose(cable, lost=True)
        await terminal.type("echo still he''re\n")
        await trio.sleep(1)
        nets.lose(cable, lost=False)
        await terminal.expect("still here")
