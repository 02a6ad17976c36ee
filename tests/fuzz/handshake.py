"""Any bytes in place of a WebSocket handshake are taken, or answered and refused with ConnectError.

What the server answers is a sound HTTP/1.1 response; what the client is told is a ConnectError
whose text can be printed.
"""

from __future__ import annotations

import contextlib

import h11
import trio
import trio.testing

from support.fuzz_input import FuzzInput
from tunnelmux.errors import ConnectError
from tunnelmux.transports.handshake import UpgradeRequest, read_response, read_upgrade


class Wire(trio.abc.HalfCloseableStream):
    """Gives the input in pieces and then its end; keeps what is written."""

    def __init__(self, data: bytes, cut: int) -> None:
        self.data = data
        self.cut = cut
        self.written = b""
        self.closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = min(self.cut, max_bytes or self.cut)
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        self.closed = True


def one_input(data: bytes) -> None:
    """What the fuzzer calls, and `test_corpus.py` with what the fuzzer kept."""
    given = FuzzInput(data)
    kind = given.number()
    wire = Wire(given.rest(), (1 << 20, 1, 5, 4_096)[kind >> 1 & 3])
    # The function decides nothing by time here, so no clock has to run.
    trio.run(server if kind & 1 else client, wire, clock=trio.testing.MockClock())


async def server(wire: Wire) -> None:
    try:
        request = await read_upgrade(wire, path="/tunnel/connect")
    except ConnectError as error:
        assert wire.closed
        assert str(error).isprintable()
        if wire.written:
            sound_answer(wire.written)
        return
    assert isinstance(request, UpgradeRequest)
    assert request.path == "/tunnel/connect"
    assert wire.written == b"" and not wire.closed
    assert request.header("upgrade") is not None
    assert request.token is None or request.token
    assert repr(request.token) not in repr(request)
    assert all(isinstance(name, str) for name in request.subprotocols)


def sound_answer(raw: bytes) -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    connection.receive_data(b"")
    event = connection.next_event()
    assert isinstance(event, h11.Response) and event.status_code >= 400
    while not isinstance(event, h11.EndOfMessage):
        event = connection.next_event()


async def client(wire: Wire) -> None:
    with contextlib.suppress(EOFError):
        try:
            head, _, headers = await read_response(wire.receive_some, "proxy.example")
        except ConnectError as error:
            assert str(error).isprintable()
            return
        assert b" 101" in head.partition(b"\n")[0]
        assert all(isinstance(name, bytes) for name, _ in headers)
