"""What is measured of each tunnel, in the order in which it is: a function per column."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.echo import round_trips
from bench.load import connections_held, download, downloading, run_wrk
from bench.medians import quantile
from bench.origin import LARGE, SMALL
from bench.peers.tunnel import Peer, Running
from bench.processes import HOST, cpu_seconds, resident_kib
from bench.websocket import echoes

Sample = dict[str, float]

OPEN_CONNECTIONS = 1000
WEBSOCKETS = 100
DECLINED = ("TE: trailers", "Connection: keep-alive, TE")
"""What a client says that could take trailers; h11 sees to fields of one hop, not the pump."""
SETTLE = 0.5
"""Seconds for a tunnel to finish what a load left behind."""


@dataclass(frozen=True)
class Column:
    name: str
    what: str
    measure: Callable[[Running, float], Sample]
    applies: Callable[[Peer, Running], bool]
    share: float = 1.0
    """Of the seconds that were asked for."""
    fresh: bool = False
    """It needs a tunnel that has carried nothing, and leaves one that others should not have."""


def measure_memory(tunnel: Running, _seconds: float) -> Sample:
    """Of a fresh tunnel: idle, and what 1,000 open connections add, each end for itself."""
    with connections_held(tunnel.http, tunnel.headers, 1):
        pass
    time.sleep(SETTLE)
    ends = {"server": tunnel.server, "client": tunnel.client}
    idle = {end: resident_kib([pid]) for end, pid in ends.items() if pid is not None}
    with connections_held(tunnel.http, tunnel.headers, OPEN_CONNECTIONS):
        time.sleep(SETTLE)
        full = {end: resident_kib([pid]) for end, pid in ends.items() if pid is not None}
    time.sleep(SETTLE)
    sample = {f"{end}_idle_mib": size / 1024 for end, size in idle.items()}
    for end, size in full.items():
        sample[f"{end}_kib_per_connection"] = (size - idle[end]) / OPEN_CONNECTIONS
    sample["most_kib_per_connection"] = max(sample[f"{end}_kib_per_connection"] for end in idle)
    return sample


def measure_requests(path: str, *extra: str) -> Callable[[Running, float], Sample]:
    """Requests for *path* on 50 connections, with further header lines."""

    def measure(tunnel: Running, seconds: float) -> Sample:
        before = cpu_seconds(tunnel.processes)
        load = run_wrk(tunnel.url, path, seconds, [*tunnel.headers, *extra])
        used = cpu_seconds(tunnel.processes) - before
        sample = {"rps": load.rate, "p50_ms": load.p50, "p99_ms": load.p99}
        sample["errors"] = load.errors
        if tunnel.processes:
            sample["cpu_s_per_10k"] = used / load.requests * 10_000
        return sample

    return measure


def measure_bulk(tunnel: Running, seconds: float) -> Sample:
    before = cpu_seconds(tunnel.processes)
    received, took = download(tunnel.http, tunnel.headers, seconds)
    used = cpu_seconds(tunnel.processes) - before
    sample = {"gb_per_s": received / took / 1e9}
    if tunnel.processes:
        sample["cpu_s_per_gb"] = used / received * 1e9
    return sample


def measure_echo(tunnel: Running, seconds: float) -> Sample:
    """Round trips of 64 bytes while a bulk transfer fills the same session."""
    assert tunnel.echo is not None
    with downloading(tunnel.http, tunnel.headers, seconds + 2 * SETTLE + 5):
        time.sleep(2 * SETTLE)
        times = round_trips((HOST, tunnel.echo), seconds)
    return {"p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99), "trips": len(times)}


def measure_websocket(tunnel: Running, seconds: float) -> Sample:
    before = cpu_seconds(tunnel.processes)
    count = echoes(tunnel.http, tunnel.headers, WEBSOCKETS, seconds, secure=tunnel.secure)
    used = cpu_seconds(tunnel.processes) - before
    sample = {"echoes_per_s": count / seconds}
    if tunnel.processes:
        sample["cpu_s_per_10k"] = used / count * 10_000
    return sample


def is_tunnel(_peer: Peer, tunnel: Running) -> bool:
    return bool(tunnel.processes)


def always(_peer: Peer, _tunnel: Running) -> bool:
    return True


def has_echo(_peer: Peer, tunnel: Running) -> bool:
    return tunnel.echo is not None


def reads_http(peer: Peer, _tunnel: Running) -> bool:
    return peer.visitors in {"http", "https"}


def is_ours_for_http(peer: Peer, _tunnel: Running) -> bool:
    return peer.ours and peer.visitors == "http"


# The first is measured from a cold start: its slowest requests are those of a tunnel that has just
# come up.
COLUMNS: tuple[Column, ...] = (
    Column("keepalive", "requests on kept connections", measure_requests(SMALL), always),
    Column(
        "connect",
        "a new connection for each request",
        measure_requests(SMALL, "Connection: close"),
        always,
        share=0.75,
    ),
    Column("large", "bodies of 100 KiB", measure_requests(LARGE), always, share=0.5),
    Column("bulk", "one download", measure_bulk, always, share=0.75),
    Column("echo", "round trips beside a download", measure_echo, has_echo, share=0.75),
    Column("websocket", "echoes on 100 WebSockets", measure_websocket, reads_http, share=0.5),
    Column(
        "h11",
        "requests that the pump declines",
        measure_requests(SMALL, *DECLINED),
        is_ours_for_http,
        share=0.5,
    ),
    Column(
        "memory", "resident, idle and per open connection", measure_memory, is_tunnel, fresh=True
    ),
)
