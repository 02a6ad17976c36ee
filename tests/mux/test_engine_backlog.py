"""The accept backlog and the limits on what a peer may open: the U cases 39 to 45."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import MakeLone, read_all, send_all
from support.wire import ACK, FIN, RST, SYN
from tunnelmux.errors import SessionClosed

case = CaseTable()


@case("300-opens-and-nobody-accepts")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(*(wire.update(1 + 2 * i, flags=SYN) for i in range(300)), wire.ping(99))
    assert lone.engine.accept_pending == lone.engine.stream_count == 256
    frames = lone.sent()
    assert frames[0] == wire.pong(99)
    assert frames[1:] == [wire.reset(1 + 2 * i) for i in range(256, 300)]
    assert [lone.accept().id for _ in range(256)] == [1 + 2 * i for i in range(256)]
    assert lone.engine.accept_stream() is None


@case("room-again-after-an-accept")
def _(make: MakeLone) -> None:
    lone = make(accept_backlog=1)
    lone.feed(wire.update(1, flags=SYN), wire.update(3, flags=SYN))
    assert lone.sent() == [wire.reset(3)]
    assert lone.accept().id == 1
    lone.feed(wire.update(5, flags=SYN))
    assert lone.accept().id == 5


@case("data-on-a-stream-nobody-accepted-blocks-no-other")
def _(make: MakeLone) -> None:
    lone = make()
    busy = lone.accepted(1)
    lone.feed(wire.data(3, bytes(262_144), SYN), wire.data(1, b"through"), wire.ping(4))
    assert read_all(busy) == b"through"
    assert lone.sent() == [wire.pong(4)]
    assert len(read_all(lone.accept())) == 262_144


@case("live-stream-limit")
def _(make: MakeLone) -> None:
    lone = make(max_streams=2)
    lone.accepted(1)
    lone.feed(wire.update(3, flags=SYN), wire.data(5, b"over", SYN), wire.update(7, flags=SYN))
    assert lone.sent() == [wire.reset(5), wire.reset(7)]
    assert lone.engine.stream_count == 2
    assert not lone.engine.is_closed
    assert lone.accept().id == 3
    assert lone.engine.accept_stream() is None


@case("both-directions-count")
def _(make: MakeLone) -> None:
    lone = make(max_streams=2)
    lone.accepted(1)
    lone.open()
    lone.feed(wire.update(3, flags=SYN))
    assert lone.sent() == [wire.reset(3)]


@case("room-again-after-an-end")
def _(make: MakeLone) -> None:
    lone = make(max_streams=1)
    lone.accepted(1)
    lone.feed(wire.reset(1), wire.update(3, flags=SYN))
    assert lone.accept().id == 3
    assert lone.sent() == [wire.update(3, flags=ACK)]


@case("the-body-of-a-refused-open-is-skipped")
def _(make: MakeLone) -> None:
    lone = make(accept_backlog=1)
    looks_like_a_frame = wire.go_away(1).pack() * 50
    lone.feed(
        wire.data(1, b"first", SYN),
        wire.data(3, looks_like_a_frame, SYN),
        wire.data(3, looks_like_a_frame),
        wire.data(1, b" second", FIN),
    )
    assert read_all(lone.accept()) == b"first second"
    assert lone.sent() == [wire.reset(3), wire.update(1, flags=ACK)]


@case("refusals-nobody-reads")
def _(make: MakeLone) -> None:
    lone = make(accept_backlog=1, pending_resets=10)
    lone.feed(*(wire.update(1 + 2 * i, flags=SYN) for i in range(11)))
    assert not lone.engine.is_closed
    lone.feed_fatal(wire.update(101, flags=SYN))
    assert lone.sent() == [wire.go_away(1)]


@case("refusals-that-are-read")
def _(make: MakeLone) -> None:
    lone = make(accept_backlog=1, pending_resets=10)
    lone.feed(wire.update(1, flags=SYN))
    for first in range(3, 203, 20):
        lone.feed(*(wire.update(first + 2 * i, flags=SYN) for i in range(10)))
        assert lone.sent() == [wire.reset(first + 2 * i) for i in range(10)]


@case("open-after-our-go-away")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted(1)
    lone.engine.go_away()
    assert lone.engine.is_draining
    lone.feed(wire.data(3, b"late", SYN), wire.data(1, b"goes on"))
    assert lone.sent() == [wire.reset(3), wire.go_away(0)]
    assert read_all(stream) == b"goes on"
    send_all(stream, b"too")
    assert lone.sent() == [wire.data(1, b"too")]
    assert not lone.engine.is_closed


@case("the-session-closes-with-its-last-stream")
def _(make: MakeLone) -> None:
    lone = make()
    one, three = lone.accepted(1), lone.accepted(3)
    lone.engine.go_away()
    lone.engine.go_away()
    assert lone.sent() == [wire.go_away(0)]
    one.finish()
    assert lone.sent() == [wire.update(1, flags=FIN)]
    lone.feed(wire.update(1, flags=FIN))
    assert one.receive(1) == b""
    assert not lone.engine.is_closed
    three.reset(9)
    assert lone.sent() == [wire.reset(3, 9)]
    assert lone.engine.is_closed
    assert type(lone.engine.error) is SessionClosed


@case("a-stream-reset-before-the-accept-is-never-seen")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN), wire.update(3, flags=SYN), wire.reset(1))
    assert lone.engine.accept_pending == 1
    assert lone.accept().id == 3
    assert lone.engine.accept_stream() is None
    assert lone.sent() == [wire.update(3, flags=ACK)]


@case("not-even-with-data-and-a-fin")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.data(1, b"hi", SYN | FIN), wire.update(1, flags=RST))
    assert lone.engine.accept_stream() is None
    assert (lone.engine.accept_pending, lone.engine.stream_count) == (0, 0)
    assert lone.engine.unread_bytes == 0
    assert lone.sent() == []


@case("nor-one-that-the-engine-reset")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.data(1, b"hi", SYN | FIN), wire.data(1, b"after the end"))
    assert lone.engine.accept_pending == 0
    assert lone.engine.accept_stream() is None
    assert lone.sent() == [wire.reset(1)]


@case("strays-up-to-the-limit")
def _(make: MakeLone) -> None:
    lone = make(max_stray_frames=10)
    stream = lone.accepted(1)
    for _ in range(3):
        lone.feed(*(wire.data(99, b"stray") for _ in range(10)))
        lone.feed(wire.data(1, b"good"))
    assert read_all(stream) == b"good" * 3
    lone.feed(*(wire.update(99, 5) for _ in range(10)))
    assert not lone.engine.is_closed
    lone.feed_fatal(wire.update(99, flags=FIN))
    assert lone.sent() == [wire.go_away(1)]


@pytest.mark.parametrize("script", case.rows)
def test_backlog(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)
