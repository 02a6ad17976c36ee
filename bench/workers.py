"""The column of workers: what a request costs with two of them, beside one process.

Two devices, one at each worker, are asked alike, so that half of the visitors come to the worker
that does not have their device.

Whether two workers answer twice as much cannot be seen where load, origin and agents share their
cores. The processor time of the busiest process of the proxy tells what they could: with a core of
its own, it is the one that is full first.
"""

from __future__ import annotations

import json
import statistics
import threading

from bench.columns import Sample
from bench.fleet import device_name, device_token
from bench.load import Load, run_wrk
from bench.origin import SMALL, Origin
from bench.peers.ours import HTTP_INGRESS, ONE_ADDRESS, SERVICE, start_daemon
from bench.processes import (
    HOST,
    Started,
    cpu_seconds,
    descendants,
    free_ports,
    read_all_stats,
)
from bench.rounds import scratch_folder

DEVICES = 2
SECONDS = 3.0
PAIRS = 3
"""One process and two workers, one after another: what else the machine does hits both."""

KINDS = {"kept": (), "new": ("Connection: close",)}
"""Connections that are kept, and a new one for each request."""


def measure_workers(origin: Origin) -> Sample:
    """Milliseconds of processor time for a request, of all processes of proxy and agents, and how
    many times that of one process two workers take. Also how many times the requests they answer
    (`rate`), which says something where load, origin and agents leave them cores, and how many
    times they could with a core for each (`could`)."""
    found: dict[str, list[float]] = {}
    for _ in range(PAIRS):
        one, two = cost_of(1, origin), cost_of(2, origin)
        for kind in KINDS:
            found.setdefault(f"{kind}_ms_one", []).append(one[kind])
            found.setdefault(f"{kind}_ms_two", []).append(two[kind])
            found.setdefault(f"{kind}_two_vs_one", []).append(two[kind] / one[kind])
            for what in ("rate", "could"):
                times = two[f"{kind}_{what}"] / one[f"{kind}_{what}"]
                found.setdefault(f"{kind}_{what}_two_vs_one", []).append(times)
    return {what: statistics.median(values) for what, values in found.items()}


def cost_of(workers: int, origin: Origin) -> dict[str, float]:
    """Milliseconds for a request, by kind of connection; requests a second, and how many a second
    of the busiest process of the proxy is enough for."""
    with scratch_folder() as folder, Started(folder) as started:
        tunnel, http = free_ports(2)
        proxy = f'[tunnel]\nlisten = "{HOST}:{tunnel}"\n'
        proxy += HTTP_INGRESS.format(host=HOST, port=http)
        proxy += f"[proxy]\nworkers = {workers}\n{ONE_ADDRESS}"
        for number in range(DEVICES):
            name, token = device_name(number), device_token(number)
            proxy += f'[[devices]]\nname = "{name}"\ntoken = "{token}"\n'
        processes = [start_daemon(started, "proxy", proxy)]
        # Not by a connection to its port: a worker would get that in the place of an agent.
        started.wait_for_log("proxy", "workers started" if workers > 1 else "tunnel.listen")
        for number in range(DEVICES):
            agent = f'[proxy]\nurl = "ws://{HOST}:{tunnel}/tunnel/connect"\n'
            agent += f'token = "{device_token(number)}"\n[device]\nname = "{device_name(number)}"\n'
            agent += SERVICE.format(name="pages", target=f"http://{HOST}:{origin.http}")
            processes.append(start_daemon(started, "agent", agent, f"agent-{number}"))
            started.wait_for_log(f"agent-{number}", "session started")
        started.wait_until(
            "a device at each worker",
            lambda: len(homes_of_devices(started.log("proxy"))) == workers,
        )
        url = f"http://{HOST}:{http}"
        ask_all(url, (), 1)  # all ways are known then
        costs = {}
        for kind, fields in KINDS.items():
            before, before_each = cpu_seconds(processes), seconds_of_each(processes[0])
            count = ask_all(url, fields, SECONDS)
            costs[kind] = (cpu_seconds(processes) - before) / count * 1000
            costs[f"{kind}_rate"] = count / SECONDS
            each = seconds_of_each(processes[0])
            costs[f"{kind}_could"] = count / max(each[pid] - before_each[pid] for pid in each)
        started.check()
        return costs


def homes_of_devices(log: str) -> set[str]:
    """The workers at which sessions began; one process is an empty name."""
    lines = [json.loads(line) for line in log.splitlines() if '"session started"' in line]
    return {line.get("worker", "") for line in lines}


def seconds_of_each(proxy: int) -> dict[int, float]:
    """Processor time of the proxy's processes, by their ids."""
    stats = read_all_stats()
    family = descendants([proxy], {pid: stat.parent for pid, stat in stats.items()})
    return {pid: stats[pid].seconds for pid in family if pid in stats}


def ask_all(url: str, fields: tuple[str, ...], seconds: float) -> int:
    """Ask both devices at the same time; the number of answers."""
    loads: list[Load] = []
    failures: list[Exception] = []

    def ask(number: int) -> None:
        host = f"Host: {device_name(number)}.localhost"
        try:
            loads.append(run_wrk(url, SMALL, seconds, [host, *fields]))
        except Exception as exc:  # noqa: BLE001  raised below, in the thread of who measures
            failures.append(exc)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(DEVICES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(load.requests for load in loads)
