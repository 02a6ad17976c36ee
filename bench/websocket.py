"""WebSocket echoes (RFC 6455): `python -m bench.websocket PORT` answers until it is killed.

Both ends do the least that is allowed, for they share the machine with what is measured: frames of
64 bytes, masked with a key of zeros, so that the echo is the frame without its key.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench.processes import HOST

PATH = "/websocket"
SIZE = 64
QUESTION = bytes([0x82, 0x80 | SIZE]) + bytes(4) + bytes(range(SIZE))
ANSWER = bytes([0x82, SIZE]) + bytes(range(SIZE))

# The key and its answer are those of RFC 6455 section 1.3.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
PATIENCE = 10.0


# -- the origin ---------------------------------------------------------------------------------


def serve(port: int) -> None:
    ready = selectors.EpollSelector()
    with socket.create_server((HOST, port), backlog=1024) as listener:
        ready.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    ready.register(connection, selectors.EVENT_READ, bytearray())
                elif not answer(key.fileobj, key.data):  # type: ignore[arg-type]
                    ready.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]


def answer(connection: socket.socket, held: bytearray) -> bool:
    """Answer what is whole of what has come; False at the end."""
    try:
        data = connection.recv(65_536)
    except OSError:
        return False
    if not data:
        return False
    held += data
    if held.startswith(b"GET "):
        head, end, rest = held.partition(b"\r\n\r\n")
        if not end:
            return True
        assert KEY.encode() in head
        held[:] = rest
        connection.sendall(ACCEPTED)
    whole = len(held) // len(QUESTION)
    if whole:
        del held[: whole * len(QUESTION)]
        connection.sendall(ANSWER * whole)
    return True


# -- the visitors -------------------------------------------------------------------------------


def echoes(
    port: int, headers: Sequence[str], connections: int, seconds: float, *, secure: bool = False
) -> int:
    """How many echoes came within *seconds*, one under way on each of so many connections; with
    *secure*, they are TLS, and any certificate will do."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with ExitStack() as stack:
        ready = stack.enter_context(selectors.EpollSelector())
        for _ in range(connections):
            connection = socket.create_connection((HOST, port), PATIENCE)
            if secure:
                connection = tls.wrap_socket(connection)
            stack.enter_context(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            upgrade(connection, headers)
            ready.register(connection, selectors.EVENT_READ, bytearray())
            connection.sendall(QUESTION)
        count = 0
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            events = ready.select(PATIENCE)
            if not events:
                raise TimeoutError("no echo came")
            for key, _ in events:
                count += take(key.fileobj, key.data)  # type: ignore[arg-type]
        return count


def upgrade(connection: socket.socket, headers: Sequence[str]) -> None:
    lines = [f"GET {PATH} HTTP/1.1", *headers]
    if not any(header.lower().startswith("host:") for header in headers):
        lines.append(f"Host: {HOST}")
    lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    connection.sendall("\r\n".join([*lines, f"Sec-WebSocket-Key: {KEY}", "", ""]).encode("ascii"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # nothing may follow before a question
        data = connection.recv(4096)
        head += data
        if not data or not head.startswith(b"HTTP/1.1 101 "[: len(head)]):
            raise ConnectionError(f"no WebSocket, but {head[:80]!r}")


def take(connection: socket.socket, held: bytearray) -> int:
    """Read on, and ask again for each whole echo; how many there were."""
    data = connection.recv(4096)
    if not data:
        raise ConnectionError("the WebSocket was cut")
    held += data
    whole = len(held) // len(ANSWER)
    if whole:
        if held[: len(ANSWER)] != ANSWER:
            raise ConnectionError(f"another answer: {bytes(held[:80])!r}")
        del held[: whole * len(ANSWER)]
        connection.sendall(QUESTION * whole)
    return whole


if __name__ == "__main__":
    serve(int(sys.argv[1]))
