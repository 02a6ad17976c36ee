"""The installation of deploy/compose, as processes of this machine: the same configuration files,
each service of compose.yaml with an address of loopback in the place of its name."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

import tunnelmux
from bench.failures.registry import Database, socket_folder
from bench.processes import HOST, Started, StartFailure, free_ports
from bench.tree import ROOT

__all__ = ["Installation", "installation"]

FILES = ROOT / "deploy" / "compose"

STATE = "/run/tunnelmux"
"""Where the containers have what init.sh makes."""

BALANCER = "172.30.0.10"
"""nginx, as the proxies and gateways of compose.yaml know it."""

SERVICES = (
    "redis",
    "proxy-a",
    "proxy-b",
    "api-a",
    "api-b",
    "gateway-a",
    "gateway-b",
    "oidc.localhost",
    "prometheus",
)

CLAIMS = '{"sub":"ada@example.com","email":"ada@example.com","email_verified":true,"name":"Ada"}'

STARTED_WITHIN = 60.0

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@dataclass
class Installation:
    """What runs. Services have an address each, and the ports that compose.yaml gives them; nginx
    has HOST and free ports."""

    folder: Path
    started: Started
    addresses: dict[str, str]
    ports: dict[int, int]
    """nginx's, by those of nginx.conf."""
    pids: dict[str, int] = field(default_factory=dict)
    starts: int = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def local(self, text: str, address: str = "") -> str:
        """A configuration file with this machine's addresses, ports and paths."""
        text = text.replace(STATE, str(self.state)).replace(BALANCER, HOST)
        text = text.replace("/etc/prometheus", str(self.folder))
        for name, own in self.addresses.items():
            text = re.sub(rf"\b{re.escape(name)}\b(?=:\d)", own, text)
        for port, own_port in self.ports.items():
            text = text.replace(f"nginx:{port}", f"{HOST}:{own_port}")
            text = text.replace(f"localhost:{port}", f"localhost:{own_port}")
            text = text.replace(f"listen {port};", f"listen {HOST}:{own_port};")
        return text.replace("0.0.0.0:", f"{address or HOST}:")

    def run(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a service, or start it again."""
        self.starts += 1
        called = f"{name}-{self.starts}"
        self.pids[name] = self.started.start(called, command, self.environment(environment))

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        programs = self.folder / "bin"
        source = Path(tunnelmux.__file__).parents[1]
        return {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{source}",
            **(more or {}),
        }

    async def start_program(self, name: str) -> None:
        """Start a proxy, a copy of the API or a gateway; returns when it listens."""
        kind, address = name.partition("-")[0], self.addresses[name]
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        file = folder / f"{kind}.toml"
        file.write_text(self.local((FILES / file.name).read_text("utf-8"), address))
        more = {}
        if kind == "proxy":
            more = {
                "TUNNELMUX_CLUSTER_NODE": name,
                "TUNNELMUX_CLUSTER_ADDRESS": f"{address}:3803",
                "TUNNELMUX_CLUSTER_AGENT_URL": f"ws://{address}:3800/tunnel/connect",
                "TUNNELMUX_REGISTRY_NAME": name,
                "TUNNELMUX_REGISTRY_INTERNAL_URL": f"http://{address}:3801",
            }
        launcher = ROOT / "cmd" / f"tunnelmux-{kind}"
        self.run(name, [sys.executable, str(launcher), "--config", str(file)], more)
        await self.listens(address, {"proxy": 3800, "api": 3721, "gateway": 2222}[kind])

    async def listens(self, address: str, port: int) -> None:
        """Return when something listens there; StartFailure when nothing does in a minute."""
        with trio.move_on_after(STARTED_WITHIN):
            while True:  # no event says so
                try:
                    await (await trio.open_tcp_stream(address, port)).aclose()
                except OSError:
                    await trio.sleep(0.05)
                else:
                    return
        logs = max(self.folder.glob("*.log"), key=lambda file: file.stat().st_mtime)
        wrote = logs.read_text("utf-8", "replace").strip()[-600:]
        raise StartFailure(f"nothing listens on {address}:{port}; {logs.stem}: {wrote}")


@asynccontextmanager
async def installation(folder: Path) -> AsyncIterator[Installation]:
    """All services but the devices, for the length of the block. Raises StartFailure."""
    network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
    addresses = {name: f"{network}.{number + 11}" for number, name in enumerate(SERVICES)}
    ports = dict(zip((8000, 8080, 2222, 3800), free_ports(4), strict=True))
    with Started(folder) as started, socket_folder() as database_folder:
        this = Installation(folder, started, addresses, ports)
        this.state.mkdir()
        database = Database(started, database_folder)
        await database.start()
        redis = addresses["redis"]
        fixed = ["--bind", redis, "--save", "", "--protected-mode", "no"]
        this.run("redis", [program("redis-server", "redis-server"), *fixed])
        claims = f"--user-claims={CLAIMS}"
        provider = addresses["oidc.localhost"]
        mock = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock"]
        this.run("oidc", [*mock, f"--host={provider}", "--port=9400", claims])
        await this.listens(redis, 6379)
        await prepare(this, database.url)
        for name in SERVICES:
            if name.startswith(("proxy", "api", "gateway")):
                await this.start_program(name)
        await this.listens(provider, 9400)
        await start_nginx(this)
        await start_prometheus(this)
        yield this


async def prepare(this: Installation, database: str) -> None:
    """Run init.sh, with the programs of this tree under the names that it calls."""
    programs = this.folder / "bin"
    programs.mkdir()
    for name in ("tunnelmux-api", "tunnelmux-gateway"):
        file = programs / name
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/cmd/{name} "$@"\n')
        file.chmod(0o755)
    folder = this.folder / "init"
    folder.mkdir()
    for name in ("api.toml", "gateway.toml", "init.sh"):
        (folder / name).write_text(this.local((FILES / name).read_text("utf-8")))
    environment = this.environment(
        {
            "STATE": str(this.state),
            "POSTGRES": database,
            "REDIS": f"redis://{this.addresses['redis']}:6379",
            "ISSUER": f"http://{this.addresses['oidc.localhost']}:9400",
        }
    )
    done = await trio.run_process(
        ["sh", str(folder / "init.sh")],
        env={**os.environ, **environment},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    if done.returncode:
        raise StartFailure(f"init.sh: {(done.stdout + done.stderr).decode()[-600:]}")


async def start_nginx(this: Installation) -> None:
    nginx = program("nginx", "nginx-light", STREAM_MODULE, "libnginx-mod-stream")
    text = this.local((FILES / "nginx.conf").read_text("utf-8"))
    for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text = text.replace("http {", f"http {{\n    {name}_temp_path {this.folder}/{name};", 1)
    head = f"daemon off; pid {this.folder}/nginx.pid; load_module {STREAM_MODULE};\n"
    file = this.folder / "nginx.conf"
    file.write_text(head + text)
    this.run("nginx", [nginx, "-e", "stderr", "-p", str(this.folder), "-c", str(file)])
    await this.listens(HOST, this.ports[8000])


async def start_prometheus(this: Installation) -> None:
    """Prometheus where it is installed; nothing else needs it."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        return
    file = this.folder / "prometheus.yml"
    file.write_text(this.local((FILES / "prometheus.yml").read_text("utf-8")))
    alerts = ROOT / "docs" / "monitoring" / "alerts.yml"
    shutil.copy(alerts, this.folder / "tunnelmux-alerts.yml")
    address = this.addresses["prometheus"]
    places = [f"--config.file={file}", f"--storage.tsdb.path={this.folder}/prometheus"]
    this.run("prometheus", [prometheus, *places, f"--web.listen-address={address}:9090"])
    await this.listens(address, 9090)


def program(name: str, package: str, module: Path | None = None, more: str = "") -> str:
    """Where a program is, if its module is there too. Raises StartFailure."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None or (module is not None and not module.exists()):
        missing = f"{name} with {module.name}" if module is not None else name
        raise StartFailure(f"there is no {missing}: apt-get install {package} {more}".rstrip())
    return found
