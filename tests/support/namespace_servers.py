"""What stands in a namespace: `hold`, which keeps it, and the servers `dns` and `relay`.

A program of its own, run there by `namespace`.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _hold(folder: Path) -> None:
    """Keep the namespaces until the test lets go of the pipe."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = b"lo".ljust(16, b"\0")
        up = struct.pack("16sh", name, 0x1 | 0x40)  # IFF_UP | IFF_RUNNING (netdevice(7))
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS
    for file in ("hosts", "resolv.conf"):
        subprocess.run(["mount", "--bind", folder / file, f"/etc/{file}"], check=True)
    _say_ready()
    sys.stdin.read()


def _dns() -> None:
    """A DNS server that knows one name: `proxy.test` is 127.0.0.1 (RFC 1035 section 4)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        _say_ready()
        while True:
            query, asker = server.recvfrom(512)
            end = query.index(b"\0", 12) + 5
            question, is_known = query[12:end], query[12:end].startswith(b"\5proxy\4test\0")
            is_address = question[-4:-2] == b"\0\1"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1" if is_known and is_address else b""
            flags = 0x8580 if is_known else 0x8583  # NXDOMAIN
            counts = struct.pack(">HHHHH", flags, 1, bool(answer), 0, 0)
            server.sendto(query[:2] + counts + question + answer, asker)


def _relay(port: int, target: int, delay: float, rate: int) -> None:
    """Connections to a port go to another one: later by `delay` seconds, `rate` bytes a second."""

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(max(rate // 10, 1024) if rate else 65_536):
                time.sleep(delay + (len(data) / rate if rate else 0))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", port)) as server:
        _say_ready()
        while True:
            visitor, _ = server.accept()
            onward = socket.create_connection(("127.0.0.1", target))
            for pair in ((visitor, onward), (onward, visitor)):
                threading.Thread(target=carry, args=pair, daemon=True).start()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", folder]:
            _hold(Path(folder))
        case ["dns"]:
            _dns()
        case ["relay", port, target, delay, rate]:
            _relay(int(port), int(target), float(delay), int(rate))
