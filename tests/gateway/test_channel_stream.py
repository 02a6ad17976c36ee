"""A channel as a stream, without a connection: what asyncssh calls, and what a Trio task reads."""

from __future__ import annotations

import tracemalloc
from typing import Any, cast

from tunnelmux.gateway.channel_stream import ChannelStream
from tunnelmux.gateway.guest import Bridge


class DirectBridge:
    """Both loops in one: calls are made at once."""

    def soon(self, call: Any, *args: Any) -> None:
        call(*args)


class Channel:
    """Stops its peer, as asyncssh does."""

    is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


def new_stream() -> tuple[ChannelStream, Channel]:
    stream, channel = ChannelStream(cast("Bridge", DirectBridge()), 262_144), Channel()
    stream.connection_made(channel)
    return stream, channel


async def test_single_bytes_that_wait_cost_no_more_than_twice_their_number() -> None:
    """As objects of their own they took 11 MB for each channel of a device that sends so."""
    stream, channel = new_stream()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for sent in range(1, 20_001):
            stream.data_received(b"%d" % ((sent - 1) % 10), None)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * sent
    while channel.is_read:
        stream.data_received(b"0123456789", None)
        sent += 10
    received = b""
    while len(received) < sent:
        received += await stream.receive_some(1000)
    assert received == (b"0123456789" * sent)[:sent]
    assert channel.is_read


async def test_what_waited_comes_in_order_and_in_pieces_of_the_size_that_is_asked_for() -> None:
    stream, _ = new_stream()
    for piece in (b"ab", b"c", b"defg"):
        stream.data_received(piece, None)
    assert [await stream.receive_some(size) for size in (1, 4, 9)] == [b"a", b"bcde", b"fg"]
    stream.data_received(b"x" * 100_000, None)
    stream.eof_received()
    assert len(await stream.receive_some()) == 65_536
    assert len(await stream.receive_some()) == 100_000 - 65_536
    assert await stream.receive_some() == b""
