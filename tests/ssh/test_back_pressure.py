"""A peer that asks and does not read, or asks for more than is answered, fills no memory, and one
that takes its data byte by byte takes no processor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest
from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from support.hostile_ssh import GLOBAL_REQUEST, IGNORE, OPEN, OPENED, HostileClient
from tunnelmux.ssh.back_pressure import BackPressure

MOST_UNSENT = 32_768


class Server(asyncssh.SSHServer):
    """Keeps the connection, for the test to look into. `decide` is what a log-in waits for."""

    last: Server
    decide: asyncio.Future[bool]

    def connection_made(self, conn: Any) -> None:
        Server.last, self.connection = self, conn
        self.transport = conn._transport
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768
        )
        BackPressure(conn, asyncio.get_event_loop(), MOST_UNSENT)

    async def begin_auth(self, _username: str) -> bool:
        return await asyncio.shield(self.decide)

    def password_auth_supported(self) -> bool:
        return True

    def session_requested(self) -> asyncssh.SSHServerSession[str]:
        return asyncssh.SSHServerSession()

    async def server_requested(self, _host: str, _port: int) -> bool:
        return False

    @property
    def progress(self) -> tuple[int, int]:
        """Changes with all that is read or worked on."""
        return len(self.connection._inpbuf), self.connection._send_seq

    @property
    def has_stopped(self) -> bool:
        """Whether nothing goes on before the peer reads, or the log-in is decided."""
        waits = self.transport.get_write_buffer_size() > 0 or not self.decide.done()
        return waits and not self.transport.is_reading()


async def flood(client: HostileClient, size: int, packet: int, *content: bytes) -> None:
    """Say this again and again, until the other side has taken all of it, or has stopped
    reading for as long as this one reads nothing."""
    said = 0
    while said < size and not Server.last.has_stopped:
        while client.unsent < 100_000:
            client.send_packet(packet, *content)
            said += 64 + sum(map(len, content))
        await asyncio.sleep(0)
    turns = 0  # in which the server finds nothing more to do
    while turns < 50 and not Server.last.has_stopped:
        before = Server.last.progress
        await asyncio.sleep(0)
        turns = turns + 1 if Server.last.progress == before and not client.unsent else 0


@asynccontextmanager
async def hostile_client(*, needs_proof: bool | None) -> AsyncIterator[HostileClient]:
    """A client whose keys are exchanged and who reads nothing further. Whether a proof is needed is
    never decided where that is None."""
    Server.decide = asyncio.get_running_loop().create_future()
    if needs_proof is not None:
        Server.decide.set_result(needs_proof)
    key = asyncssh.generate_private_key("ssh-ed25519")
    client = HostileClient()
    async with (
        asyncio.timeout(50),
        await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Server, server_host_keys=[key]
        ) as listening,
    ):
        await client.connect(listening.get_port())
        try:
            yield client
        finally:
            client.abort()
            Server.last.transport.abort()


@pytest.mark.slow
def test_answers_that_are_not_read_are_few() -> None:
    async def attack() -> int:
        async with hostile_client(needs_proof=False) as client:
            await client.log_in()
            client.read_no_more()
            await flood(client, 250_000, GLOBAL_REQUEST, String("x"), Boolean(value=True))
            size: int = Server.last.transport.get_write_buffer_size()
            return size

    assert asyncio.run(attack()) < 4 * MOST_UNSENT


def test_what_comes_while_a_log_in_waits_is_little() -> None:
    async def attack() -> int:
        async with hostile_client(needs_proof=None) as client:
            client.ask_to_be_let_in()
            await flood(client, 1_000_000, IGNORE, String(bytes(4096)))
            return len(Server.last.connection._inpbuf)

    assert asyncio.run(attack()) < 500_000


@pytest.mark.parametrize(("size", "is_ended"), [(1, True), (1023, True), (1024, False)])
@pytest.mark.parametrize("opener", ["peer", "we"])
def test_a_peer_that_takes_tiny_packets_is_ended(opener: str, size: int, *, is_ended: bool) -> None:
    window = UInt32(2**31 - 1)

    def confirm(client: HostileClient, _type: int, _id: int, packet: SSHPacket) -> bool:
        packet.get_string()
        number = UInt32(packet.get_uint32())
        client.send_packet(OPENED, number, UInt32(0), window, UInt32(size))
        return True

    def is_open(server: Any) -> bool:
        sizes = [channel._send_pktsize for channel in server._channels.values()]
        return server._transport is not None and sizes == [size]

    async def attack() -> bool:
        async with hostile_client(needs_proof=False) as client:
            await client.log_in()
            client.on(OPEN, confirm)
            client.on(OPENED, lambda *_: True)
            server = Server.last.connection
            if opener == "peer":
                client.send_packet(OPEN, String("session"), UInt32(0), window, UInt32(size))
            else:
                asking = server.create_connection(asyncssh.SSHTCPSession, "web", 80)
                opening = asyncio.ensure_future(asking)
            while not server.is_closed() and not is_open(server):  # noqa: ASYNC110  asyncssh has no event for either
                await asyncio.sleep(0)
            if opener == "we":
                with contextlib.suppress(asyncssh.Error):
                    await opening
            return bool(server.is_closed())

    assert asyncio.run(attack()) == is_ended


@pytest.mark.slow
def test_requests_in_heaps_wait_in_the_socket_and_are_all_answered() -> None:
    async def attack() -> int:
        async with hostile_client(needs_proof=False) as client:
            await client.log_in()
            queue, most = Server.last.connection._global_request_queue, 0
            forward = (String("tcpip-forward"), Boolean(value=True), String("x"), UInt32(1))
            for _ in range(2000):
                client.send_packet(GLOBAL_REQUEST, *forward)
            while client.answers < 2000:
                most = max(most, len(queue))
                await asyncio.sleep(0)
            return most

    assert asyncio.run(attack()) < 1500  # those of one reading, 64 KiB


class Costly:
    """Stands for asyncssh's connection and its transport: each packet takes 5 microseconds."""

    def __init__(self, packet: int) -> None:
        self.packet = packet
        self.now = 0.0
        self.max_size = 262_144
        self.turns: list[float] = []
        self._transport = self
        self._channels: dict[int, Any] = {}
        self._global_request_queue = self._deferred_packets = self._inpbuf = b""
        self._max_recv_pktlen = 1

    def data_received(self, data: bytes, _datatype: object) -> None:
        self.turns.append(len(data) / self.packet * 5e-6)
        self.now += self.turns[-1]

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize("packet", [16, 256, 32_768])
def test_a_flood_of_small_packets_takes_little_of_each_turn(packet: int) -> None:
    """All others wait during a turn: visitors of the device, and other commands."""
    flooded: Any = Costly(packet)
    BackPressure(flooded, None, MOST_UNSENT, clock=lambda: flooded.now)  # type: ignore[arg-type]
    for _ in range(20):
        flooded.data_received(bytes(flooded.max_size), None)
    assert flooded.turns[0] < 0.003  # when nothing is known of it yet
    assert max(flooded.turns[1:]) < 0.0011
    assert flooded.turns[-1] > 0.0004 or flooded.max_size == 65_536
