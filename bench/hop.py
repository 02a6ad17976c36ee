"""The column of hops: what a request costs whose visitor came to the node without the device.

Two nodes of a cluster, one device at the first of them. It is asked at the first, then at the
second; counted is the processor time of both nodes and the agent.
"""

from __future__ import annotations

import shutil
import statistics

from bench.columns import Sample
from bench.fleet import device_name, device_token
from bench.load import run_wrk
from bench.origin import SMALL, Origin
from bench.peers.ours import HTTP_INGRESS, ONE_ADDRESS, SERVICE, start_daemon
from bench.peers.tunnel import Unavailable
from bench.processes import HOST, Started, cpu_seconds, free_ports
from bench.rounds import scratch_folder
from bench.workers import KINDS

SECONDS = 3.0
PAIRS = 3
"""Without a hop and with one, one after the other: what else the machine does hits both."""

REDIS = "redis-server"


def measure_hop(origin: Origin) -> Sample:
    """Milliseconds of processor time for a request, and how many times that of none a hop takes."""
    if shutil.which(REDIS) is None:
        raise Unavailable(f"needs {REDIS}")
    found: dict[str, list[float]] = {}
    with scratch_folder() as folder, Started(folder) as started:
        near, far, processes = start_nodes(started, origin)
        for url in (near, far):
            ask(url, (), 1)  # the way is known then
        for _ in range(PAIRS):
            for kind, fields in KINDS.items():
                none, one = (cost_of(url, fields, processes) for url in (near, far))
                found.setdefault(f"{kind}_ms_no_hop", []).append(none)
                found.setdefault(f"{kind}_ms_one_hop", []).append(one)
                found.setdefault(f"{kind}_one_vs_none", []).append(one / none)
        started.check()
    return {what: statistics.median(values) for what, values in found.items()}


def start_nodes(started: Started, origin: Origin) -> tuple[str, str, list[int]]:
    """Where visitors come without a hop and with one, and the processes of nodes and agent."""
    redis, tunnel, *ports = free_ports(7)
    started.start(
        "redis", [REDIS, "--port", str(redis), "--bind", HOST, "--save", "", "--appendonly", "no"]
    )
    started.wait_for_port(redis)
    processes, urls = [], []
    name, token = device_name(0), device_token(0)
    for number, node in enumerate(("a", "b")):
        http, hops = ports[2 * number : 2 * number + 2]
        listen = tunnel if node == "a" else ports[4]
        proxy = f'[tunnel]\nlisten = "{HOST}:{listen}"\n'
        proxy += HTTP_INGRESS.format(host=HOST, port=http)
        proxy += f'[cluster]\nredis = "redis://{HOST}:{redis}"\nnode = "{node}"\n'
        proxy += f'listen = "{HOST}:{hops}"\n{ONE_ADDRESS}'
        proxy += f'[[devices]]\nname = "{name}"\ntoken = "{token}"\n'
        processes.append(start_daemon(started, "proxy", proxy, f"proxy-{node}"))
        started.wait_for_port(http)
        urls.append(f"http://{HOST}:{http}")
    agent = f'[proxy]\nurl = "ws://{HOST}:{tunnel}/tunnel/connect"\n'
    agent += f'token = "{token}"\n[device]\nname = "{name}"\n'
    agent += SERVICE.format(name="pages", target=f"http://{HOST}:{origin.http}")
    processes.append(start_daemon(started, "agent", agent, "agent"))
    started.wait_for_log("agent", "session started")
    started.wait_for_log("proxy-b", "node joined")
    return urls[0], urls[1], processes


def cost_of(url: str, fields: tuple[str, ...], processes: list[int]) -> float:
    """Milliseconds of processor time for a request there."""
    before = cpu_seconds(processes)
    count = ask(url, fields, SECONDS)
    return (cpu_seconds(processes) - before) / count * 1000


def ask(url: str, fields: tuple[str, ...], seconds: float) -> int:
    """Ask the device for so long; the number of answers."""
    return run_wrk(url, SMALL, seconds, [f"Host: {device_name(0)}.localhost", *fields]).requests
