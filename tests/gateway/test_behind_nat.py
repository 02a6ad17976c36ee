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
from dataclasses import dataclass
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
from tunnelmux.api.browser_sessions.cookie import COOKIE
from tunnelmux.api.browser_sessions.keys import new_key_line, read_key_file
from tunnelmux.config import Secret
from tunnelmux.registry import Registry, Role, SignedIn, TenantRegistry, open_registry

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


@dataclass(frozen=True)
class Browser:
    """A person at home with the console open: what its pages send to the API."""

    nets: Nets
    curl: str
    cookie: str

    def post(self, path: str, **body: object) -> dict[str, Any]:
        """The answer to a page's request."""
        words = [self.curl, "-sS", "--fail-with-body", f"http://{GATEWAY_OF_PEOPLE}:3802{path}"]
        words += ["-H", f"Cookie: {COOKIE}={self.cookie}", "-H", "Sec-Fetch-Site: same-origin"]
        done = subprocess.run(
            self.nets.at("person", *words, "--json", json.dumps(body)),
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


async def signed_in(
    nets: Nets, registry: Registry, folder: Path, curl: str, name: str, role: Role
) -> Browser:
    """A person's browser behind the sign-in, which the tests of tests/api go through: here there
    is no provider."""
    installation = registry.installation(TEST)
    tenant = await installation.tenants.find_named("default")
    issuer = "https://id.example.com"
    person = await installation.users.sign_in(
        issuer=issuer, subject=name, email=f"{name}@example.com"
    )
    await installation.users.grant(tenant.id, role, issuer=issuer, subject=name, force=True)
    sessions = installation.browser_sessions
    signed = SignedIn(
        user_id=person.id,
        tenant_id=tenant.id,
        role=role,
        issuer=issuer,
        provider_session="",
        tokens=b"",
    )
    new = await sessions.begin(
        signed, idle=3600, lifetime=3600, address="203.0.113.2", user_agent="curl"
    )
    keys = read_key_file("key_file", folder / "session-keys")
    return Browser(nets, curl, keys.sign(new.secret.reveal()))


async def lease_of_bob(bob: Browser, ann: Browser, tenant: TenantRegistry) -> None:
    """Asked for by bob and approved by ann, each in a browser; the device agrees."""
    asked = bob.post(
        "/api/leases",
        device="SN-0001",
        services=["ssh", "web"],
        rights=["shell", "forward"],
        sealed=True,
        reason="ticket 7",
        seconds=3600,
    )
    ann.post(f"/api/leases/{asked['id']}/approve")
    with trio.fail_after(60):
        while (await tenant.leases.find(asked["id"])).consent != "given":  # noqa: ASYNC110
            await trio.sleep(0.05)


def jump_file(folder: Path) -> Path:
    """A configuration for bob's ssh, as the README has people write it: the gateway is gw."""
    file = folder / "bob_ssh_config"
    file.write_text(
        f"Host gw\n HostName {GATEWAY_OF_PEOPLE}\n Port 3803\n User any\n"
        f"Host *\n IdentityFile {folder}/bob\n IdentitiesOnly yes\n IdentityAgent none\n"
        f" UserKnownHostsFile {folder}/known_hosts_jump\n StrictHostKeyChecking accept-new\n"
        " BatchMode yes\n ConnectTimeout 30\n"
    )
    return file


async def sealed(nets: Nets, folder: Path, program: Program) -> None:
    """By `-J` to the device's own sshd, and by `-L` to its page in the person's browser."""
    ssh = [program("ssh", "openssh-client"), "-F", str(jump_file(folder))]
    jump = [*ssh, "-J", "gw", "root@SN-0001", "ip -o addr show eth0; echo sealed"]
    with trio.fail_after(60):
        done = await trio.run_process(
            nets.at("person", *jump), stdin=b"", capture_stdout=True, capture_stderr=True
        )
    assert b"inet 192.168.7.2" in done.stdout
    assert done.stdout.endswith(b"sealed\n")
    forward = [*ssh, "-N", "-L", "127.0.0.1:8080:web--sn-0001:80", "gw"]
    curl = [program("curl", "curl"), "-sSf", "--retry", "20", "--retry-connrefused"]
    async with running(nets.at("person", *forward), folder / "forward.log"):
        with trio.fail_after(60):
            page = await trio.run_process(
                nets.at("person", *curl, "http://127.0.0.1:8080/index.html"), capture_stdout=True
            )
    assert page.stdout == b"the device's page\n"


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
            curl = debian_program("curl", "curl")
            bob = await signed_in(nets, registry, tmp_path, curl, "bob", "viewer")
            ann = await signed_in(nets, registry, tmp_path, curl, "ann", "operator")
            key = (tmp_path / "bob.pub").read_text()
            bob.post("/api/ssh-keys", key=key, name="laptop")
            (tmp_path / "user_key.pub").write_text(key)  # the device knows him, too, for -J
            _, code = await tenant.pairings.make_code()
            await story(nets, tmp_path, debian_program, tenant, (bob, ann), code.reveal())


async def story(
    nets: Nets,
    folder: Path,
    program: Program,
    tenant: TenantRegistry,
    people: tuple[Browser, Browser],
    code: str,
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
        await lease_of_bob(*people, tenant)
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
        await sealed(nets, folder, program)
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
