"""A fleet that dials at once, at the least cost: what admitting an agent takes of the proxy.

`python -m bench.reconnect HOST PORT CERTIFICATE FIRST COUNT` holds COUNT connections of the devices
from FIRST on, each up to its 101, and says `connected` when it has them all; CERTIFICATE is `-` for
plain WebSockets. It keeps no session and answers no ping, so that the proxy has the machine.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import sys
import time

from bench.fleet import device_token

IN_FLIGHT = 64
"""Handshakes at once: under the places that one address has."""

REQUEST = (
    "GET /tunnel/connect HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer {token}\r\n"
    "Tunnelmux-Device: {device}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Sec-WebSocket-Protocol: tunnelmux.v1\r\n\r\n"
)


class Dial:
    """One connection, up to its 101."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None, number: int):
        self.request = REQUEST.format(token=device_token(number), device=f"device{number}").encode()
        self.socket = socket.create_connection(address)  # the kernel answers, at once
        self.socket.setblocking(False)
        if context is not None:
            self.socket = context.wrap_socket(
                self.socket, server_hostname="localhost", do_handshake_on_connect=False
            )
        self.sent = False

    def go_on(self) -> int | None:
        """What to wait for next; None once the 101 is there."""
        try:
            if not self.sent:
                if isinstance(self.socket, ssl.SSLSocket):
                    self.socket.do_handshake()
                self.socket.send(self.request)
                self.sent = True
            answer = self.socket.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError):
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        if not answer.startswith(b"HTTP/1.1 101"):
            sys.exit(f"the proxy answered {answer[:200]!r}")
        return None


def hold(host: str, port: int, certificate: str, first: int, count: int) -> None:
    context = None
    if certificate != "-":
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
    waiting = selectors.DefaultSelector()
    held: list[socket.socket] = []
    numbers = iter(range(first, first + count))
    in_flight = 0
    while len(held) < count:
        while in_flight < IN_FLIGHT and (number := next(numbers, None)) is not None:
            dial = Dial((host, port), context, number)
            waiting.register(dial.socket, selectors.EVENT_WRITE, dial)
            in_flight += 1
        for key, _ in waiting.select():
            wanted = key.data.go_on()
            if wanted is None:
                waiting.unregister(key.fileobj)
                held.append(key.data.socket)
                in_flight -= 1
            elif wanted != key.events:
                waiting.modify(key.fileobj, wanted, key.data)
    print("connected", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    hold(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
