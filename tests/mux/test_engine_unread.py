"""What waits for readers of a session has a bound, whatever the protocol grants to each stream."""

from __future__ import annotations

import pytest

from support import wire
from support.lone_engine import LoneEngine
from support.wire import SYN
from tunnelmux.errors import StreamReset
from tunnelmux.limits import Limits
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream

KIB = 1024


def lone(**limits: int) -> LoneEngine:
    return LoneEngine(Engine(is_client=False, limits=Limits(**limits)))


def fill(lone: LoneEngine, stream_id: int, size: int) -> None:
    """The peer sends so much on this stream."""
    for _ in range(size // (16 * KIB)):
        lone.feed(wire.data(stream_id, bytes(16 * KIB)))
        lone.now += 0.01


def opened(lone: LoneEngine, count: int) -> list[EngineStream]:
    lone.feed(*(wire.update(2 * at + 1, flags=SYN) for at in range(count)))
    return [lone.accept() for _ in range(count)]


@pytest.mark.parametrize("max_stream_window", [262_144, 16_777_216], ids=["fixed", "growing"])
def test_the_stillest_reader_makes_room(max_stream_window: int) -> None:
    engine = lone(max_unread_bytes=512 * KIB, max_stream_window=max_stream_window)
    still, second, light, live = opened(engine, 4)
    fill(engine, still.id, 256 * KIB)
    fill(engine, light.id, 32 * KIB)
    fill(engine, second.id, 224 * KIB)
    assert engine.engine.unread_bytes == 512 * KIB
    assert still.error is None
    fill(engine, live.id, 16 * KIB)
    assert isinstance(still.error, StreamReset)
    assert "limits.max_unread_bytes" in str(still.error)
    assert still.unread_bytes == 0
    assert wire.reset(still.id) in engine.sent()
    assert [stream.error for stream in (second, light, live)] == [None] * 3
    assert engine.engine.unread_bytes == (512 + 16 - 256) * KIB


def test_a_flood_of_streams_takes_no_more_than_that() -> None:
    """A peer could fill 256 KiB of each of 1,024 streams."""
    engine = lone(max_unread_bytes=2048 * KIB)
    for at in range(200):
        engine.feed(wire.update(2 * at + 1, flags=SYN))
        fill(engine, engine.accept().id, 256 * KIB)
        engine.sent()
        assert engine.engine.unread_bytes <= 2048 * KIB
    assert not engine.engine.is_closed


def test_a_reader_that_reads_keeps_its_stream() -> None:
    engine = lone(max_unread_bytes=512 * KIB)
    live, *others = opened(engine, 20)
    for other in others:
        fill(engine, other.id, 128 * KIB)
        fill(engine, live.id, 128 * KIB)
        live.receive(128 * KIB)
        engine.sent()
    assert live.error is None
    assert sum(other.error is None for other in others) == 3


def test_streams_with_little_are_never_reset() -> None:
    engine = lone(max_unread_bytes=64 * KIB)
    streams = opened(engine, 20)
    for stream in streams:
        fill(engine, stream.id, 32 * KIB)
    assert {stream.error for stream in streams} == {None}
