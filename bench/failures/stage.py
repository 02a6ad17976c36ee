"""An installation to break: Redis, proxies, devices behind a load balancer, and visitors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import trio

import tunnelmux
from bench.failures.network import Network, own_network
from bench.failures.registry import Database, fill, socket_folder, start_api
from bench.failures.visitors import Crowd, Door
from bench.fleet import device_name, device_token
from bench.peers.ours import start_daemon
from bench.processes import HOST, Started, StartFailure, free_ports, read_all_stats
from bench.tree import ROOT
from tunnelmux.relay import abort, relay

DEVICES = 20
CONNECTED_WITHIN = 120.0
REDIS_PROGRAM = "redis-server"

Needs = Literal["", "network", "registry", "clocks"]

PROXY = """\
[tunnel]
listen = "{host}:{tunnel}"
[ingress.http]
listen = "{host}:{http}"
[internal]
listen = "127.0.0.1:{internal}"
[limits]
max_streams_per_visitor = 1024
reserved_streams = 16
[access]
let_in = ["public"]
"""

CLUSTER = """\
[cluster]
redis = "redis://{redis}"
listen = "{host}:{hop}"
node = "{name}"
agent_url = "ws://{host}:{tunnel}/tunnel/connect"
"""

REGISTRY = """\
[registry]
url = "{url}"
name = "{name}"
"""

OPEN = """\
[[access.rules]]
device = "{device}"
let_in = ["public"]
"""


@dataclass
class Proxy:
    """One proxy of the installation."""

    name: str
    configuration: str
    host: str
    tunnel: int
    http: int
    internal: int
    pid: int = 0


@dataclass
class Stage:
    """What a failure acts on."""

    started: Started
    proxies: dict[str, Proxy] = field(default_factory=dict)
    redis_host: str = HOST
    redis_port: int = 0
    redis_pid: int = 0
    api_port: int = 0
    api_pid: int = 0
    starts: int = 0
    crowd: Crowd = field(default_factory=lambda: Crowd([], []))
    network: Network | None = None
    database: Database | None = None
    has_clocks: bool = False
    notes: list[str] = field(default_factory=list)
    """What a failure has to add to its figures."""
    _followers: list[int] = field(default_factory=list)

    # -- acting -------------------------------------------------------------------------------

    def signal(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    def kill(self, name: str) -> None:
        """End one proxy as a crash would: nothing of it can say goodbye."""
        self.signal(self.proxies[name].pid, signal.SIGKILL)

    async def stop(self, name: str) -> None:
        """End one proxy in order; returns when it is over."""
        pid = self.proxies[name].pid
        self.signal(pid, signal.SIGTERM)
        with trio.fail_after(30):
            while not self.started.has_ended(pid):  # noqa: ASYNC110  no event says so
                await trio.sleep(0.05)

    async def freeze(self, pid: int, seconds: float) -> None:
        """Have a process do nothing for that long, or until its parent ends it."""
        self.signal(pid, signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                self.signal(pid, signal.SIGCONT)

    async def upgrade(self, name: str) -> None:
        """Have a proxy make way for its program anew; returns when that serves."""
        proxy = self.proxies[name]
        launcher = ROOT / "cmd" / "tunnelmux-proxy"
        source = Path(tunnelmux.__file__).parents[1]
        done = await trio.run_process(
            [sys.executable, str(launcher), "upgrade", str(proxy.pid)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        if done.returncode:
            raise StartFailure(f"upgrade of {name}: {done.stderr.decode().strip()}")
        proxy.pid = int(done.stdout)
        self._followers.append(proxy.pid)

    def set_clock(self, name: str, seconds: int) -> None:
        """Have the clock of a proxy go that much ahead of the real one."""
        file = self.started.folder / f"clock-{name}"
        fresh = file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.rename(file)

    # -- starting -----------------------------------------------------------------------------

    async def start_proxy(self, name: str) -> None:
        """Start a proxy, or start it again; returns when it listens."""
        proxy = self.proxies[name]
        self.starts += 1
        proxy.pid = start_daemon(
            self.started,
            "proxy",
            proxy.configuration,
            f"{name}-{self.starts}",
            within=self.network.within(name) if self.network is not None else (),
            environment=self._clock_of(name),
        )
        await listening(proxy.host, proxy.tunnel)

    async def start_redis(self) -> None:
        """Start Redis, which keeps nothing on disk."""
        self.starts += 1
        program = shutil.which(REDIS_PROGRAM)
        if program is None:
            raise StartFailure("there is no redis-server: apt-get install redis-server")
        fixed = ["--bind", self.redis_host, "--port", str(self.redis_port), "--save", ""]
        fixed += ["--appendonly", "no", "--protected-mode", "no"]
        within = self.network.within("redis") if self.network is not None else []
        name = f"redis-{self.starts}"
        self.redis_pid = self.started.start(name, [*within, program, *fixed])
        await listening(self.redis_host, self.redis_port)

    async def start_api(self) -> None:
        """Start tunnelmux-api; returns when it listens."""
        assert self.database is not None
        self.starts += 1
        called = f"api-{self.starts}"
        self.api_pid = start_api(self.started, self.database.url, self.api_port, called)
        await listening(HOST, self.api_port)

    def _clock_of(self, name: str) -> dict[str, str]:
        """What makes a program read its clock from a file (faketime(1)): Linux has no namespace for
        the time of day. Its monotonic clock stays the system's."""
        if not self.has_clocks:
            return {}
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            raise StartFailure("there is no libfaketime: apt-get install faketime")
        self.set_clock(name, 0)
        return {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.started.folder / f"clock-{name}"),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    # -- looking ------------------------------------------------------------------------------

    def workers(self, name: str) -> list[int]:
        """The processes of a proxy's workers, the oldest first."""
        stats = read_all_stats()
        parent = self.proxies[name].pid
        found = [(stat.began, pid) for pid, stat in stats.items() if stat.parent == parent]
        return [pid for _began, pid in sorted(found)]

    def noticed(self, events: Sequence[str], since: datetime) -> float | None:
        """Seconds from then until the first of these log lines of a proxy, if there is one."""
        found = []
        for file in self.started.folder.glob("?-*.log"):
            for line in file.read_text("utf-8", "replace").splitlines():
                if not any(event in line for event in events):
                    continue
                with suppress(ValueError, KeyError, TypeError):
                    said = json.loads(line)
                    at = datetime.fromisoformat(said["timestamp"])
                    if said["event"] in events and at >= since:
                        found.append((at - since).total_seconds())
        return min(found, default=None)

    def end_followers(self) -> None:
        """End what upgrades started: it is no child of this process."""
        for pid in self._followers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def listening(host: str, port: int) -> None:
    """Return when something listens there."""
    with trio.fail_after(60):
        while True:  # until it listens
            try:
                stream = await trio.open_tcp_stream(host, port)
            except OSError:
                await trio.sleep(0.02)
            else:
                await trio.aclose_forcefully(stream)
                return


@asynccontextmanager
async def stage(
    folder: Path, *, nodes: int, workers: int, needs: Needs = ""
) -> AsyncIterator[Stage]:
    """So many proxies, each of so many workers, with DEVICES devices that answer and visitors who
    have begun to ask."""
    with ExitStack() as stack:
        network = stack.enter_context(own_network()) if needs == "network" else None
        database_folder = stack.enter_context(socket_folder()) if needs == "registry" else None
        started = stack.enter_context(Started(folder))
        this = Stage(started, network=network, has_clocks=needs == "clocks")
        stack.callback(this.end_followers)
        names = [device_name(number) for number in range(DEVICES)]
        tokens = [device_token(number) for number in range(DEVICES)]
        if database_folder is not None:
            this.database = Database(started, database_folder)
            await this.database.start()
            tokens = await fill(this.database.url, names)
            (this.api_port,) = free_ports(1)
            await this.start_api()
        if nodes > 1:
            this.redis_host = network.add("redis") if network is not None else HOST
            (this.redis_port,) = free_ports(1)
            await this.start_redis()
        for number in range(nodes):
            describe_proxy(this, "abc"[number], workers, tokens)
            await this.start_proxy("abc"[number])
        async with trio.open_nursery() as nursery:
            balancer = await nursery.start(run_balancer, list(this.proxies.values()))
            start_devices(started, balancer, tokens)
            doors = [Door(proxy.name, proxy.host, proxy.http) for proxy in this.proxies.values()]
            this.crowd = Crowd(names, doors)
            nursery.start_soon(this.crowd.run)
            await all_answer(this.crowd)
            yield this
            nursery.cancel_scope.cancel()


def start_devices(started: Started, balancer: int, tokens: Sequence[str]) -> None:
    file = started.folder / "tokens"
    file.touch(mode=0o600)
    file.write_text("\n".join(tokens))
    url = f"ws://{HOST}:{balancer}/tunnel/connect"
    source = Path(tunnelmux.__file__).parents[1]
    started.start(
        "devices",
        [sys.executable, "-m", "bench.failures.devices", url, str(file)],
        {"PYTHONPATH": f"{ROOT}:{source}"},
    )


def describe_proxy(this: Stage, name: str, workers: int, tokens: Sequence[str]) -> None:
    host = this.network.add(name) if this.network is not None else HOST
    tunnel, http, hop, internal = free_ports(4)
    text = PROXY.format(host=host, tunnel=tunnel, http=http, internal=internal)
    if this.redis_port:
        redis = f"{this.redis_host}:{this.redis_port}"
        text += CLUSTER.format(host=host, redis=redis, hop=hop, name=name, tunnel=tunnel)
    if workers > 1:
        text = f"[proxy]\nworkers = {workers}\n{text}"
    if this.database is not None:
        text += REGISTRY.format(url=this.database.url, name=name)
        text += "".join(OPEN.format(device=device_name(x)) for x in range(DEVICES))
    else:
        for number, token in enumerate(tokens):
            text += f'[[devices]]\nname = "{device_name(number)}"\ntoken = "{token}"\n'
    this.proxies[name] = Proxy(name, text, host, tunnel, http, internal)


async def all_answer(crowd: Crowd) -> None:
    """Return when all requests of the last three seconds were answered, of each device one."""
    with trio.fail_after(CONNECTED_WITHIN):
        while True:
            await trio.sleep(1.0)
            since = trio.current_time() - 3.0
            late = [request for request in crowd.requests if request.ended >= since]
            if {x.device for x in late} == {*crowd.devices} and not any(x.problem for x in late):
                return


async def run_balancer(
    proxies: Sequence[Proxy], task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """What devices dial: it leads to each proxy in turn, and to the next one where one is not
    there."""
    turn = 0

    async def lead(stream: trio.SocketStream) -> None:
        nonlocal turn
        turn += 1
        first = turn
        for number in range(len(proxies)):
            proxy = proxies[(first + number) % len(proxies)]
            onward = None
            with suppress(OSError), trio.move_on_after(1):
                onward = await trio.open_tcp_stream(proxy.host, proxy.tunnel)
            if onward is not None:
                await relay(stream, onward)
                return
        await abort(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, lead, 0, host=HOST))
        task_status.started(listener.socket.getsockname()[1])
        await trio.sleep_forever()
