"""A peer that asks and does not read, or asks for more than is answered, fills no memory. One that
takes its data byte by byte takes no processor, and floods of one peer take little of others' time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import asyncssh
import pytest
from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from support.hostile_ssh import GLOBAL_REQUEST, IGNORE, OPEN, OPENED, HostileClient
from tunnelmux.ssh.back_pressure import BackPressure
from tunnelmux.ssh.turns import Turns

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
    """Stands for asyncssh's connection and its transport: each packet takes 20 microseconds."""

    _send_pktsize = 32_768

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], None]] = []
        self.max_size = 262_144
        self.is_reading = True
        self._transport = self
        self._channels: dict[int, Any] = {}
        self._global_request_queue = self._deferred_packets = b""
        self._inpbuf = self._packet = b""
        self._pktlen, self._recv_blocksize, self._recv_macsize = 0, 16, 16
        self._recv_handler = self._finish_recv_packet
        self.turns = Turns(self.calls.append, clock=lambda: self.now)
        BackPressure(self, Any, MOST_UNSENT, turns=self.turns)  # type: ignore[arg-type]

    def _finish_recv_packet(self, *_: Any, **__: Any) -> None:
        pass

    add_channel = _send_deferred_packets = _finish_recv_packet

    def data_received(self, data: bytes, _datatype: object = None) -> None:
        """Packets as those of AES-GCM: their length, that many bytes, and 16 more."""
        self._inpbuf += data
        while len(self._inpbuf) >= (4 + self._pktlen if self._packet else 16):
            if not self._packet:
                self._packet, self._inpbuf = self._inpbuf[:16], self._inpbuf[16:]
                self._pktlen = int.from_bytes(self._packet[:4], "big")
            else:
                self._inpbuf, self._packet = self._inpbuf[4 + self._pktlen :], b""
                self.now += 20e-6

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def turn(self) -> float:
        """What one turn of the loop takes, whose calls are made."""
        before, calls = self.now, self.calls[:]
        del self.calls[:]
        for call in calls:
            call()
        return self.now - before


def packets(length: int, count: int) -> bytes:
    return (length.to_bytes(4, "big") + bytes(16 + length)) * count


@pytest.mark.parametrize("length", [16, 48, 240, 1000, 32_768])
def test_a_flood_of_packets_takes_little_of_each_turn(length: int) -> None:
    """All others wait during a turn: other people, visitors of the device, other commands."""
    flooded, flood = Costly(), packets(length, 65_536 // length)
    began = flooded.now
    flooded.data_received(flood)
    longest = flooded.now - began
    while flooded.calls:
        longest = max(longest, flooded.turn())
    assert longest < 0.0006
    assert flooded.now == pytest.approx(20e-6 * (65_536 // length))
    assert flooded.is_reading


def test_large_packets_first_make_no_turn_of_small_ones_longer() -> None:
    flooded = Costly()
    for _ in range(20):
        flooded.data_received(packets(32_768, 2))
        while flooded.calls:
            flooded.turn()
    before = flooded.now
    flooded.data_received(packets(16, 1800))
    assert flooded.now - before < 0.0006


@pytest.mark.slow  # 20,000 packets
@pytest.mark.parametrize("count", [1, 5])
def test_floods_of_one_peer_take_turns(count: int) -> None:
    """However many connections flood: others wait for one of them in a turn of the loop."""

    class Busy(Server):
        def connection_made(self, conn: Any) -> None:
            self.transport = conn._transport
            Busy.transports.append(self.transport)
            BackPressure(conn, asyncio.get_event_loop(), MOST_UNSENT, "a peer", turns=turns)
            self.transport.max_size = 400  # less than there is time for in a turn
            process = conn.process_packet

            def count_it(*about: Any) -> Any:
                nonlocal seen
                seen += 1
                return process(*about)

            conn.process_packet = count_it

        transports: ClassVar[list[Any]] = []

    async def attack() -> list[int]:
        nonlocal turns
        loop = asyncio.get_running_loop()
        turns = Turns(loop.call_soon, clock=lambda: seen * 20e-6)
        Server.decide = loop.create_future()
        Server.decide.set_result(False)
        key = asyncssh.generate_private_key("ssh-ed25519")
        async with (
            asyncio.timeout(50),
            await asyncssh.listen("127.0.0.1", 0, server_factory=Busy, server_host_keys=[key]) as s,
        ):
            clients = [HostileClient() for _ in range(count)]
            for client in clients:
                await client.connect(s.get_port())
                await client.log_in()
            before, taken = seen, []
            for client in clients:
                for _ in range(20_000 // count):
                    client.send_packet(IGNORE, String(b""))
            while seen < before + 20_000:
                now = seen
                await asyncio.sleep(0)
                taken.append(seen - now)
            for end in [*clients, *Busy.transports]:
                end.abort()
            return taken

    turns: Any = None
    seen = 0
    taken = asyncio.run(attack())
    cheap = 5000 + 50 * count  # what is not much yet: 0.1 s
    # Now and then one that had nothing to say takes its turn with another.
    assert statistics.median(filter(None, taken_once_much(taken, cheap))) < 20


def taken_once_much(taken: list[int], cheap: int) -> list[int]:
    """The packets of each turn, once so many were taken."""
    total = 0
    for number, each in enumerate(taken):
        total += each
        if total > cheap:
            return taken[number + 1 :]
    raise AssertionError("too few")
