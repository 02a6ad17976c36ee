from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
from structlog.testing import capture_logs
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from support.cancellation import Outcome, at_every_checkpoint, cancelled_after
from support.streams import TUNNEL_URL, next_bytes, socket_pair, tls_pair, websocket_pair
from tunnelmux.errors import ConnectError, RemoteProtocolError
from tunnelmux.transports import (
    MemoryStream,
    WebSocketStream,
    memory_stream_pair,
    read_upgrade,
)
from tunnelmux.transports.websocket import start_websocket_client, start_websocket_server

Pair = tuple[trio.abc.Stream, trio.abc.Stream]


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_the_stream_keeps_trios_contract_over_memory(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def make() -> Pair:
        return await websocket_pair(nursery)

    async def make_clogged() -> Pair:
        pair = await websocket_pair(nursery, capacity=2048)
        for stream in pair:
            await fill(stream)
        return pair

    await trio.testing.check_two_way_stream(make, make_clogged)


async def fill(stream: WebSocketStream) -> None:
    """Send whole messages until not one byte more fits below; a cancelled send would break it."""
    overhead = 6 if stream._connection.is_client else 2
    pipe = stream.transport._outgoing  # type: ignore[attr-defined]
    while True:
        await trio.testing.wait_all_tasks_blocked()
        if not pipe.room:
            return
        size = 100 if pipe.room > 200 else min(100, pipe.room - overhead)
        if 0 < pipe.room - overhead - size <= overhead:
            size -= 10
        await stream.send_all(bytes(size))


async def test_the_stream_keeps_trios_contract_over_tcp(nursery: trio.Nursery) -> None:
    async def make() -> Pair:
        return await websocket_pair(nursery, await socket_pair())

    await trio.testing.check_two_way_stream(make, None)


async def test_the_stream_keeps_trios_contract_over_tls(
    nursery: trio.Nursery, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async def make() -> Pair:
        return await websocket_pair(nursery, await tls_pair(*contexts))

    await trio.testing.check_two_way_stream(make, None)


class BarePeer:
    """A WebSocket client made of wsproto alone, which sends whatever a test wants."""

    def __init__(self, below: MemoryStream) -> None:
        self.below = below
        self.protocol = Connection(ConnectionType.CLIENT)

    async def send(self, event: Event) -> None:
        await self.below.send_all(self.protocol.send(event))

    async def close_code(self) -> int | None:
        """The code of the close frame the other side sends; None when it just leaves."""
        while data := await self.below.receive_some():
            self.protocol.receive_data(data)
            for event in self.protocol.events():
                if isinstance(event, CloseConnection):
                    return event.code
        return None


UPGRADE = (
    b"GET /tunnel/connect HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)


async def with_bare_peer(nursery: trio.Nursery) -> tuple[WebSocketStream, BarePeer]:
    mine, theirs = memory_stream_pair()
    await theirs.send_all(UPGRADE)
    request = await read_upgrade(mine, path="/tunnel/connect")
    stream = await start_websocket_server(nursery, request)
    answer = await theirs.receive_some()
    assert answer.startswith(b"HTTP/1.1 101 ") and answer.endswith(b"\r\n\r\n")
    return stream, BarePeer(theirs)


async def test_message_boundaries_mean_nothing(nursery: trio.Nursery) -> None:
    stream, peer = await with_bare_peer(nursery)
    await peer.send(BytesMessage(b"ab"))
    await peer.send(BytesMessage(b""))
    await peer.send(BytesMessage(b"c", message_finished=False))
    await peer.send(BytesMessage(b"def"))
    received = await stream.receive_some(1)
    assert received == b"a"
    while len(received) < 6:
        received += await stream.receive_some(6 - len(received))
    assert received == b"abcdef"


async def test_a_text_message_ends_the_stream_with_1003(nursery: trio.Nursery) -> None:
    stream, peer = await with_bare_peer(nursery)
    await peer.send(TextMessage("hello"))
    codes: list[int | None] = []

    async def watch() -> None:
        codes.append(await peer.close_code())
        await peer.send(CloseConnection(1003))

    nursery.start_soon(watch)
    with pytest.raises(trio.BrokenResourceError, match="binary messages only") as caught:
        await stream.receive_some()
    assert isinstance(caught.value.__cause__, RemoteProtocolError)
    assert codes == [1003]
    with pytest.raises(trio.BrokenResourceError, match="text message"):
        await stream.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="text message"):
        await stream.receive_some()


async def test_a_message_of_any_size_passes_through_without_being_collected(
    nursery: trio.Nursery,
) -> None:
    """hashicorp/yamux writes whatever the window allows as one message."""
    stream, peer = await with_bare_peer(nursery)
    size = 20 * 1024 * 1024
    await peer.send(BytesMessage(bytes(size)))
    received, largest = 0, 0
    while received < size:
        piece = await stream.receive_some()
        received, largest = received + len(piece), max(largest, len(piece))
    assert received == size
    assert largest <= 65_536


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_normal_close_is_the_end_of_the_stream(nursery: trio.Nursery, code: int) -> None:
    stream, peer = await with_bare_peer(nursery)
    await peer.send(BytesMessage(b"bye"))
    await peer.send(CloseConnection(code))
    assert await next_bytes(stream, 3) == b"bye"
    assert await stream.receive_some() == b""
    assert await stream.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError, match=f"code {code}"):
        await stream.send_all(b"x")


async def test_a_close_with_an_error_code_is_told_with_its_reason(nursery: trio.Nursery) -> None:
    stream, peer = await with_bare_peer(nursery)
    await peer.send(CloseConnection(1011, "out of memory"))
    with pytest.raises(trio.BrokenResourceError, match=r"1011 INTERNAL_ERROR: out of memory"):
        await stream.receive_some()


async def test_a_connection_cut_without_a_close_is_broken_not_ended(nursery: trio.Nursery) -> None:
    stream, peer = await with_bare_peer(nursery)
    await peer.send(BytesMessage(b"last"))
    await peer.below.aclose()
    assert await next_bytes(stream, 4) == b"last"
    with pytest.raises(trio.BrokenResourceError, match="without a closing handshake"):
        await stream.receive_some()


@pytest.mark.parametrize(
    "rubbish",
    [
        pytest.param(b"\x82\x05hello", id="unmasked from a client"),
        pytest.param(b"\xf2\x80\0\0\0\0", id="reserved bits"),
        pytest.param(b"\x83\x80\0\0\0\0", id="reserved opcode"),
        pytest.param(b"\x80\x81\0\0\0\0x", id="continuation of nothing"),
        pytest.param(b"\x81\x81\0\0\0\0\xff", id="text that is no UTF-8"),
        pytest.param(b"\x09\x80\0\0\0\0", id="fragmented ping"),
        pytest.param(b"\x88\x81\0\0\0\0\x03", id="close with half a code"),
    ],
)
async def test_rubbish_frames_break_this_stream_and_nothing_else(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, rubbish: bytes
) -> None:
    stream, peer = await with_bare_peer(nursery)
    await peer.below.send_all(rubbish)
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    # The nursery the reader ran in is alive, and so is everybody else in it.
    other, other_peer = await with_bare_peer(nursery)
    await other_peer.send(BytesMessage(b"fine"))
    assert await next_bytes(other, 4) == b"fine"


async def test_a_cancelled_receive_loses_nothing(nursery: trio.Nursery) -> None:
    client, server = await websocket_pair(nursery)
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.receive_some()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(server.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        waiting.cancel_scope.cancel()
    await client.send_all(b"all of it")
    assert await next_bytes(server, 9) == b"all of it"


async def test_a_cancelled_send_never_leaves_half_a_frame_unnoticed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = await websocket_pair(nursery, capacity=10_000)
    with trio.move_on_after(1) as scope:
        await client.send_all(bytes(1_000_000))
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError, match="cut short"):
        await client.send_all(b"hello")
    with pytest.raises(trio.BrokenResourceError, match="cut short"):
        await client.receive_some()
    received: list[bytes | bytearray] = []
    with pytest.raises(trio.BrokenResourceError, match="without a closing handshake"):
        received.extend([data async for data in server])
    assert b"hello" not in b"".join(received)
    before = trio.current_time()
    await client.aclose()
    assert trio.current_time() == before, "there is no handshake to wait for on a torn connection"


async def test_a_close_waits_one_second_for_a_dead_peer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    stream, _peer = await with_bare_peer(nursery)
    before = trio.current_time()
    await stream.aclose()
    assert trio.current_time() - before == pytest.approx(1.0)


async def test_a_close_does_not_wait_behind_a_blocked_send(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    client, _server = await websocket_pair(nursery, capacity=100)
    caught: list[BaseException] = []

    async def send() -> None:
        try:
            await client.send_all(bytes(1_000_000))
        except trio.ClosedResourceError as exc:
            caught.append(exc)

    async with trio.open_nursery() as sending:
        sending.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await client.aclose()
    assert len(caught) == 1
    assert trio.current_time() == before


async def test_pings_of_the_peer_are_answered_while_nobody_reads(nursery: trio.Nursery) -> None:
    _stream, peer = await with_bare_peer(nursery)
    await peer.send(Ping(b"still there?"))
    peer.protocol.receive_data(await peer.below.receive_some())
    assert list(peer.protocol.events()) == [Pong(payload=b"still there?")]


async def test_frames_sent_before_the_101_are_not_lost(nursery: trio.Nursery) -> None:
    mine, theirs = memory_stream_pair()
    early = Connection(ConnectionType.CLIENT).send(BytesMessage(b"early"))
    await theirs.send_all(UPGRADE + early)
    request = await read_upgrade(mine, path="/tunnel/connect")
    stream = await start_websocket_server(nursery, request)
    assert await next_bytes(stream, 5) == b"early"


async def test_no_extension_is_offered_or_accepted(nursery: trio.Nursery) -> None:
    mine, theirs = memory_stream_pair()
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    await theirs.send_all(UPGRADE[:-2] + offer)
    request = await read_upgrade(mine, path="/tunnel/connect")
    await start_websocket_server(nursery, request)
    assert b"extensions" not in (await theirs.receive_some()).lower()

    mine, theirs = memory_stream_pair()
    async with trio.open_nursery() as dialling:
        dialling.start_soon(start_websocket_client, dialling, mine, TUNNEL_URL)
        assert b"extensions" not in (await theirs.receive_some()).lower()
        dialling.cancel_scope.cancel()


async def test_a_plain_yamux_peer_without_our_subprotocol_is_welcome(nursery: trio.Nursery) -> None:
    stream, _peer = await with_bare_peer(nursery)
    assert stream.subprotocol is None
    client, server = await websocket_pair(nursery)
    assert client.subprotocol == server.subprotocol == "tunnelmux.v1"


async def test_headers_of_the_101_reach_the_client(nursery: trio.Nursery) -> None:
    client, _server = await websocket_pair(
        nursery, accept_headers=[(b"Tunnelmux-Token", b"for-you")]
    )
    assert (b"tunnelmux-token", b"for-you") in client.response_headers


# ------------------------------------------------------------------------------- the reader's task


async def break_it(stream: WebSocketStream, peer: BarePeer) -> None:
    await peer.below.send_all(b"\xff\xff")
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()


async def fall_behind(stream: WebSocketStream, peer: BarePeer) -> None:
    await peer.send(BytesMessage(bytes(200_000)))
    await trio.testing.wait_all_tasks_blocked()


async def do_nothing(stream: WebSocketStream, peer: BarePeer) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("happen", [do_nothing, fall_behind, break_it])
async def test_a_closed_stream_leaves_no_task_in_its_nursery(
    happen: Callable[[WebSocketStream, BarePeer], Awaitable[None]],
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = await with_bare_peer(nursery)
    assert len(nursery.child_tasks) == 1
    await happen(stream, peer)
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks


async def test_a_connection_that_ended_is_dropped_once(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, peer = await with_bare_peer(nursery)
    closed: list[trio.abc.AsyncResource] = []
    close = MemoryStream.aclose

    async def count(self: MemoryStream) -> None:
        closed.append(self)
        await close(self)

    monkeypatch.setattr(MemoryStream, "aclose", count)
    await peer.below.aclose()  # without a Close, as when a proxy is killed
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert closed.count(stream.transport) == 1
    with pytest.raises(trio.ClosedResourceError):
        await stream.transport.receive_some()


async def test_an_error_inside_the_library_breaks_this_stream_only(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(trio_websocket.WebSocketConnection, "_handle_ping_event", fail)
    other, _ = await with_bare_peer(nursery)
    stream, peer = await with_bare_peer(nursery)
    with capture_logs() as logs:
        await peer.send(Ping())
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    assert [line["event"] for line in logs] == ["websocket failed"]
    await other.send_all(b"goes on")
    await trio.testing.wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == 1


async def test_an_error_inside_the_library_ends_the_handshake(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(trio_websocket.WebSocketConnection, "_handle_request_event", fail)
    with trio.fail_after(20), pytest.raises(ConnectError, match="failed: a bug"):
        await with_bare_peer(nursery)
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks


async def test_a_handshake_that_was_cancelled_leaves_nothing_behind(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        mine, theirs = memory_stream_pair()
        await theirs.send_all(UPGRADE)
        request = await read_upgrade(mine, path="/tunnel/connect")
        before = nursery.child_tasks
        started: list[WebSocketStream] = []

        async def start() -> None:
            started.append(await start_websocket_server(nursery, request))

        outcome = await cancelled_after(start, checkpoint)
        for stream in started:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await mine.send_all(b"x")
        assert nursery.child_tasks == before
        return outcome

    assert await at_every_checkpoint(attempt) >= 2


async def test_a_connection_that_breaks_under_the_request_ends_the_handshake_at_once(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    class Reset(MemoryStream):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError

    mine, _theirs = memory_stream_pair()
    mine.__class__ = Reset
    began = trio.current_time()
    with pytest.raises(ConnectError, match="broke during the handshake"):
        await start_websocket_client(nursery, mine, TUNNEL_URL)
    assert trio.current_time() == began
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks
