"""The end of a session: the U cases 90 to 98.

Elsewhere, with the Session: 94 (the GoAway reaches the peer before the transport closes), 95 (a
close flushes first), 99 (a stuck transport), 100 (an unread GoAway and a failed write).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import MakeLone, read_all, send_all
from support.wire import ACK, FIN, SYN, Frame
from tunnelmux.errors import (
    RemoteProtocolError,
    SessionClosed,
    SessionDraining,
    SessionGoneAway,
    SessionLost,
    StreamRefused,
)

case = CaseTable()


@case("go-away-0-lets-live-streams-go-on")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    lone.feed(wire.go_away(0), wire.data(1, b"still here"))
    assert lone.engine.remote_go_away and lone.engine.is_draining
    assert not lone.engine.is_closed
    assert read_all(stream) == b"still here"
    send_all(stream, b"so am I")
    assert lone.sent() == [wire.data(1, b"so am I")]
    with pytest.raises(SessionDraining):
        lone.engine.open_stream(lone.now)
    lone.feed(wire.update(1, flags=FIN))
    stream.finish()
    assert lone.sent_for(1) == [wire.update(1, flags=FIN)]
    assert stream.receive(1) == b""
    assert type(lone.engine.error) is SessionClosed


@case("go-away-0-refuses-what-was-never-answered")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    answered, asked = lone.open(), lone.opening()
    unsent = lone.engine.open_stream(lone.now)
    send_all(unsent, b"never leaves")
    lone.feed(wire.go_away(0))
    for stream in (asked, unsent):
        with pytest.raises(StreamRefused):
            stream.send(b"x")
        with pytest.raises(StreamRefused):
            stream.receive(1)
    assert answered.error is None
    assert lone.sent() == [wire.reset(asked.id)]
    assert (lone.engine.stream_count, lone.engine.unacked_opens) == (1, 0)
    assert lone.engine.queued_bytes == 0


@case("no-open-after-our-go-away")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.open()
    lone.engine.go_away()
    with pytest.raises(SessionDraining):
        lone.engine.open_stream(lone.now)


@case("our-go-away-comes-after-the-acks-of-what-was-let-in")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(*(wire.update(i, flags=SYN) for i in (1, 3, 5)))
    lone.accept()
    send_all(lone.accept(), b"data")
    lone.engine.go_away()
    frames = lone.sent()
    assert [frame.stream_id for frame in frames if frame.flags & ACK] == [1, 3, 5]
    let_in = [i for i, frame in enumerate(frames) if frame.flags & ACK]
    assert frames.index(wire.go_away(0)) > max(let_in)
    assert lone.accept().id == 5
    assert lone.sent() == []


@case("our-go-away-with-no-stream-closes-at-once")
def _(make: MakeLone) -> None:
    lone = make()
    lone.engine.go_away()
    assert lone.sent() == [wire.go_away(0)]
    assert type(lone.engine.error) is SessionClosed


@case("a-reset-of-the-last-stream-leaves-before-the-end")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.go_away(0))
    stream.reset(3)
    assert lone.sent_for(1) == [wire.reset(1, 3)]
    assert type(lone.engine.error) is SessionClosed


@pytest.mark.parametrize("code", [1, 2, 77, 0x1005])
def test_go_away_with_an_error(code: int, make_lone: MakeLone) -> None:
    lone = make_lone()
    stream = lone.accepted()
    send_all(stream, b"queued")
    lone.feed(wire.data(1, b"in time"), wire.go_away(code))
    error = lone.engine.error
    assert isinstance(error, SessionGoneAway)
    assert error.code == code
    assert str(code) in str(error)
    assert stream.receive(100) == b"in time"
    with pytest.raises(SessionGoneAway):
        stream.receive(100)
    with pytest.raises(SessionGoneAway):
        stream.send(b"x")
    assert all(frame.type == wire.GO_AWAY for frame in lone.sent())


@case("go-away-on-a-stream-id")
def _(make: MakeLone) -> None:
    lone = make()
    lone.accepted()
    lone.feed(wire.go_away(0, stream_id=5))
    assert lone.engine.remote_go_away
    assert not lone.engine.is_closed
    lone = make()
    lone.feed(wire.go_away(1, stream_id=1))
    assert isinstance(lone.engine.error, SessionGoneAway)


@case("a-second-go-away")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.go_away(0), wire.go_away(0), wire.data(1, b"live"))
    assert read_all(stream) == b"live"
    assert not lone.engine.is_closed


@case("a-protocol-error-after-an-unsent-go-away-says-so")
def _(make: MakeLone) -> None:
    lone = make()
    lone.accepted()
    lone.engine.go_away()
    lone.feed_fatal(Frame(9, 0, 0, 0))
    assert lone.sent() == [wire.go_away(1)]


@case("one-go-away-per-session")
def _(make: MakeLone) -> None:
    lone = make()
    lone.accepted()
    lone.engine.go_away()
    assert lone.sent() == [wire.go_away(0)]
    lone.feed_fatal(Frame(9, 0, 0, 0))
    assert lone.sent() == []
    lone.engine.close()
    assert lone.sent() == []


@case("the-error-names-what-was-wrong")
def _(make: MakeLone) -> None:
    lone = make(judged=False)
    error = lone.feed_fatal(b"SSH-2.0-OpenSSH_9.2\r\n")
    assert error.wire_code == 1
    assert len(str(error)) > 20


@case("what-came-before-a-loss-is-read-before-the-error")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"before"))
    lone.engine.receive_eof(lone.now)
    assert isinstance(lone.engine.error, SessionLost)
    assert stream.readable
    assert stream.receive(3) == b"bef"
    assert stream.receive(100) == b"ore"
    for _ in range(2):
        with pytest.raises(SessionLost):
            stream.receive(100)
    assert lone.engine.unread_bytes == 0


@case("what-came-before-a-protocol-error-is-read-before-it")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed_fatal(wire.data(1, b"before"), Frame(9, 0, 0, 0))
    assert stream.receive(100) == b"before"
    with pytest.raises(RemoteProtocolError):
        stream.receive(100)


@case("a-finished-receive-half-is-read-to-its-end-after-the-session")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"complete", FIN))
    lone.engine.receive_eof(lone.now)
    assert read_all(stream) == b"complete"
    assert stream.receive(1) == b""
    with pytest.raises(SessionLost):
        stream.send(b"x")


@case("a-stream-that-was-over-is-no-loss")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.update(1, flags=FIN))
    stream.finish()
    lone.sent()
    assert stream.receive(1) == b""
    lone.engine.receive_eof(lone.now)
    assert not isinstance(lone.engine.error, SessionLost)
    assert stream.receive(1) == b""


@case("nor-is-one-that-both-sides-ended-and-nobody-has-read-yet")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    stream.finish()
    assert lone.sent() == [wire.update(1, flags=FIN)]
    lone.feed(wire.data(1, b"unread"), wire.update(1, flags=FIN))
    lone.engine.receive_eof(lone.now)
    assert type(lone.engine.error) is SessionClosed
    assert read_all(stream) == b"unread"
    assert stream.receive(1) == b""


@case("nor-one-that-was-refused-and-whose-reset-has-not-left-yet")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    refused = lone.opening()
    lone.feed(wire.go_away(0))
    with pytest.raises(StreamRefused):
        refused.send(b"x")
    lone.engine.receive_eof(lone.now)
    assert not isinstance(lone.engine.error, SessionLost)


@case("close-drops-what-is-queued-and-says-go-away")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    send_all(stream, bytes(1000))
    lone.engine.ping(lone.now)
    lone.engine.close(go_away_code=2)
    assert lone.engine.is_closed
    assert lone.sent() == [wire.go_away(2)]
    assert lone.engine.queued_bytes == lone.engine.stream_count == 0
    assert not lone.engine.wants_send
    assert lone.engine.next_deadline() is None


@case("nothing-is-left-to-accept-after-the-end")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.data(1, b"unseen", SYN))
    lone.engine.close()
    assert lone.engine.accept_stream() is None
    assert lone.engine.accept_pending == lone.engine.stream_count == 0
    assert lone.engine.unread_bytes == 0


@case("only-the-first-end-counts")
def _(make: MakeLone) -> None:
    lone = make()
    first = SessionClosed("first")
    lone.engine.close(first)
    lone.engine.close(SessionClosed("second"), 2)
    lone.engine.receive_eof(lone.now)
    lone.engine.go_away()
    assert lone.engine.error is first
    assert lone.sent() == [wire.go_away(0)]


@case("streams-may-be-closed-after-the-end")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"unread"))
    lone.engine.receive_eof(lone.now)
    stream.close(lone.now)
    stream.reset()
    stream.stop_receiving()
    assert lone.sent() == []
    assert lone.engine.unread_bytes == 0


@pytest.mark.parametrize("script", case.rows)
def test_end(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)
