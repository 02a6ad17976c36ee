"""An SSH client that keeps to no rule once keys are exchanged."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import asyncssh
from asyncssh.connection import SSHClientConnection
from asyncssh.packet import String

__all__ = ["AUTH_REQUEST", "GLOBAL_REQUEST", "IGNORE", "OPEN", "OPENED", "HostileClient"]

IGNORE, AUTH_REQUEST, GLOBAL_REQUEST, REFUSED, OPEN, OPENED = 2, 50, 80, 82, 90, 91

_BUFFERS = 32_768
# Bytes that the kernel may keep for it: what is not read shall soon be noticed.


class HostileClient(SSHClientConnection):
    """Does nothing by itself once keys are exchanged; counts the answers to its requests."""

    def __init__(self) -> None:
        options = asyncssh.SSHClientConnectionOptions(
            known_hosts=None, config=None, username="u", encryption_algs=["aes128-gcm@openssh.com"]
        )
        super().__init__(asyncio.get_running_loop(), options, wait=None)
        self.is_ready = asyncio.Event()
        self.is_in = asyncio.Event()
        self.answers = 0
        handlers: Any = {51: _answered, 52: _let_in, REFUSED: _answered}
        self._packet_handlers = SSHClientConnection._packet_handlers | handlers

    def try_next_auth(self, **_: Any) -> None:
        self.is_ready.set()

    def on(self, packet: int, answer: Callable[..., Any]) -> None:
        """Have packets of this type handled by `answer(client, type, number, packet)`."""
        self._packet_handlers[packet] = answer

    @property
    def unsent(self) -> int:
        assert self._transport is not None
        return self._transport.get_write_buffer_size()

    async def log_in(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()
        self.ask_to_be_let_in()
        await self.is_in.wait()

    def read_no_more(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def ask_to_be_let_in(self, name: str = "u") -> None:
        """Ask without any proof."""
        self.send_packet(AUTH_REQUEST, String(name), String("ssh-connection"), String("none"))

    async def connect(self, port: int) -> None:
        """Connect, and exchange keys."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFERS)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.create_connection(lambda: self, sock=sock)
        await self.is_ready.wait()


def _let_in(client: HostileClient, *_: Any) -> bool:
    client._auth_complete = True
    client.is_in.set()
    return True


def _answered(client: HostileClient, *_: Any) -> bool:
    client.answers += 1
    return True
