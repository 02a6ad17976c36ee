"""Flow control and sending: the U cases 46 to 63.

Elsewhere: 52 (sum of updates against bytes consumed) is held by the referee in every test and by
the state machine; 60 and 61 belong to window tuning, which is not built.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import MakeLone, read_all, send_all
from support.wire import ACK, FIN, SYN
from tunnelmux.errors import RemoteProtocolError

case = CaseTable()
KIB = 1024
WINDOW = 256 * KIB
FRAME = 16 * KIB


@case("a-whole-window-in-one-frame")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    body = bytes(range(256)) * KIB
    lone.feed(wire.data(1, body))
    assert stream.unread_bytes == lone.engine.unread_bytes == WINDOW
    assert stream.receive_credit == 0
    assert read_all(stream) == body


@case("one-byte-over-the-window")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed_fatal(wire.data(1, bytes(WINDOW + 1)))
    assert stream.unread_bytes == 0
    assert lone.sent() == [wire.go_away(1)]


@case("one-byte-over-the-window-with-the-syn")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed_fatal(wire.data(1, bytes(WINDOW + 1), SYN))
    assert lone.engine.stream_count == lone.engine.unread_bytes == 0
    assert lone.sent() == [wire.go_away(1)]


@case("a-window-in-frames-then-one-byte")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(*(wire.data(1, bytes([i]) * FRAME) for i in range(16)))
    assert stream.receive_credit == 0
    lone.feed_fatal(wire.data(1, b"x"))
    assert read_what_came(stream.receive) == b"".join(bytes([i]) * FRAME for i in range(16))
    assert lone.sent() == [wire.go_away(1)]


@case("no-update-while-unread")
def _(make: MakeLone) -> None:
    lone = make()
    lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW)))
    assert lone.sent() == []


@case("update-at-half-the-window")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW - FRAME)))
    assert stream.receive(WINDOW // 2 - 1) == bytes(WINDOW // 2 - 1)
    assert lone.sent() == []
    assert stream.receive(1) == b"\0"
    assert lone.sent() == [wire.update(1, WINDOW // 2)]
    assert stream.receive_credit == FRAME + WINDOW // 2


@case("update-when-less-than-a-frame-of-credit-is-left")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW - FRAME + 1)))
    assert len(stream.receive(FRAME - 1) or b"") == FRAME - 1
    assert lone.sent() == []
    stream.receive(1)
    assert lone.sent() == [wire.update(1, FRAME)]


@case("updates-are-what-was-consumed")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    granted = consumed = 0
    for i in range(100):
        lone.feed(wire.data(1, bytes(10_000)))
        consumed += len(stream.receive(7_000 + 100 * i) or b"")
        granted += sum(frame.length for frame in lone.sent())
        assert granted <= consumed
        assert stream.receive_credit + stream.unread_bytes <= WINDOW
    assert granted >= consumed - WINDOW // 2


@case("a-writer-stops-at-zero-and-goes-on-with-credit")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    send_all(stream, bytes(WINDOW))
    assert sum(frame.length for frame in lone.sent()) == WINDOW
    assert stream.send_credit == 0
    send_all(stream, b"the rest")
    assert not lone.engine.wants_send
    assert lone.sent() == []
    lone.feed(wire.update(1, 3))
    assert lone.sent() == [wire.data(1, b"the")]
    lone.feed(wire.update(1, 100))
    assert lone.sent() == [wire.data(1, b" rest")]
    assert stream.send_credit == 95


@case("zero-credit-never-times-out")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    send_all(stream, bytes(WINDOW))
    lone.sent()
    send_all(stream, b"!")
    for second in range(1, 10):
        lone.advance(10.0)
        lone.feed_raw(wire.pong(0).pack())
        assert lone.now == 10.0 * second
    assert not lone.engine.is_closed
    lone.feed(wire.update(1, 1))
    assert lone.sent_for(1) == [wire.data(1, b"!")]


@case("credit-past-the-largest-number")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.open()
    lone.feed(wire.update(1, 2**32 - 1 - WINDOW))
    lone.feed_fatal(wire.update(1, 1))
    assert lone.sent() == [wire.go_away(1)]


@case("an-update-of-nothing")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    lone.feed(wire.update(1, 0))
    assert stream.send_credit == WINDOW
    assert lone.sent() == []


@case("an-update-for-an-unknown-stream")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.feed(wire.update(1, 2**32 - 1), wire.update(77, 5), wire.update(2, 5))
    assert lone.sent() == []
    assert not lone.engine.is_closed


@case("an-update-after-our-fin")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    stream.finish()
    lone.sent()
    lone.feed(wire.update(1, 2**32 - 1), wire.update(1, 2**32 - 1), wire.data(1, b"fine", FIN))
    assert read_all(stream) == b"fine"


@case("no-update-after-the-peers-fin")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW), FIN))
    assert len(read_all(stream)) == WINDOW
    assert lone.sent() == []


@case("an-update-that-was-due-is-forgotten-at-the-fin")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW)))
    assert len(read_all(stream)) == WINDOW
    lone.feed(wire.update(1, flags=FIN))
    assert lone.sent() == []


@case("ten-reads-one-update")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW)))
    for _ in range(10):
        stream.receive(20_000)
    assert lone.sent() == [wire.update(1, 200_000)]
    assert lone.sent() == []


@case("the-window-rises-with-the-update-not-before")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW)))
    read_all(stream)
    assert stream.receive_credit == 0
    lone.sent()
    assert stream.receive_credit == WINDOW


@case("data-before-the-update-left-is-over-the-window")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW)))
    read_all(stream)
    lone.feed_fatal(wire.data(1, b"x"))


@case("a-slow-reader-holds-one-window")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    while stream.receive_credit:
        lone.feed(wire.data(1, bytes(min(FRAME, stream.receive_credit))))
        stream.receive(10)
        lone.sent()
    assert stream.unread_bytes <= WINDOW
    assert lone.engine.unread_bytes == stream.unread_bytes


@case("bodies-on-syn-ack-and-fin-frames-count")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    ours = lone.opening()
    lone.feed(wire.data(1, bytes(1000), ACK), wire.data(2, bytes(2000), SYN))
    theirs = lone.accept()
    assert (ours.receive_credit, theirs.receive_credit) == (WINDOW - 1000, WINDOW - 2000)
    lone.feed_fatal(wire.data(1, bytes(WINDOW - 999), FIN))


# -- sending -------------------------------------------------------------------------------------


@case("a-full-stream-buffer-takes-no-more")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, stream_send_buffer=1000)
    stream = lone.open()
    assert stream.send(bytes(1500)) == 1000
    assert stream.send(b"x") == 0
    assert not stream.writable
    assert stream.queued_bytes == lone.engine.queued_bytes == 1000
    lone.engine.take_changed()
    lone.sent()
    assert stream.writable
    assert stream in lone.engine.take_changed()
    assert stream.send(b"x") == 1


@case("a-full-session-buffer-takes-no-more")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, session_send_buffer=1000, max_frame_payload=100)
    one, two = lone.open(), lone.open()
    assert one.send(bytes(700)) == 700
    assert two.send(bytes(700)) == 300
    assert not one.writable and not two.writable
    lone.engine.take_changed()
    lone.sent()
    assert one.writable and two.writable
    assert two in lone.engine.take_changed()


@case("one-frame-fits-whatever-the-others-hold")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, session_send_buffer=1000, max_frame_payload=100)
    slow, quick = lone.open(), lone.open()
    send_all(slow, bytes(1000))
    assert quick.writable
    assert quick.send(bytes(1000)) == 100
    assert not quick.writable


@case("a-reset-makes-room-for-those-who-wait")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, session_send_buffer=1000, max_frame_payload=100)
    one, two = lone.open(), lone.open()
    send_all(one, bytes(1000))
    assert two.send(bytes(200)) == 100
    assert two.send(b"x") == 0
    lone.engine.take_changed()
    one.reset()
    lone.sent()
    assert two.writable
    assert two in lone.engine.take_changed()


@case("a-reset-by-the-peer-makes-room-for-those-who-wait")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, session_send_buffer=1000, max_frame_payload=100)
    one, two = lone.open(), lone.open()
    send_all(one, bytes(1000))
    assert two.send(bytes(200)) == 100
    assert two.send(b"x") == 0
    lone.engine.take_changed()
    lone.feed(wire.reset(one.id))
    assert two.writable
    assert two in lone.engine.take_changed()


@case("frames-of-at-most-the-limit")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, max_frame_payload=1000)
    stream = lone.open()
    body = bytes(range(250)) * 10
    send_all(stream, body)
    frames = lone.sent()
    assert [frame.length for frame in frames] == [1000, 1000, 500]
    assert b"".join(frame.body for frame in frames) == body


@case("a-stream-that-was-idle-goes-first")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    bulk, more_bulk, small = lone.open(), lone.open(), lone.open()
    send_all(bulk, bytes(WINDOW))
    send_all(more_bulk, bytes(WINDOW))
    wire.unpack(lone.engine.data_to_send(lone.now))
    send_all(small, b"short question")
    frames = wire.unpack(lone.engine.data_to_send(lone.now))
    assert frames[0] == wire.data(small.id, b"short question")


@case("bulk-streams-take-turns")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    streams = [lone.open() for _ in range(4)]
    for stream in streams:
        send_all(stream, bytes(WINDOW))
    sent = dict.fromkeys((stream.id for stream in streams), 0)
    for _ in range(4):
        for frame in wire.unpack(lone.engine.data_to_send(lone.now)):
            sent[frame.stream_id] += frame.length
        assert max(sent.values()) - min(sent.values()) <= 2 * FRAME
    assert all(sent.values())


@case("a-pong-overtakes-what-is-queued")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    for _ in range(4):
        send_all(lone.open(), bytes(WINDOW))
    lone.feed_raw(wire.ping(8).pack())
    assert wire.unpack(lone.engine.data_to_send(lone.now))[0] == wire.pong(8)


@case("an-update-overtakes-what-is-queued")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    reader, writer = lone.open(), lone.open()
    lone.feed(wire.data(reader.id, bytes(WINDOW)))
    lone.sent()
    send_all(writer, bytes(WINDOW))
    read_all(reader)
    first = wire.unpack(lone.engine.data_to_send(lone.now))[0]
    assert first == wire.update(reader.id, WINDOW)


@case("the-writer-is-told-of-credit")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, stream_send_buffer=WINDOW)
    stream = lone.open()
    send_all(stream, bytes(WINDOW))
    lone.sent()
    send_all(stream, bytes(WINDOW))
    assert stream.send(b"x") == 0
    lone.engine.take_changed()
    lone.feed(wire.update(1, WINDOW))
    lone.sent()
    assert stream.writable
    assert stream in lone.engine.take_changed()


@case("the-changed-list-is-the-callers-own")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.engine.take_changed()
    kept = lone.engine.take_changed()
    assert kept == []
    lone.feed(wire.data(1, b"a"), wire.data(1, b"b"))
    assert kept == []
    assert lone.engine.take_changed() == [stream]
    assert lone.engine.take_changed() == []


@pytest.mark.parametrize("script", case.rows)
def test_flow(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)


def read_what_came(receive: Callable[[int], bytes | None]) -> bytes:
    """The bytes before the session's end, which is the protocol error."""
    parts: list[bytes] = []
    with pytest.raises(RemoteProtocolError):
        while part := receive(65_536):
            parts.append(part)
    return b"".join(parts)
