"""Opening and acknowledging: the U cases 14 to 38.

Elsewhere: 35 (a cancelled wait for a slot) needs tasks and is tested with the Session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import MakeLone, read_all, send_all
from support.wire import ACK, FIN, RST, SYN
from tunnelmux.errors import (
    LocalProtocolError,
    SessionClosed,
    StreamIdsExhausted,
    StreamRefused,
    StreamReset,
    TooManyStreams,
)

case = CaseTable()
KIB = 1024
MIB = 1024 * 1024


@case("offered-then-accepted")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN))
    assert lone.sent() == []
    assert (lone.engine.accept_pending, lone.engine.stream_count) == (1, 1)
    stream = lone.accept()
    assert (stream.id, stream.is_outbound) == (1, False)
    assert lone.engine.accept_pending == 0
    assert lone.engine.accept_stream() is None
    assert lone.sent() == [wire.update(1, flags=ACK)]
    assert lone.sent() == []
    send_all(stream, b"more")
    assert lone.sent() == [wire.data(1, b"more")]


@case("data-with-the-syn")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.data(1, b"hi", SYN))
    stream = lone.accept()
    assert stream.readable
    assert read_all(stream) == b"hi"
    assert stream.receive(1) is None
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("data-and-fin-with-the-syn")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.data(1, b"hi", SYN | FIN))
    stream = lone.accept()
    assert read_all(stream) == b"hi"
    assert stream.receive(1) == b""
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("syn-and-fin")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN | FIN))
    stream = lone.accept()
    assert stream.readable
    assert stream.receive(1) == b""
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("fin-before-the-accept-does-not-lose-the-ack")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN), wire.data(1, b"", FIN))
    lone.accept()
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("ack-on-the-first-of-our-frames-only")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN | FIN))
    stream = lone.accept()
    send_all(stream, b"x" * 20_000)
    stream.finish()
    frames = lone.sent()
    assert b"".join(frame.body for frame in frames) == b"x" * 20_000
    assert [frame.flags for frame in frames] == [ACK, 0, FIN]
    assert lone.engine.stream_count == 0


@case("accept-answer-finish")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN | FIN))
    stream = lone.accept()
    send_all(stream, b"answer")
    stream.finish()
    assert lone.sent() == [wire.data(1, b"answer", ACK), wire.update(1, flags=FIN)]


@case("no-fin-with-the-ack")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN))
    lone.accept().finish()
    assert lone.sent() == [wire.update(1, flags=ACK), wire.update(1, flags=FIN)]


@case("syn-and-rst-offer-nothing")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN | RST), wire.data(3, b"body", SYN | RST))
    assert lone.engine.accept_stream() is None
    assert lone.engine.stream_count == 0
    assert lone.sent() == []


@case("syn-with-a-mebibyte-of-credit")
def _(make: MakeLone) -> None:
    lone = make(stream_send_buffer=2 * MIB)
    lone.feed(wire.update(1, MIB, SYN))
    stream = lone.accept()
    assert stream.send_credit == MIB + 256 * KIB
    send_all(stream, bytes(2 * MIB))
    assert sum(frame.length for frame in lone.sent()) == MIB + 256 * KIB
    assert stream.send_credit == 0


@case("syn-with-too-much-credit")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed_fatal(wire.update(1, 2**32 - 1, SYN))
    assert lone.engine.stream_count == 0
    assert lone.engine.accept_stream() is None
    assert lone.sent() == [wire.go_away(1)]


@case("syn-with-the-most-credit-there-can-be")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, 2**32 - 1 - 256 * KIB, SYN))
    assert lone.accept().send_credit == 2**32 - 1


@case("even-id-from-a-client")
def _(make: MakeLone) -> None:
    lone = make(is_client=False, judged=False)
    lone.feed_fatal(wire.update(2, flags=SYN))
    assert lone.sent() == [wire.go_away(1)]


@case("odd-id-from-a-server")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, judged=False)
    lone.feed_fatal(wire.data(1, b"x", SYN))
    assert lone.sent() == [wire.go_away(1)]


@case("id-0-from-a-client")
def _(make: MakeLone) -> None:
    lone = make(is_client=False)
    lone.feed_fatal(wire.update(0, flags=SYN))
    assert lone.sent() == [wire.go_away(1)]


@case("id-0-from-a-server")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.feed_fatal(wire.update(0, flags=SYN))
    assert lone.sent() == [wire.go_away(1)]


@case("the-same-syn-twice")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed_fatal(wire.update(1, flags=SYN))
    assert lone.sent() == [wire.go_away(1)]
    assert stream.error is lone.engine.error


@case("the-same-syn-twice-before-the-accept")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN))
    lone.feed_fatal(wire.data(1, b"x", SYN))


@case("a-finished-id-may-be-used-again")
def _(make: MakeLone) -> None:
    lone = make()
    first = lone.accepted()
    first.finish()
    assert lone.sent() == [wire.update(1, flags=FIN)]
    lone.feed(wire.update(1, flags=FIN))
    assert first.receive(1) == b""
    assert lone.engine.stream_count == 0
    lone.feed(wire.data(1, b"again", SYN))
    assert read_all(lone.accept()) == b"again"
    assert first.receive(1) == b""
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("a-reset-id-may-be-used-again")
def _(make: MakeLone) -> None:
    lone = make()
    first = lone.accepted()
    lone.feed(wire.reset(1), wire.data(1, b"again", SYN))
    second = lone.accept()
    assert second is not first
    assert read_all(second) == b"again"
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("ids-out-of-order")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(5, flags=SYN), wire.update(3, flags=SYN))
    assert [lone.accept().id, lone.accept().id] == [5, 3]
    assert sorted(lone.sent()) == [wire.update(3, flags=ACK), wire.update(5, flags=ACK)]


@case("syn-with-ack-is-a-syn")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN | ACK))
    lone.accept()
    assert lone.sent() == [wire.update(1, flags=ACK)]


@case("stray-ack-on-a-stream-of-theirs")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.update(1, flags=ACK), wire.data(1, b"x", ACK))
    assert read_all(stream) == b"x"
    assert lone.sent() == []


@case("second-ack-on-a-stream-of-ours-frees-no-other-slot")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.opening(), lone.opening()
    lone.feed(wire.update(1, flags=ACK), wire.update(1, flags=ACK))
    assert lone.engine.unacked_opens == 1


@case("ack-for-an-unknown-stream")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.opening()
    lone.feed(wire.update(7, flags=ACK), wire.update(8, flags=ACK))
    assert lone.engine.unacked_opens == 1
    assert not lone.engine.is_closed
    assert lone.sent() == []


@case("data-without-ack-establishes")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.opening()
    assert lone.engine.unacked_opens == 1
    assert not stream.is_acknowledged
    lone.feed(wire.data(1, b"hello"))
    assert stream.is_acknowledged
    assert lone.engine.unacked_opens == 0
    assert read_all(stream) == b"hello"


@case("fin-alone-establishes")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.opening()
    lone.feed(wire.update(1, flags=FIN))
    assert stream.is_acknowledged
    assert lone.engine.unacked_opens == 0
    assert stream.receive(1) == b""
    send_all(stream, b"still open this way")
    assert lone.sent() == [wire.data(1, b"still open this way")]


@case("refused")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.opening()
    lone.feed(wire.reset(1, 3))
    assert (lone.engine.unacked_opens, lone.engine.stream_count) == (0, 0)
    for attempt in (lambda: stream.send(b"x"), lambda: stream.receive(1), stream.finish):
        with pytest.raises(StreamRefused) as caught:
            cast(Callable[[], object], attempt)()
        assert caught.value.code == 3
    assert lone.sent() == []


@case("reset-after-an-answer-is-no-refusal")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    lone.feed(wire.reset(1))
    with pytest.raises(StreamReset) as caught:
        stream.receive(1)
    assert not isinstance(caught.value, StreamRefused)


@case("closed-before-the-ack-256-times")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    for _ in range(256):
        lone.engine.open_stream(lone.now).close(lone.now)
    assert not lone.engine.can_open
    lone.sent()
    lone.feed(*(wire.update(1 + 2 * i, flags=FIN) for i in range(256)))
    assert (lone.engine.unacked_opens, lone.engine.stream_count) == (0, 0)
    assert lone.engine.can_open
    assert lone.opening().id == 513


@case("reset-before-the-ack-gives-the-slot-back")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, max_unacked_opens=1)
    for _ in range(5):
        stream = lone.opening()
        assert not lone.engine.can_open
        stream.reset()
        assert lone.sent() == [wire.reset(stream.id)]
        assert lone.engine.can_open


@case("the-257th-waits-for-the-first-ack")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    for _ in range(256):
        lone.engine.open_stream(lone.now)
    assert not lone.engine.can_open
    with pytest.raises(LocalProtocolError):
        lone.engine.open_stream(lone.now)
    lone.sent()
    lone.feed(wire.update(101, flags=ACK))
    assert lone.engine.can_open
    assert lone.opening().id == 513
    assert not lone.engine.can_open


@case("max-streams-of-ours")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, max_streams=2)
    first = lone.open()
    lone.opening()
    with pytest.raises(TooManyStreams):
        lone.engine.open_stream(lone.now)
    first.reset()
    assert lone.sent() == [wire.reset(1)]
    assert lone.opening().id == 5


@case("data-follows-the-syn-in-one-flush")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.engine.open_stream(lone.now)
    send_all(stream, b"a" * 20_000)
    frames = wire.unpack(lone.engine.data_to_send(lone.now))
    assert b"".join(frame.body for frame in frames) == b"a" * 20_000
    assert [frame.flags for frame in frames] == [SYN, 0]


@case("the-syn-goes-without-data-too")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.engine.open_stream(lone.now)
    assert lone.engine.wants_send
    assert lone.sent() == [wire.update(1, flags=SYN)]
    send_all(stream, b"later")
    assert lone.sent() == [wire.data(1, b"later")]


@case("open-and-finish-in-one-frame")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.engine.open_stream(lone.now).finish()
    assert lone.sent() == [wire.update(1, flags=SYN | FIN)]


@case("late-ack-for-a-stream-nobody-accepts")
def _(make: MakeLone) -> None:
    lone = make(ack_delay=2.0, keepalive_interval=100.0)
    lone.feed(wire.update(1, flags=SYN))
    assert lone.engine.next_deadline() == 2.0
    lone.advance(1.9)
    assert lone.sent() == []
    lone.advance(0.1)
    assert lone.sent() == [wire.update(1, flags=ACK)]
    assert lone.engine.accept_pending == 1
    stream = lone.accept()
    assert lone.sent() == []
    send_all(stream, b"x")
    assert lone.sent() == [wire.data(1, b"x")]


@case("no-late-ack-once-accepted")
def _(make: MakeLone) -> None:
    lone = make(ack_delay=2.0, keepalive_interval=100.0)
    lone.accepted()
    lone.advance(5.0)
    assert lone.sent() == []


@case("ids-used-up")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, first_stream_id=2**32 - 3)
    assert [lone.opening().id, lone.opening().id] == [2**32 - 3, 2**32 - 1]
    with pytest.raises(StreamIdsExhausted):
        lone.engine.open_stream(lone.now)
    assert (lone.engine.stream_count, lone.engine.unacked_opens) == (2, 2)


@case("nothing-opens-after-the-end")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.engine.close()
    with pytest.raises(SessionClosed):
        lone.engine.open_stream(lone.now)
    with pytest.raises(SessionClosed):
        lone.engine.ping(lone.now)


@case("no-flush-is-bigger-than-asked-for")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    send_all(stream, b"q" * 10_000)
    frames = lone.sent(max_bytes=3_000)
    assert b"".join(frame.body for frame in frames) == b"q" * 10_000
    assert all(frame.type == wire.DATA for frame in frames)


@pytest.mark.parametrize("script", case.rows)
def test_opening(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)
