"""What is written in one turn of the loop leaves in one piece, in order, and nothing is lost."""

from __future__ import annotations

import asyncio
import socket

import pytest

import tunnelmux.ssh.gathering
from support.ssh_client import Asker
from tunnelmux.ssh.bridge import open_bridge
from tunnelmux.ssh.gathering import GatheringTransport, Way
from tunnelmux.ssh.pool import SshPool


class Recorder(asyncio.Transport):
    """A transport that remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[object] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.asked.append(bytes(data))

    def close(self) -> None:
        self.asked.append("close")

    def abort(self) -> None:
        self.asked.append("abort")


async def test_the_writes_of_one_turn_are_one() -> None:
    inner = Recorder()

    async def work() -> None:
        transport = GatheringTransport(inner)
        reused = bytearray(b"one ")
        transport.write(reused)
        reused[:] = b"!!!!"
        transport.write(memoryview(b"two"))
        assert inner.asked == []
        await asyncio.sleep(0)
        transport.write(b"three")
        await asyncio.sleep(0)

    async with open_bridge() as bridge:
        await bridge.call(work())
    assert inner.asked == [b"one two", b"three"]


@pytest.mark.parametrize(("end", "asked"), [("close", [b"goodbye", "close"]), ("abort", ["abort"])])
async def test_a_close_lets_all_out_and_an_abort_nothing(end: str, asked: list[object]) -> None:
    inner = Recorder()

    async def work() -> None:
        transport = GatheringTransport(inner)
        transport.write(b"goodbye")
        getattr(transport, end)()
        await asyncio.sleep(0)

    async with open_bridge() as bridge:
        await bridge.call(work())
    assert inner.asked == asked


async def test_a_protocol_hears_all_of_a_socket() -> None:
    heard: list[object] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            heard.append(transport.get_extra_info("peername"))

        def data_received(self, data: bytes) -> None:
            heard.append(data)

        def eof_received(self) -> bool:
            heard.append("eof")
            return False

        def connection_lost(self, exc: Exception | None) -> None:
            heard.append(exc)
            lost.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        ours.setblocking(False)
        theirs = listener.accept()[0]
        address = listener.getsockname()
    with theirs:
        theirs.settimeout(5)

        async def work() -> None:
            nonlocal lost
            lost = asyncio.Event()
            _, protocol = await Way(ours).create_connection(Protocol, "a name", 22)
            assert isinstance(protocol, Protocol)
            assert isinstance(protocol.transport, GatheringTransport)
            protocol.transport.write(b"there")
            theirs.sendall(b"back")
            theirs.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(lost.wait(), 5)

        lost: asyncio.Event
        async with open_bridge() as bridge:
            await bridge.call(work())
        assert theirs.recv(100) == b"there"
        assert theirs.recv(100) == b""
    assert heard == [address, b"back", "eof", None]


async def test_how_much_is_read_in_a_turn_may_be_said() -> None:
    """`BackPressure` says it, so that a server's flood leaves others their turns."""
    sizes: list[int] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, GatheringTransport)
            assert isinstance(transport.max_size, int)
            transport.max_size = 1000
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            sizes.append(len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:

        async def work() -> None:
            nonlocal lost
            lost = asyncio.Event()
            await Way(ours).create_connection(Protocol, "a name", 22)
            theirs.sendall(bytes(10_000))
            theirs.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(lost.wait(), 30)

        lost: asyncio.Event
        async with open_bridge() as bridge:
            await bridge.call(work())
    assert sizes == [1000] * 10


@pytest.mark.slow  # starts an sshd
async def test_a_command_costs_few_writes(
    pool: SshPool, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []

    class Counting(GatheringTransport):
        def _flush(self) -> None:
            pieces.append(len(self._pieces))
            super()._flush()

    monkeypatch.setattr(tunnelmux.ssh.gathering, "GatheringTransport", Counting)
    await pool.run(ask("true"))
    pieces.clear()
    await pool.run(ask("true"))
    # To open the channel, to ask for the command, its input's end, the close; asyncssh writes ten.
    assert len(pieces) <= 5
    assert sum(pieces) >= 8
