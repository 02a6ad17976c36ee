"""Framing: the U cases 2 to 13 (case 1 is in test_frame.py).

Each case runs against the compiled engine and the model, fed whole, byte by byte, and with a ping
behind it. The numbers are those of the conformance plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import (
    TRAILING_PING,
    LoneEngine,
    MakeLone,
    read_all,
    send_all,
)
from support.wire import ACK, FIN, SYN, Frame, pack
from tunnelmux.errors import RemoteProtocolError, SessionClosed, SessionLost
from tunnelmux.limits import Limits

if TYPE_CHECKING:
    from tunnelmux.yamux.engine import Engine

case = CaseTable()

THREE_FRAMES = pack(
    wire.update(1, flags=SYN), wire.data(1, b"hello"), wire.ping(7), wire.data(1, b"!", FIN)
)


@case("three-frames")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(THREE_FRAMES)
    stream = lone.accept()
    assert read_all(stream) == b"hello!"
    assert lone.sent() == [wire.pong(7), wire.update(1, flags=ACK)]


@case("a-thousand-frames-in-one-feed")
def _(make: MakeLone) -> None:
    lone = make()
    body = bytes(range(200))
    frames = [wire.data(1, body[i % 200 :][:1]) for i in range(998)]
    lone.feed(wire.update(1, flags=SYN), *frames, wire.update(1, flags=FIN))
    stream = lone.accept()
    assert read_all(stream) == b"".join(frame.body for frame in frames)
    assert stream.receive(1) == b""


@case("version-1")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    lone.feed_fatal(b"\x01" + wire.ping(1).pack()[1:])
    assert lone.sent() == [wire.go_away(1)]
    assert lone.engine.is_closed


@case("an-HTTP-request-is-no-yamux")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    lone.feed_fatal(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
    assert lone.sent() == [wire.go_away(1)]


@case("type-4")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed_fatal(Frame(4, 0, 0, 0))
    assert lone.sent() == [wire.go_away(1)]


@case("type-255")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed_fatal(Frame(255, SYN, 1, 0))
    assert lone.sent() == [wire.go_away(1)]
    with pytest.raises(RemoteProtocolError):
        stream.send(b"x")


@case("undefined-flags-are-ignored")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN | 0x8000), wire.data(1, b"hi", FIN | 0x0FF0))
    stream = lone.accept()
    assert read_all(stream) == b"hi"
    assert stream.receive(1) == b""
    lone.feed(wire.ping(3, SYN | 0x10))
    assert lone.sent() == [wire.update(1, flags=ACK), wire.pong(3)][::-1]


@case("a-body-of-four-gigabytes-is-refused-at-its-header")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    stream = lone.accepted()
    lone.feed_fatal(Frame(wire.DATA, 0, 1, 2**32 - 1))
    assert stream.unread_bytes == lone.engine.unread_bytes == 0
    assert lone.sent() == [wire.go_away(1)]


@case("eof-inside-a-header")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    lone.feed(wire.ping(1))
    lone.feed_raw(wire.ping(2).pack()[:5])
    lone.engine.receive_eof(lone.now)
    assert isinstance(lone.engine.error, SessionLost)


@case("eof-between-frames-with-nothing-live-is-clean")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.ping(1))
    lone.engine.receive_eof(lone.now)
    assert type(lone.engine.error) is SessionClosed
    assert not isinstance(lone.engine.error, SessionLost)


@case("eof-inside-a-body")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    stream = lone.accepted()
    lone.feed_raw(wire.data(1, b"all of it", FIN).pack()[:-4])
    lone.engine.receive_eof(lone.now)
    assert stream.receive(100) == b"all o"
    with pytest.raises(SessionLost):
        stream.receive(100)


@case("a-slow-body-is-delivered-in-parts")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    stream = lone.accepted()
    raw = wire.data(1, b"abcdefgh", FIN).pack()
    lone.feed_raw(raw[:15])
    assert stream.readable
    assert stream.receive(100) == b"abc"
    assert stream.receive(100) is None
    assert not stream.readable
    lone.feed_raw(raw[15:19])
    assert stream.receive(100) == b"defg"
    lone.feed_raw(raw[19:])
    assert stream.receive(100) == b"h"
    assert stream.receive(100) == b""


@case("empty-data-does-nothing")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b""))
    assert stream.receive(10) is None
    assert not stream.readable
    assert lone.sent() == []


@case("golden-open")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.engine.open_stream(0.0)
    golden(lone, "00 01 0001 00000001 00000000")
    lone = make(is_client=False)
    lone.engine.open_stream(0.0)
    golden(lone, "00 01 0001 00000002 00000000")


@case("golden-accept")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN))
    lone.sent()
    lone.accept()
    golden(lone, "00 01 0002 00000001 00000000")


@case("golden-first-data-of-an-accepted-stream")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(0x01020305, flags=SYN))
    lone.sent()
    send_all(lone.accept(), b"hi")
    golden(lone, "00 00 0002 01020305 00000002 6869")


@case("golden-first-data-of-an-opened-stream")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    send_all(lone.engine.open_stream(0.0), b"hi")
    golden(lone, "00 00 0001 00000001 00000002 6869")


@case("golden-open-send-finish")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.engine.open_stream(0.0)
    send_all(stream, b"hi")
    stream.finish()
    golden(lone, "00 00 0001 00000001 00000002 6869 00 01 0004 00000001 00000000")


@case("golden-data")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    send_all(stream, b"\x00\xff")
    golden(lone, "00 00 0000 00000001 00000002 00ff")


@case("golden-last-data")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    send_all(stream, b"end")
    stream.finish()
    golden(lone, "00 00 0000 00000001 00000003 656e64 00 01 0004 00000001 00000000")


@case("golden-finish-alone")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.open().finish()
    golden(lone, "00 01 0004 00000001 00000000")


@case("golden-reset")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.open().reset(5)
    golden(lone, "00 01 0008 00000001 00000005")


@case("golden-window-update")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    lone.feed(wire.data(1, bytes(262_144)))
    lone.sent()
    assert len(read_all(stream)) == 262_144
    golden(lone, "00 01 0000 00000001 00040000")


@case("golden-pong")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed_raw(wire.ping(0xDEADBEEF).pack())
    golden(lone, "00 02 0002 00000000 deadbeef")


@case("golden-ping")
def _(make: MakeLone) -> None:
    lone = make()
    lone.engine.ping(0.0)
    sent = lone.engine.data_to_send(0.0)
    assert sent[:8] == bytes.fromhex("00 02 0001 00000000")
    assert len(sent) == 12


@case("golden-go-away")
def _(make: MakeLone) -> None:
    lone = make()
    lone.accepted()
    lone.engine.go_away()
    golden(lone, "00 03 0000 00000000 00000000")


@case("golden-protocol-error")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed_fatal(Frame(9, 0, 0, 0))
    golden(lone, "00 03 0000 00000000 00000001")


def golden(lone: LoneEngine, expected: str) -> None:
    """The engine sends exactly these bytes, given in hexadecimal."""
    sent = lone.engine.data_to_send(lone.now)
    trailing = wire.pong(TRAILING_PING).pack()
    assert sent.replace(trailing, b"").hex(" ") == bytes.fromhex(expected).hex(" ")


@pytest.mark.parametrize("script", case.rows)
def test_framing(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)


@pytest.mark.parametrize("cut", range(1, len(THREE_FRAMES)), ids=lambda cut: f"cut-at-{cut}")
def test_every_cut_gives_the_same(cut: int, engine_type: type[Engine]) -> None:
    # Growing windows would send pings of their own.
    lone = LoneEngine(engine_type(is_client=False, limits=Limits(max_stream_window=262_144)))
    lone.feed_raw(THREE_FRAMES[:cut])
    lone.feed_raw(THREE_FRAMES[cut:])
    assert read_all(lone.accept()) == b"hello!"
    assert lone.sent() == [wire.pong(7), wire.update(1, flags=ACK)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(
    kind: Callable[[bytes], bytes | bytearray | memoryview], engine_type: type[Engine]
) -> None:
    engine = engine_type(is_client=False)
    engine.receive_data(kind(THREE_FRAMES), 0.0)
    stream = engine.accept_stream()
    assert stream is not None
    assert stream.send(kind(b"0123456789"), 4) == 6
    sent = wire.unpack(engine.data_to_send(0.0))
    assert sent[-1] == wire.data(1, b"456789", ACK)


def test_what_is_sent_is_copied(engine_type: type[Engine]) -> None:
    engine = engine_type(is_client=True)
    buffer = bytearray(b"first")
    engine.open_stream(0.0).send(buffer)
    buffer[:] = b"other"
    assert wire.unpack(engine.data_to_send(0.0)) == [wire.data(1, b"first", SYN)]


def test_nothing_more_is_taken_once_closed(engine_type: type[Engine]) -> None:
    lone = LoneEngine(engine_type(is_client=False))
    lone.engine.close()
    lone.engine.receive_data(THREE_FRAMES, 0.0)
    assert lone.engine.accept_stream() is None
    assert lone.sent() == [wire.go_away(0)]
