"""The column of idle agents: resident memory of a proxy that holds thousands of them."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tunnelmux
from bench.columns import Sample
from bench.fleet import device_name, device_token
from bench.peers.ours import start_daemon
from bench.peers.tunnel import Unavailable
from bench.processes import HOST, Started, StartFailure, free_ports, resident_kib
from bench.rounds import scratch_folder
from bench.tree import ROOT

PER_PROCESS = 2500
SPARE_FILES = 200
SETTLE = 3.0
CONNECT_TIMEOUT = 300.0

# Thousands of pings a second would take the processor from those that still connect.
QUIET = """\
[limits]
keepalive_interval = 300.0
session_expiry = 600.0
"""


def measure_agents(counts: Sequence[int]) -> Sample:
    """KiB of proxy memory for each idle agent, at each of *counts*, over plain WebSockets."""
    allow_files(max(counts) + SPARE_FILES)
    with scratch_folder() as folder, Started(folder) as started:
        (port,) = free_ports(1)
        lines = [f'[tunnel]\nlisten = "{HOST}:{port}"']
        for number in range(max(counts)):
            name, token = device_name(number), device_token(number)
            lines.append(f'[[devices]]\nname = "{name}"\ntoken = "{token}"')
        proxy = start_daemon(started, "proxy", "\n".join([*lines, QUIET]))
        started.wait_for_port(port)
        time.sleep(SETTLE)
        empty = resident_kib([proxy])
        sample = {"proxy_empty_mib": empty / 1024}
        up = 0
        for count in sorted(counts):
            began = time.monotonic()
            connect(started, f"ws://{HOST}:{port}/tunnel/connect", up, count)
            sample[f"connected_per_s_to_{count}"] = (count - up) / (time.monotonic() - began)
            up = count
            time.sleep(SETTLE)
            require_connected(proxy, count)
            sample[f"kib_per_agent_at_{count}"] = (resident_kib([proxy]) - empty) / count
        started.check()
    return sample


def allow_files(count: int) -> None:
    """Raise this process's limit of open files, which children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Unavailable(f"{count} open files are needed and {hard} allowed: ulimit -Hn {count}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def require_connected(proxy: int, count: int) -> None:
    """Each session is an open file of the proxy; a figure for fewer than *count* would be wrong."""
    files = len(list(Path(f"/proc/{proxy}/fd").iterdir()))
    if files < count:
        raise StartFailure(f"of {count} agents at most {files} are still connected")


def connect(started: Started, url: str, first: int, last: int) -> None:
    """Start processes that hold the agents from *first* to before *last*; wait for all."""
    source = Path(tunnelmux.__file__).parents[1]
    environment = {"PYTHONPATH": f"{ROOT}:{source}"}
    names = []
    parts = math.ceil((last - first) / PER_PROCESS)
    for part in range(parts):
        start = first + part * PER_PROCESS
        count = min(PER_PROCESS, last - start)
        name = f"fleet-{start}"
        command = [sys.executable, "-m", "bench.fleet", url, str(start), str(count)]
        started.start(name, command, environment)
        names.append(name)
    for name in names:
        started.wait_for_log(name, "connected\n", CONNECT_TIMEOUT)
