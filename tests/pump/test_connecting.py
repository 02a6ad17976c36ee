"""A relay whose socket is still being connected when its stream comes."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
import trio

from support.carried import WAYS, carried_sessions
from tunnelmux.mux import Session
from tunnelmux.relay import reset_socket
from tunnelmux.yamux.streams import EngineStream

HEAD = b"CONNECT db HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"
LAST_WORDS = b"FATAL: sorry, too many clients already\n" * 300


class Connector:
    """Gives the streams that a session is offered to one socket."""

    def __init__(self, session: Session, local: socket.socket) -> None:
        self.session = session
        self.local = local
        self.outcome: str | None = None
        self.over = trio.Event()
        session.on_offer = self.offer

    def offer(self, stream: EngineStream) -> bool:
        self.relay = self.session.relay_offer(
            stream, self.local, self, head_size=len(HEAD), answer=ANSWER
        )
        return True

    def on_news(self) -> None:
        self.outcome = self.relay.outcome
        self.over.set()


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket whose connecting the kernel has finished, and its peer."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as local,
        server.accept()[0] as peer,
    ):
        local.setblocking(False)
        yield local, peer


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("pump")])
@pytest.mark.parametrize("spoken", [True, False])
async def test_a_target_that_reset_before_it_was_looked_at(
    way: str, spoken: bool, connected: tuple[socket.socket, socket.socket]
) -> None:
    """With last words it was connected, and they arrive; without it could not be connected."""
    local, peer = connected
    if spoken:
        peer.sendall(LAST_WORDS)
    reset_socket(peer)
    poll = select.poll()
    poll.register(local, 0)
    assert poll.poll(5_000), "the reset has come"
    async with carried_sessions(way) as (client, server):
        connector = Connector(server, local)
        stream = await client.open_stream()
        await stream.send_all(HEAD)
        with trio.fail_after(20):
            if spoken:
                got = bytearray()
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        got += await stream.receive_some()
                assert got == ANSWER + LAST_WORDS
            await connector.over.wait()
        assert connector.outcome == ("local broke" if spoken else "handed back")
