"""The column of workers: what a request costs with two of them, beside one process.

Two devices, one at each worker, are asked alike, so that half of the visitors come to the worker
that does not have their device.
"""

from __future__ import annotations

import statistics
import threading

from bench.columns import Sample
from bench.fleet import device_name, device_token
from bench.load import Load, run_wrk
from bench.origin import SMALL, Origin
from bench.peers.ours import HTTP_INGRESS, ONE_ADDRESS, SERVICE, start_daemon
from bench.processes import HOST, Started, cpu_seconds, free_ports
from bench.rounds import scratch_folder

DEVICES = 2
SECONDS = 3.0
PAIRS = 3
"""One process and two workers, one after another: what else the machine does hits both."""

KINDS = {"kept": (), "new": ("Connection: close",)}
"""Connections that are kept, and a new one for each request."""


def measure_workers(origin: Origin) -> Sample:
    """Milliseconds of processor time for a request, of all processes of proxy and agents, and how
    many times that of one process two workers take; also how many times the requests they answer,
    which says something where load, origin and agents leave them cores."""
    found: dict[str, list[float]] = {}
    for _ in range(PAIRS):
        one, two = cost_of(1, origin), cost_of(2, origin)
        for kind in KINDS:
            found.setdefault(f"{kind}_ms_one", []).append(one[kind])
            found.setdefault(f"{kind}_ms_two", []).append(two[kind])
            found.setdefault(f"{kind}_two_vs_one", []).append(two[kind] / one[kind])
            rates = two[f"{kind}_rate"] / one[f"{kind}_rate"]
            found.setdefault(f"{kind}_rate_two_vs_one", []).append(rates)
    return {what: statistics.median(values) for what, values in found.items()}


def cost_of(workers: int, origin: Origin) -> dict[str, float]:
    """Milliseconds for a request, by kind of connection, and requests a second."""
    with scratch_folder() as folder, Started(folder) as started:
        tunnel, http = free_ports(2)
        proxy = f'[tunnel]\nlisten = "{HOST}:{tunnel}"\n'
        proxy += HTTP_INGRESS.format(host=HOST, port=http)
        proxy += f"[proxy]\nworkers = {workers}\n{ONE_ADDRESS}"
        for number in range(DEVICES):
            name, token = device_name(number), device_token(number)
            proxy += f'[[devices]]\nname = "{name}"\ntoken = "{token}"\n'
        processes = [start_daemon(started, "proxy", proxy)]
        started.wait_for_port(tunnel)
        for number in range(DEVICES):
            agent = f'[proxy]\nurl = "ws://{HOST}:{tunnel}/tunnel/connect"\n'
            agent += f'token = "{device_token(number)}"\n[device]\nname = "{device_name(number)}"\n'
            agent += SERVICE.format(name="pages", target=f"http://{HOST}:{origin.http}")
            processes.append(start_daemon(started, "agent", agent, f"agent-{number}"))
            started.wait_for_log(f"agent-{number}", "session started")
        url = f"http://{HOST}:{http}"
        ask_all(url, (), 1)  # all ways are known then
        costs = {}
        for kind, fields in KINDS.items():
            before = cpu_seconds(processes)
            count = ask_all(url, fields, SECONDS)
            costs[kind] = (cpu_seconds(processes) - before) / count * 1000
            costs[f"{kind}_rate"] = count / SECONDS
        started.check()
        return costs


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
