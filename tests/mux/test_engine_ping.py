"""Pings and keepalive: the U cases 82 to 89."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import MakeLone, read_all
from support.wire import ACK, PING, SYN, Frame
from tunnelmux.errors import SessionClosed, SessionTimeout

case = CaseTable()


@case("echo")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.ping(0xDEADBEEF))
    assert lone.sent() == [wire.pong(0xDEADBEEF)]
    assert lone.sent() == []


@case("ping-on-a-stream-id-is-answered-on-the-session")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.ping(6, stream_id=5))
    assert lone.sent() == [wire.pong(6)]


@case("ping-without-flags-is-ignored")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.ping(6, flags=0))
    assert lone.sent() == []


@case("ping-with-both-flags-is-answered-once")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.ping(6, flags=SYN | ACK))
    assert lone.sent() == [wire.pong(6)]


@case("an-answer-nobody-asked-for")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.pong(1), wire.pong(0))
    assert lone.sent() == []
    assert lone.engine.pings_answered == 0
    assert lone.engine.rtt is None


@case("an-answer-with-another-value")
def _(make: MakeLone) -> None:
    lone = make()
    lone.engine.ping(lone.now)
    (request,) = lone.sent()
    lone.feed(wire.pong(request.length + 1))
    assert lone.engine.pings_answered == 0


@case("an-answer-before-the-question-left")
def _(make: MakeLone) -> None:
    lone = make()
    lone.engine.ping(lone.now)
    lone.feed(wire.pong(0), wire.pong(1))
    assert lone.engine.pings_answered == 0
    (request,) = lone.sent()
    assert request.type == PING


@case("a-flood-of-pings-is-bounded")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    stream = lone.accepted()
    lone.feed_raw(b"".join(wire.ping(i).pack() for i in range(20_000)))
    lone.feed_raw(wire.data(1, b"not blocked").pack())
    assert read_all(stream) == b"not blocked"
    assert lone.sent() == [wire.pong(i) for i in range(20_000 - 32, 20_000)]


@case("too-many-pings-in-a-second-end-the-session")
def _(make: MakeLone) -> None:
    lone = make(max_pings_per_second=10, judged=False)
    for second in range(3):
        lone.now = second * 1.0
        lone.feed_raw(wire.ping(second).pack() * 10)
        assert not lone.engine.is_closed
    lone.feed_fatal(wire.ping(1))
    assert lone.sent() == [wire.go_away(1)]


@case("callers-share-a-ping")
def _(make: MakeLone) -> None:
    lone = make()
    engine = lone.engine
    first = engine.ping(1.0)
    assert engine.ping(1.0) == first
    lone.now = 1.0
    (request,) = lone.sent()
    assert engine.ping(1.1) == first
    assert lone.sent() == []
    assert engine.pings_answered < first
    lone.now = 1.25
    lone.feed(wire.pong(request.length))
    assert engine.pings_answered == first
    assert engine.rtt == pytest.approx(0.25)
    assert engine.ping(2.0) == first + 1
    (second,) = lone.sent()
    assert second.length != request.length


@case("silence-is-asked-about-then-ends-the-session")
def _(make: MakeLone) -> None:
    lone = make(keepalive_interval=10.0, keepalive_timeout=8.0)
    stream = lone.accepted()
    assert lone.engine.next_deadline() == 10.0
    lone.advance(9.9)
    assert lone.sent() == []
    lone.advance(0.1)
    (request,) = lone.sent()
    assert (request.type, request.flags) == (PING, SYN)
    assert lone.engine.next_deadline() == 18.0
    lone.advance(7.9)
    assert not lone.engine.is_closed
    lone.advance(0.1)
    assert isinstance(lone.engine.error, SessionTimeout)
    assert isinstance(stream.error, SessionTimeout)
    assert lone.engine.next_deadline() is None


@case("the-time-runs-even-when-the-ping-could-not-leave")
def _(make: MakeLone) -> None:
    lone = make(keepalive_interval=10.0, keepalive_timeout=8.0)
    lone.advance(17.9)
    assert not lone.engine.is_closed
    lone.advance(0.2)
    assert isinstance(lone.engine.error, SessionTimeout)


@case("any-byte-counts-as-life")
def _(make: MakeLone) -> None:
    lone = make(keepalive_interval=10.0, keepalive_timeout=8.0, judged=False)
    stream = lone.accepted()
    lone.feed_raw(wire.data(1, bytes(100)).pack()[:12])
    for _ in range(50):
        lone.advance(17.0)  # the ping of each silence is never answered
        lone.feed_raw(b"\0")
    assert not lone.engine.is_closed
    assert stream.unread_bytes == 50
    assert len([frame for frame in lone.sent() if frame.type == PING]) == 1


@case("an-answer-starts-the-wait-again")
def _(make: MakeLone) -> None:
    lone = make(keepalive_interval=10.0, keepalive_timeout=8.0)
    for _ in range(5):
        lone.advance(10.0)
        (request,) = lone.sent()
        lone.now += 1.0
        lone.feed(wire.pong(request.length))
        assert lone.engine.next_deadline() == lone.now + 10.0
    assert lone.engine.pings_answered == 5


@case("deadlines-that-are-not-due-do-nothing")
def _(make: MakeLone) -> None:
    lone = make()
    lone.engine.handle_deadline(0.0)
    lone.engine.handle_deadline(9.0)
    assert lone.sent() == []
    lone.engine.close()
    lone.sent()
    lone.engine.handle_deadline(1000.0)
    assert type(lone.engine.error) is SessionClosed


@case("never-two-answers-for-one-ping")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.ping(5), wire.ping(5), wire.ping(6))
    assert lone.sent() == [wire.pong(5), wire.pong(5), wire.pong(6)]
    lone.feed(Frame(PING, SYN, 0, 5))
    assert lone.sent() == [wire.pong(5)]


@pytest.mark.parametrize("script", case.rows)
def test_ping(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)
