"""The column of a fleet that comes back at once, and of one agent that starts."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import tunnelmux
from bench.agents import QUIET, SPARE_FILES, allow_files, require_connected
from bench.columns import Sample
from bench.fleet import device_name, device_token
from bench.peers.ours import SERVICE, make_certificate, start_daemon
from bench.processes import HOST, Started, cpu_seconds, free_ports, resident_kib
from bench.rounds import scratch_folder
from bench.tree import ROOT

AGENTS = 2000
FEW, MANY = 100, 10_000
"""Devices that the proxy knows, beside those that come."""

PAIRS = 5
"""A single pair is off by up to 14 % either way, of a ratio that is about 1."""

CONNECT_TIMEOUT = 120.0
STARTS = 5
SETTLE = 1.0


def measure_returning() -> Sample:
    """Agents a second on one processor, as AGENTS for each second of the proxy's processor time:
    what the cheap client takes of the machine is not in it. Then the start of one agent."""
    sample = {
        "agents_per_second_ws": agents_per_second(AGENTS, secure=False),
        "agents_per_second_wss": agents_per_second(AGENTS, secure=True),
    }
    sample["rate_10000_known_vs_100"] = statistics.median(many_vs_few() for _ in range(PAIRS))
    return sample | measure_start()


def many_vs_few() -> float:
    """How much of its rate the proxy keeps with MANY more known devices; both one after another."""
    few = agents_per_second(FEW, secure=False)
    return agents_per_second(FEW, secure=False, known=MANY) / few


def agents_per_second(count: int, *, secure: bool, known: int = 0) -> float:
    """How many the proxy would admit on one processor, knowing *known* more that stay away."""
    allow_files(count + SPARE_FILES)
    with scratch_folder() as folder, Started(folder) as started:
        (port,) = free_ports(1)
        lines = [f'[tunnel]\nlisten = "{HOST}:{port}"']
        certificate = "-"
        if secure:
            pem, key, _pin = make_certificate(folder, "tunnel")
            certificate = str(pem)
            lines.append(f'tls_certificate = "{pem}"\ntls_key = "{key}"')
        for number in range(count + known):
            name, token = device_name(number), device_token(number)
            lines.append(f'[[devices]]\nname = "{name}"\ntoken = "{token}"')
        proxy = start_daemon(started, "proxy", "\n".join([*lines, QUIET]))
        started.wait_for_port(port)
        time.sleep(SETTLE)
        # With few agents, several times: the kernel counts processor time by the hundredth.
        rounds = max(1, AGENTS // 2 // count)
        before = cpu_seconds([proxy])
        for number in range(rounds):
            dial(started, f"fleet-{number}", port, certificate, count)
        used = cpu_seconds([proxy]) - before
        require_connected(proxy, count)
        started.check()
    return rounds * count / used


def dial(started: Started, name: str, port: int, certificate: str, count: int) -> None:
    """Have *count* agents connect, in place of those of an earlier call."""
    source = Path(tunnelmux.__file__).parents[1]
    environment = {"PYTHONPATH": f"{ROOT}:{source}"}
    command = [sys.executable, "-m", "bench.reconnect", HOST, str(port), certificate]
    started.start(name, [*command, "0", str(count)], environment)
    started.wait_for_log(name, "connected\n", CONNECT_TIMEOUT)


def measure_start() -> Sample:
    """Seconds from the start of an agent to its session, and its memory then."""
    seconds, resident = [], []
    device = f'[[devices]]\nname = "device0"\ntoken = "{device_token(0)}"'
    with scratch_folder() as folder:
        for _ in range(STARTS):
            took, kib = start_once(folder, device)
            seconds.append(took)
            resident.append(kib / 1024)
    return {
        "agent_connect_s": statistics.median(seconds),
        "agent_idle_mib": statistics.median(resident),
    }


def start_once(folder: Path, device: str) -> tuple[float, int]:
    with Started(folder) as started:
        (port,) = free_ports(1)
        start_daemon(started, "proxy", f'[tunnel]\nlisten = "{HOST}:{port}"\n{device}')
        started.wait_for_port(port)
        agent = f'[proxy]\nurl = "ws://{HOST}:{port}/tunnel/connect"\ntoken = "{device_token(0)}"\n'
        agent += '[device]\nname = "device0"\n'
        agent += SERVICE.format(name="web", target=f"http://{HOST}:1")
        began = time.perf_counter()
        process = start_daemon(started, "agent", agent)
        started.wait_for_log("agent", "session started")
        took = time.perf_counter() - began
        time.sleep(SETTLE)
        return took, resident_kib([process])
