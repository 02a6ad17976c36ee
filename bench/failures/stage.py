"""An installation to break: Redis, proxies, devices behind a load balancer, and visitors."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

import tunnelmux
from bench.failures.visitors import Crowd
from bench.fleet import device_name, device_token
from bench.peers.ours import start_daemon
from bench.processes import HOST, Started, StartFailure, can_connect, free_ports, read_all_stats
from bench.tree import ROOT
from tunnelmux.relay import abort, relay

DEVICES = 20
CONNECTED_WITHIN = 60.0
REDIS_PROGRAM = "redis-server"

PROXY = """\
[tunnel]
listen = "{host}:{tunnel}"
[ingress.http]
listen = "{host}:{http}"
[internal]
listen = "{host}:{internal}"
[limits]
max_streams_per_visitor = 1024
reserved_streams = 16
"""

CLUSTER = """\
[cluster]
redis = "redis://{host}:{redis}"
listen = "{host}:{hop}"
node = "{name}"
"""


@dataclass
class Proxy:
    """One proxy of the installation."""

    name: str
    configuration: str
    tunnel: int
    http: int
    internal: int
    pid: int = 0


@dataclass
class Stage:
    """What a failure acts on."""

    started: Started
    proxies: dict[str, Proxy]
    redis_port: int = 0
    redis_pid: int = 0
    starts: int = 0
    crowd: Crowd = field(default_factory=lambda: Crowd([], []))

    # -- acting -------------------------------------------------------------------------------

    def signal(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    def kill(self, name: str) -> None:
        """End one proxy as a crash would: nothing of it can say goodbye."""
        self.signal(self.proxies[name].pid, signal.SIGKILL)

    async def start_proxy(self, name: str) -> None:
        """Start a proxy, or start it again; returns when it listens."""
        proxy = self.proxies[name]
        self.starts += 1
        proxy.pid = start_daemon(
            self.started, "proxy", proxy.configuration, f"{name}-{self.starts}"
        )
        await listening(proxy.tunnel)

    async def start_redis(self) -> None:
        """Start Redis, which keeps nothing on disk."""
        self.starts += 1
        fixed = ["--bind", HOST, "--port", str(self.redis_port), "--save", "", "--appendonly", "no"]
        program = shutil.which(REDIS_PROGRAM)
        if program is None:
            raise StartFailure("there is no redis-server: apt-get install redis-server")
        self.redis_pid = self.started.start(f"redis-{self.starts}", [program, *fixed])
        await listening(self.redis_port)

    def workers(self, name: str) -> list[int]:
        """The processes of a proxy's workers, the oldest first."""
        stats = read_all_stats()
        parent = self.proxies[name].pid
        found = [(stat.began, pid) for pid, stat in stats.items() if stat.parent == parent]
        return [pid for _began, pid in sorted(found)]


async def listening(port: int) -> None:
    """Return when something listens on this port."""
    with trio.fail_after(30):
        while not can_connect(port):  # noqa: ASYNC110  no event says so
            await trio.sleep(0.02)


@asynccontextmanager
async def stage(folder: Path, *, nodes: int, workers: int) -> AsyncIterator[Stage]:
    """So many proxies, each of so many workers, with DEVICES devices that answer and visitors who
    have begun to ask."""
    with Started(folder) as started:
        this = Stage(started, {})
        if nodes > 1:
            (this.redis_port,) = free_ports(1)
            await this.start_redis()
        for number in range(nodes):
            name = "abc"[number]
            this.proxies[name] = describe_proxy(name, this.redis_port, workers)
            await this.start_proxy(name)
        async with trio.open_nursery() as nursery:
            ports = [proxy.tunnel for proxy in this.proxies.values()]
            balancer = await nursery.start(run_balancer, ports)
            url = f"ws://{HOST}:{balancer}/tunnel/connect"
            source = Path(tunnelmux.__file__).parents[1]
            started.start(
                "devices",
                [sys.executable, "-m", "bench.failures.devices", url, str(DEVICES)],
                {"PYTHONPATH": f"{ROOT}:{source}"},
            )
            names = [device_name(number) for number in range(DEVICES)]
            this.crowd = Crowd(names, [proxy.http for proxy in this.proxies.values()])
            nursery.start_soon(this.crowd.run)
            await all_answer(this.crowd)
            yield this
            nursery.cancel_scope.cancel()


def describe_proxy(name: str, redis: int, workers: int) -> Proxy:
    tunnel, http, hop, internal = free_ports(4)
    text = PROXY.format(host=HOST, tunnel=tunnel, http=http, internal=internal)
    if redis:
        text += CLUSTER.format(host=HOST, redis=redis, hop=hop, name=name)
    if workers > 1:
        text = f"[proxy]\nworkers = {workers}\n{text}"
    for number in range(DEVICES):
        token = device_token(number)
        text += f'[[devices]]\nname = "{device_name(number)}"\ntoken = "{token}"\n'
    return Proxy(name, text, tunnel, http, internal)


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
    ports: list[int], task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """What devices dial: it leads to each proxy in turn, and to the next one where one is not
    there."""
    turn = 0

    async def lead(stream: trio.SocketStream) -> None:
        nonlocal turn
        for _ in ports:
            turn += 1
            try:
                onward = await trio.open_tcp_stream(HOST, ports[turn % len(ports)])
            except OSError:
                continue
            await relay(stream, onward)
            return
        await abort(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, lead, 0, host=HOST))
        task_status.started(listener.socket.getsockname()[1])
        await trio.sleep_forever()
