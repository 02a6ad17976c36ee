"""Data of channels that waits takes little more than its own size and no time, and none is sent to
a peer that does not read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
from asyncssh.packet import SSHPacket, String, UInt32

from support.hostile_ssh import OPEN, OPENED, HostileClient
from tunnelmux.ssh.back_pressure import BackPressure
from tunnelmux.ssh.channel_data import Pieces

DATA, EOF, CLOSE = 94, 96, 97
PIECE = b"0123456789abcdef" * 1024
MANY = 16 * 1024 * 1024
BOUND = 512 * 1024


class Output(asyncssh.SSHServerSession[bytes]):
    """Has MANY bytes for its peer, and an end; stops while asyncssh says so."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.left = MANY
        self.is_paused = False
        self.taken = bytearray()

    def connection_made(self, chan: Any) -> None:
        self.channel = chan

    def go_on(self) -> None:
        while self.left and not self.is_paused:
            self.channel.write(PIECE)
            self.left -= len(PIECE)
        if not self.left:
            self.channel.write_eof()

    def data_received(self, data: bytes, _datatype: object) -> None:
        self.taken += data

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.go_on()


class Server(asyncssh.SSHServer):
    last: Server

    def connection_made(self, conn: Any) -> None:
        Server.last, self.connection, self.session = self, conn, Output()
        sock = conn.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
        BackPressure(conn, asyncio.get_running_loop(), MANY)

    def begin_auth(self, _username: str) -> bool:
        return False

    def session_requested(self) -> Output:
        return self.session

    @property
    def kept(self) -> int:
        """Bytes of its output that are in this process."""
        deferred = self.connection._deferred_packets
        return int(
            self.connection._transport.get_write_buffer_size()
            + sum(len(word) for _, words in deferred for word in words)
            + self.session.channel.get_write_buffer_size()
        )


class Client(HostileClient):
    """Opens a channel with a window of 4 GiB, and keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = Input()
        self._channels = {0: self.channel}
        self.is_open = asyncio.Event()
        self.on(OPENED, self._opened)

    def open(self) -> None:
        self._transport.resume_reading()
        self.send_packet(OPEN, String("session"), UInt32(0), UInt32(2**32 - 1), UInt32(32_768))

    def send_data(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.send_packet(DATA, UInt32(0), String(piece))

    def _opened(self, *_: Any) -> bool:
        self.is_open.set()
        return True


class Input:
    """The channel's end at the client, as asyncssh asks for one."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.has_all = asyncio.Event()

    def process_packet(self, kind: int, _number: int, packet: SSHPacket) -> bool:
        if kind == DATA:
            self.got += packet.get_string()
        elif kind == EOF:
            self.has_all.set()
        return True

    def log_received_packet(self, *_: object) -> None:
        pass

    def process_connection_close(self, _error: object) -> None:
        pass


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Client, Server]]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    client = Client()
    async with (
        asyncio.timeout(50),
        await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Server, server_host_keys=[key], encoding=None
        ) as listening,
    ):
        await client.connect(listening.get_port())
        try:
            await client.log_in()
            client.open()
            await client.is_open.wait()
            yield client, Server.last
        finally:
            client.abort()
            Server.last.connection.abort()


def test_a_peer_with_a_huge_window_that_does_not_read_fills_no_memory() -> None:
    async def attack() -> tuple[int, int]:
        async with opened() as (client, server):
            client.read_no_more()
            server.session.go_on()
            kept, left = server.kept, server.session.left
            assert client._transport is not None
            client._transport.resume_reading()
            await client.channel.has_all.wait()
            assert client.channel.got == PIECE * (MANY // len(PIECE))
            return kept, left

    kept, left = asyncio.run(attack())
    assert kept < BOUND
    assert left > MANY // 2


def test_a_peer_that_does_not_end_a_key_exchange_fills_no_memory() -> None:
    async def attack() -> int:
        async with opened() as (client, server):
            client._send_kexinit()
            while server.connection._kex_complete:  # noqa: ASYNC110  asyncssh has no event for it
                await asyncio.sleep(0)
            server.session.go_on()
            return server.kept

    assert asyncio.run(attack()) < BOUND


def test_many_small_packets_that_wait_are_few_pieces() -> None:
    """Each was an object of its own; to take those from the front of a list took half a minute."""
    sent = [bytes([number % 251]) for number in range(20_000)]

    async def attack() -> tuple[int, bytes]:
        async with opened() as (client, server):
            channel = server.session.channel
            channel.pause_reading()
            client.send_data(*sent)
            while channel._recv_window > 2**21 - len(sent):  # noqa: ASYNC110  as above
                await asyncio.sleep(0)
            pieces = len(channel._recv_buf)
            channel.resume_reading()
            return pieces, bytes(server.session.taken)

    pieces, taken = asyncio.run(attack())
    assert pieces == 1
    assert taken == b"".join(sent)


def test_output_and_errors_in_turn_are_few_pieces_too() -> None:
    waiting = Pieces()
    for number in range(20_000):
        waiting.append((bytes([number % 251]), number % 2 or None))
    assert len(waiting) < 300
    taken = {None: b"", 1: b""}
    while waiting:
        data, kind = waiting.pop(0)
        taken[kind] += data
    for kind, first in ((None, 0), (1, 1)):
        assert taken[kind] == bytes(number % 251 for number in range(first, 20_000, 2))


def test_the_first_of_output_and_errors_keep_their_order() -> None:
    """What a person reads is little, and is to come as it was written."""
    waiting = Pieces()
    pieces = [(b"a", None), (b"b", 1), (b"c", None), (b"d", 1)]
    for piece in pieces:
        waiting.append(piece)
    assert [waiting.pop(0) for _ in pieces] == pieces
