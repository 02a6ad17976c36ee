"""A TCP echo, and round trips on it: `python -m bench.echo PORT` answers until it is killed."""

from __future__ import annotations

import socket
import sys
import threading
import time

SIZE = 64


def serve(port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(65_536):
            connection.sendall(data)


def round_trips(address: tuple[str, int], seconds: float) -> list[float]:
    """Milliseconds of one round trip of 64 bytes after another, for that long."""
    question = bytes(range(SIZE))
    times = []
    with socket.create_connection(address, timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.perf_counter() + seconds
        while (began := time.perf_counter()) < deadline:
            connection.sendall(question)
            got = 0
            while got < SIZE:
                data = connection.recv(SIZE - got)
                if not data:
                    raise ConnectionError("the echo ended")
                got += len(data)
            times.append((time.perf_counter() - began) * 1000)
    return times


if __name__ == "__main__":
    serve(int(sys.argv[1]))
