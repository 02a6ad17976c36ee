"""The load: wrk for requests, sockets of our own for bulk, for echoes and for holding open.

`python -m bench.load PORT SECONDS [HEADER...]` is one bulk transfer in a process of its own.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.origin import BULK, SIZES, SMALL
from bench.processes import HOST

THREADS, CONNECTIONS = 2, 50

READ_SIZE = 1024 * 1024

PATIENCE = 10.0
"""Seconds without a byte after which a tunnel counts as stuck."""


class LoadFailure(Exception):
    """A tunnel did not carry the load; the message says what came instead."""


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    rate: float
    """Requests per second."""
    requests: int
    p50: float
    """Milliseconds."""
    p99: float
    errors: int = 0
    """Connections that failed or were cut, and answers that did not come in time."""


MOST_ERRORS = 0.01
"""The share of requests that may fail: above it a rate says nothing."""

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


def parse_wrk(text: str) -> Load:
    """The figures of `wrk --latency`; LoadFailure when an answer was wrong or none came."""
    if wrong := re.search(r"Non-2xx or 3xx responses: \d+", text):
        raise LoadFailure(wrong[0])
    socket_errors = re.search(r"Socket errors: (.*)", text)
    errors = sum(map(int, re.findall(r"\d+", socket_errors[1]))) if socket_errors else 0
    lines = re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m) *$", text, re.MULTILINE)
    quantiles = {int(percent): float(figure) * UNITS[unit] for percent, figure, unit in lines}
    requests = re.search(r"^\s*(\d+) requests in ", text, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    if requests is None or rate is None or not {50, 99} <= quantiles.keys():
        raise LoadFailure(f"too few requests were answered: {text.strip()[-200:]!r}")
    if errors > MOST_ERRORS * int(requests[1]):
        raise LoadFailure(f"{errors} errors in {requests[1]} requests")
    return Load(float(rate[1]), int(requests[1]), quantiles[50], quantiles[99], errors)


def run_wrk(url: str, path: str, seconds: float, headers: Sequence[str]) -> Load:
    wrk = shutil.which("wrk")
    assert wrk is not None  # looked for before anything was started
    command = [wrk, f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
    command += ["--latency", "--timeout", "10s"]
    command += [word for header in headers for word in ("-H", header)]
    done = subprocess.run(
        [*command, url + path],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=False,
    )
    if done.returncode:
        raise LoadFailure(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    return parse_wrk(done.stdout)


# -- requests over sockets of our own -----------------------------------------------------------


def request(path: str, headers: Sequence[str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", *headers]
    if not any(header.lower().startswith("host:") for header in headers):
        lines.append(f"Host: {HOST}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def read_head(connection: socket.socket) -> int:
    """Read a response's head; how many bytes of its body came with it."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            raise LoadFailure(f"cut after {head[:80]!r}")
        head += data
    status_line = head.partition(b"\r\n")[0]
    if b" 200 " not in status_line:
        raise LoadFailure(f"answered with {status_line!r}")
    return len(head.partition(b"\r\n\r\n")[2])


def visit(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port), timeout=PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def download(port: int, headers: Sequence[str], seconds: float) -> tuple[int, float]:
    """Read bulk bodies one after another on one connection, for that long; bytes and seconds."""
    buffer = memoryview(bytearray(READ_SIZE))
    question = request(BULK, headers)
    with visit(port) as connection:
        began = time.perf_counter()
        received = 0
        while (now := time.perf_counter()) < began + seconds:
            connection.sendall(question)
            left = SIZES[BULK] - read_head(connection)
            received += SIZES[BULK] - left
            while left and (now := time.perf_counter()) < began + seconds:
                count = connection.recv_into(buffer, min(left, READ_SIZE))
                if not count:
                    raise LoadFailure(f"cut with {left} bytes to come")
                left -= count
                received += count
        return received, now - began


@contextmanager
def downloading(port: int, headers: Sequence[str], seconds: float) -> Iterator[None]:
    """A bulk transfer in a process of its own for the length of the block, and *seconds* at most.

    In this one it would keep the interpreter from an echo's next round trip.
    """
    command = [sys.executable, "-m", "bench.load", str(port), str(seconds), *headers]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise LoadFailure(f"the bulk transfer ended early ({process.returncode})")
    finally:
        process.kill()
        process.wait()


@contextmanager
def connections_held(port: int, headers: Sequence[str], count: int) -> Iterator[None]:
    """So many connections, opened one after another, each with one answered request."""
    question = request(SMALL, headers)
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(visit(port))
            connection.sendall(question)
            left = SIZES[SMALL] - read_head(connection)
            while left:
                left -= len(connection.recv(left)) or left
        yield


if __name__ == "__main__":
    download(int(sys.argv[1]), sys.argv[3:], float(sys.argv[2]))
