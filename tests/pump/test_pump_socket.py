"""`pump.pump_socket`: one connected socket, plain and under TLS, as those above it see it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.carried import tls_contexts
from support.key_updates import KeyUpdates
from support.streams import socket_pair, tls_pair
from tunnelmux.pump.data_pump import lend_socket, open_pump
from tunnelmux.pump.pump_socket import PumpSocket
from tunnelmux.pump.sockets import LingeringClose
from tunnelmux.relay import abort

Pair = tuple[PumpSocket, trio.SocketStream | trio.SSLStream[trio.SocketStream]]


@pytest.fixture(params=["plain", "tls", "tls-tickets"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """A socket in our hands, and its peer's stream."""
    near: trio.abc.Stream
    far: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    if request.param != "plain":
        far, near = await tls_pair(*tls_contexts(tickets=request.param == "tls-tickets"))
    else:
        far, near = await socket_pair()
    lent = lend_socket(near)
    assert lent is not None
    yield PumpSocket(lent.socket, lent.tls), far
    lent.socket.close()
    await trio.aclose_forcefully(far)


async def settled(ours: PumpSocket) -> bytes:
    """What comes until the peer's end, or until an error."""
    out = b""
    with trio.fail_after(20):
        while True:
            if (data := ours.receive(7)) is None:
                await trio.lowlevel.wait_readable(ours.fileno())
            elif data:
                out += data
            else:
                return out


async def test_bytes_come_in_pieces_and_then_the_end(pair: Pair) -> None:
    ours, theirs = pair
    assert ours.receive(100) is None
    await theirs.send_all(b"more than one piece" * 3)
    transport = theirs if isinstance(theirs, trio.SocketStream) else theirs.transport_stream
    await transport.send_eof()
    assert await settled(ours) == b"more than one piece" * 3
    assert ours.error is None


async def test_what_came_before_a_reset_is_read_before_the_error(pair: Pair) -> None:
    ours, theirs = pair
    await theirs.send_all(b"421 too many connections" * 100)
    await abort(theirs)
    got = b""
    with trio.fail_after(20), pytest.raises(ConnectionResetError):
        while True:
            if (data := ours.receive(1_000)) is None:
                await trio.lowlevel.wait_readable(ours.fileno())
            else:
                assert data, "a reset is no end"
                got += data
    assert got == b"421 too many connections" * 100
    assert isinstance(ours.error, ConnectionResetError)


async def test_a_half_close_is_the_end_and_the_other_direction_goes_on(pair: Pair) -> None:
    ours, theirs = pair
    ours.half_close()
    with trio.fail_after(20):
        assert await theirs.receive_some() == b""
        if isinstance(theirs, trio.SocketStream):
            await theirs.send_all(b"late")
            await theirs.send_eof()
            assert await settled(ours) == b"late"


async def test_a_reset_is_seen_as_one(pair: Pair) -> None:
    ours, theirs = pair
    ours.reset()
    ours.reset()
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        await theirs.receive_some()
    assert ours.fileno() < 0


def greet(context: ssl.SSLContext, address: tuple[str, int]) -> bytes:
    with (
        socket.create_connection(address, 5) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"hello")
        return client.recv(100)


def gibberish(_: ssl.SSLContext, address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, 5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    return b""


@pytest.mark.parametrize("visit", [greet, gibberish])
async def test_reading_makes_the_handshake(
    visit: Callable[[ssl.SSLContext, tuple[str, int]], bytes],
) -> None:
    server, client = tls_contexts()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()[:2]
    answers: list[bytes] = []

    async def run() -> None:
        answers.append(await trio.to_thread.run_sync(visit, client, address))

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        stream = await listener.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server.wrap_bio(incoming, outgoing, server_side=True)
        ours = PumpSocket(stream.socket, (tls, incoming, outgoing))
        if visit is greet:
            while (data := ours.receive(100)) is None:
                await trio.lowlevel.wait_readable(ours.fileno())
            assert data == b"hello"
            assert tls.version() == "TLSv1.3"
            ours.half_close()
        else:
            with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
                while ours.receive(100) is None:
                    await trio.lowlevel.wait_readable(ours.fileno())
            ours.reset()
        await trio.aclose_forcefully(stream)
    assert answers == [b""]


class Told:
    def __init__(self) -> None:
        self.event = trio.Event()

    def on_news(self) -> None:
        self.event.set()


class Chatty:
    """Stands for a TLS library that owes its peer an answer for each read and gets no data."""

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self.incoming, self.outgoing = incoming, outgoing

    def pending(self) -> int:
        return 0

    def read(self, size: int, buffer: memoryview) -> int:
        assert self.incoming.read()
        self.outgoing.write(bytes(4_096))
        raise ssl.SSLWantReadError

    def version(self) -> str:
        return "TLSv1.3"

    def unwrap(self) -> None:
        raise ssl.SSLWantReadError


@asynccontextmanager
async def asking(folder: Path) -> AsyncIterator[tuple[PumpSocket, trio.SocketStream, KeyUpdates]]:
    """A socket under TLS in our hands, its peer's bare socket, and what that may send."""
    server, client = tls_contexts()
    client.keylog_filename = str(folder / "keys")
    far, near = await tls_pair(server, client)
    lent = lend_socket(near)
    assert lent is not None and isinstance(far.transport_stream, trio.SocketStream)
    try:
        yield PumpSocket(lent.socket, lent.tls), far.transport_stream, KeyUpdates(folder / "keys")
    finally:
        lent.socket.close()
        await trio.aclose_forcefully(far)


async def sent(peer: trio.SocketStream, ours: PumpSocket, data: bytes) -> bytes:
    """What is read while the peer sends this."""
    out = bytearray()
    with trio.fail_after(20):
        for at in range(0, len(data), 20_000):
            await peer.send_all(data[at : at + 20_000])
            await trio.lowlevel.wait_readable(ours.fileno())
            while (some := ours.receive(500)) is not None:
                out += some
    return bytes(out)


async def test_a_peer_that_renews_its_keys_without_end_is_read_no_more(tmp_path: Path) -> None:
    """Each KeyUpdate costs more than to send it. Nothing else was moved while they came."""
    async with asking(tmp_path) as (ours, peer, updates):
        with pytest.raises(ssl.SSLError, match="without data"):
            await sent(peer, ours, updates.ask(1_500))  # 40 kB
        await peer.send_all(updates.ask(1) + updates.data(b"more"))
        with pytest.raises(ssl.SSLError, match="without data"):
            ours.receive(100)


async def test_little_data_between_them_is_no_way_round(tmp_path: Path) -> None:
    async with asking(tmp_path) as (ours, peer, updates):
        flood = b"".join(updates.ask(1) + updates.data(b"1") for _ in range(1_500))
        with pytest.raises(ssl.SSLError, match="without data"):
            await sent(peer, ours, flood)


@pytest.mark.slow
async def test_a_peer_may_renew_its_keys_now_and_then(tmp_path: Path) -> None:
    async with asking(tmp_path) as (ours, peer, updates):
        data = bytes(4_096)
        flood = b"".join(updates.ask(1) + updates.data(data) for _ in range(1_100))
        assert await sent(peer, ours, flood) == 1_100 * data


@pytest.mark.parametrize("padding", [0, 1_000])
async def test_records_that_are_empty_come_to_an_end(tmp_path: Path, padding: int) -> None:
    """The TLS library may have a bound of its own for those that follow one another."""
    async with asking(tmp_path) as (ours, peer, records):
        with pytest.raises(ssl.SSLError, match=r"without data|RECORD_TOO_SMALL"):
            await sent(peer, ours, b"".join(records.data(b"", padding) for _ in range(1_500)))


@pytest.mark.slow
async def test_padding_may_be_far_more_than_the_data(tmp_path: Path) -> None:
    """A client may pad (RFC 8446 section 5.4) so that its typing cannot be told. It was cut."""
    async with asking(tmp_path) as (ours, peer, records):
        padded = b"".join(records.data(b"a keystroke", 4_000) for _ in range(3_000))
        assert await sent(peer, ours, padded) == 3_000 * b"a keystroke"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_records_of_one_byte_are_read_without_end(version: ssl.TLSVersion) -> None:
    """Of the older version those with the most around the data: CBC, its MAC and padding."""
    server, client = tls_contexts()
    client.maximum_version = version
    client.set_ciphers("ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384")
    far, near = await tls_pair(server, client)
    lent = lend_socket(near)
    assert lent is not None
    ours, got = PumpSocket(lent.socket, lent.tls), b""
    with lent.socket, trio.fail_after(20):
        for _ in range(2_000):
            await far.send_all(b"1")
            await trio.lowlevel.wait_readable(ours.fileno())
            got += ours.receive(500) or b""
        assert got == 2_000 * b"1"
    await trio.aclose_forcefully(far)


@pytest.mark.slow
async def test_a_peer_that_asks_and_does_not_read_is_read_no_more() -> None:
    """TLS answers a KeyUpdate (RFC 8446 section 4.6.3), however many there are."""
    far, near = await socket_pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    chatty = Chatty(incoming, outgoing)
    ours = PumpSocket(near.socket, (chatty, incoming, outgoing))  # type: ignore[arg-type]
    near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    with far.socket, near.socket, trio.fail_after(30):
        while outgoing.pending <= 16_384:
            await far.send_all(b"asks")
            assert ours.receive(100) is None
        for _ in range(100):
            await far.send_all(b"asks")
            assert ours.receive(100) is None
        assert outgoing.pending <= 16_384 + 4_096
        async with open_pump() as pump:
            assert pump is not None
            told = Told()
            LingeringClose(pump.core, ours, told, 1 << 20)
            heard = 0
            while await far.receive_some():  # what is owed, and then our end
                heard += 1
            assert heard
            assert not told.event.is_set()  # the peer has not ended
            await far.send_eof()
            await told.event.wait()
        assert outgoing.pending == 0
