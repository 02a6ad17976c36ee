"""Half close, close and reset: the U cases 64 to 81."""

from __future__ import annotations

import gc
import random
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from support import wire
from support.case_table import CaseTable
from support.lone_engine import LoneEngine, MakeLone, read_all, send_all
from support.wire import FIN, RST, SYN
from tunnelmux.errors import RemoteProtocolError, SessionClosed, StreamClosed, StreamReset

if TYPE_CHECKING:
    from tunnelmux.yamux.engine import Engine
    from tunnelmux.yamux.streams import EngineStream

case = CaseTable()
KIB = 1024
WINDOW = 256 * KIB


@case("we-finish-and-the-peer-goes-on")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    stream.finish()
    assert lone.sent() == [wire.update(1, flags=FIN)]
    lone.feed(wire.data(1, b"still"), wire.data(1, b" here", FIN))
    assert read_all(stream) == b"still here"
    assert stream.receive(1) == b""
    assert lone.engine.stream_count == 0


@case("the-window-goes-on-rising-after-our-fin")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    stream.finish()
    lone.sent()
    lone.feed(wire.data(1, bytes(WINDOW)))
    assert len(read_all(stream)) == WINDOW
    assert lone.sent() == [wire.update(1, WINDOW)]


@case("data-before-the-fin-is-never-lost")
def _(make: MakeLone) -> None:
    rng = random.Random(65)
    for _ in range(20):
        lone = make()
        stream = lone.accepted()
        body, got = rng.randbytes(rng.randrange(1, 400)), b""
        cut = rng.randrange(len(body))
        lone.feed(wire.data(1, body[:cut]))
        got += stream.receive(rng.randrange(1, 300)) or b""
        lone.feed(wire.data(1, body[cut:], FIN))
        assert got + read_all(stream) == body
        assert stream.receive(1) == b""


@case("both-finish-at-once")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    send_all(stream, b"bye")
    stream.finish()
    assert lone.sent() == [wire.data(1, b"bye"), wire.update(1, flags=FIN)]
    lone.feed(wire.data(1, b"bye", FIN))
    assert read_all(stream) == b"bye"
    assert lone.engine.stream_count == 0
    assert lone.sent() == []


@case("a-second-fin-while-half-open")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.update(1, flags=FIN), wire.data(1, b"", FIN), wire.update(1, flags=FIN))
    assert stream.receive(1) == b""
    send_all(stream, b"fine")
    assert lone.sent() == [wire.data(1, b"fine")]


@case("a-second-fin-when-closed")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    stream.finish()
    lone.sent()
    lone.feed(wire.update(1, flags=FIN), wire.update(1, flags=FIN), wire.data(1, b"", FIN))
    assert lone.sent() == []
    assert not lone.engine.is_closed


@case("data-after-the-fin-resets-that-stream-only")
def _(make: MakeLone) -> None:
    lone = make()
    stream, other = lone.accepted(1), lone.accepted(3)
    lone.feed(wire.data(1, b"all", FIN), wire.data(1, b"more"), wire.data(3, b"other"))
    assert lone.sent() == [wire.reset(1)]
    assert read_all(other) == b"other"
    assert isinstance(stream.error, StreamReset)
    with pytest.raises(StreamReset):
        stream.send(b"x")
    lone.feed(wire.data(1, b"in flight"), wire.update(1, flags=FIN))
    assert lone.sent() == []
    assert not lone.engine.is_closed


@case("data-after-their-reset-is-discarded")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"why"), wire.reset(1), wire.data(1, b"ghost"), wire.ping(1))
    assert lone.sent() == [wire.pong(1)]
    assert (stream.receive(2), stream.receive(100)) == (b"wh", b"y")
    with pytest.raises(StreamReset):
        stream.receive(100)
    assert lone.engine.unread_bytes == lone.engine.stream_count == 0


@case("what-came-before-their-reset-counts-until-it-is-read-or-given-up")
def _(make: MakeLone) -> None:
    lone = make()
    for number, give_up in enumerate(("receive", "close", "stop", "reset")):
        stream = lone.accepted(1 + 2 * number)
        lone.feed(wire.data(stream.id, b"why"), wire.reset(stream.id))
        assert (lone.engine.unread_bytes, lone.engine.stream_count) == (3, 1)
        lone.feed(wire.reset(stream.id), wire.update(stream.id, 9), wire.data(stream.id, b"", FIN))
        if give_up == "receive":
            assert stream.receive(100) == b"why"
        elif give_up == "close":
            stream.close(lone.now)
        elif give_up == "stop":
            stream.stop_receiving()
        else:
            stream.reset()
        assert (lone.engine.unread_bytes, lone.engine.stream_count) == (0, 0)
        assert lone.sent() == []
        with pytest.raises((StreamReset, StreamClosed)):
            stream.receive(100)


@case("data-after-our-reset-is-discarded")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    stream.reset(4)
    lone.feed(wire.data(1, b"crossed"))
    assert lone.sent() == [wire.reset(1, 4)]
    lone.feed(wire.data(1, b"ghost", FIN), wire.update(1, 100), wire.ping(1))
    assert lone.sent() == [wire.pong(1)]
    assert lone.engine.unread_bytes == 0
    with pytest.raises(StreamReset):
        stream.receive(1)


@case("a-reset-crosses-a-reset")
def _(make: MakeLone) -> None:
    lone = make()
    lone.accepted().reset()
    lone.feed(wire.reset(1))
    assert lone.sent() in ([], [wire.reset(1)])
    lone.feed(wire.reset(1))
    assert lone.sent() == []
    assert lone.engine.stream_count == 0


@case("our-reset-drops-what-is-queued")
def _(make: MakeLone) -> None:
    lone = make()
    stream, other = lone.accepted(1), lone.accepted(3)
    send_all(stream, bytes(WINDOW))
    first = wire.unpack(lone.engine.data_to_send(lone.now))
    assert 0 < sum(frame.length for frame in first) < WINDOW
    send_all(other, b"other")
    stream.reset()
    assert lone.engine.queued_bytes == 5
    assert lone.sent() == [wire.reset(1), wire.data(3, b"other")]


@case("their-reset-drops-what-is-queued")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    send_all(stream, bytes(1000))
    stream.finish()
    lone.feed(wire.reset(1))
    assert lone.engine.queued_bytes == stream.queued_bytes == 0
    assert lone.sent() == []


@case("the-code-of-a-reset")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.reset(1, 5))
    assert isinstance(stream.error, StreamReset)
    assert stream.error.code == 5
    for half in (lambda: stream.send(b"x"), lambda: stream.receive(1)):
        with pytest.raises(StreamReset) as caught:
            half()
        assert caught.value.code == 5


@case("a-reset-on-a-data-frame")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"dead letters", RST), wire.ping(2))
    assert lone.sent() == [wire.pong(2)]
    with pytest.raises(StreamReset) as caught:
        stream.receive(100)
    assert caught.value.code == 0
    assert lone.engine.stream_count == lone.engine.unread_bytes == 0


@case("reset-and-fin-for-unknown-streams")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.reset(9), wire.update(9, flags=FIN), wire.data(9, b"x", FIN), wire.ping(3))
    assert lone.sent() == [wire.pong(3)]


@case("the-fin-follows-the-last-data-in-the-same-flush")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    send_all(stream, bytes(40_000))
    stream.finish()
    frames = wire.unpack(lone.engine.data_to_send(lone.now))
    assert [frame.length for frame in frames] == [16_384, 16_384, 7_232, 0]
    assert frames[-1] == wire.update(1, flags=FIN)


@case("the-fin-waits-for-data-that-waits-for-credit")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.open()
    send_all(stream, bytes(WINDOW))
    assert all(not frame.flags & FIN for frame in lone.sent())
    send_all(stream, b"end")
    stream.finish()
    assert lone.sent() == []
    lone.feed(wire.update(1, 2))
    assert lone.sent() == [wire.data(1, b"en")]
    lone.feed(wire.update(1, 2))
    assert lone.sent() == [wire.data(1, b"d"), wire.update(1, flags=FIN)]


@case("everything-twice")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    stream.finish()
    stream.finish()
    stream.stop_receiving()
    stream.stop_receiving()
    stream.close(lone.now)
    stream.close(lone.now)
    assert lone.sent() == [wire.update(1, flags=FIN)]
    stream.reset()
    stream.reset(7)
    stream.close(lone.now)
    assert lone.sent() == [wire.reset(1)]


@case("everything-after-the-end")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.update(1, flags=FIN))
    stream.finish()
    assert lone.sent() == [wire.update(1, flags=FIN)]
    assert stream.receive(1) == b""
    stream.finish()
    stream.stop_receiving()
    stream.close(lone.now)
    stream.reset()
    assert lone.sent() == []
    assert lone.engine.next_deadline() == 10.0  # nothing but the keepalive


@case("sending-after-finish")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    stream.finish()
    with pytest.raises(StreamClosed):
        stream.send(b"x")
    lone.feed(wire.data(1, b"in"))
    assert read_all(stream) == b"in"


@case("receiving-after-stop-receiving")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"unread"))
    stream.stop_receiving()
    assert stream.readable
    with pytest.raises(StreamClosed):
        stream.receive(1)
    assert lone.engine.unread_bytes == 0
    send_all(stream, b"out")
    assert lone.sent() == [wire.data(1, b"out")]


@case("close-with-unread-data-then-more-of-it")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(1000)))
    stream.close(lone.now)
    assert lone.sent() == [wire.update(1, flags=FIN)]
    lone.feed(wire.data(1, b"is anybody there"))
    assert lone.sent() == [wire.reset(1)]
    assert lone.engine.stream_count == lone.engine.unread_bytes == 0


@case("a-writer-stopped-at-zero-learns-that-nobody-reads")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, bytes(WINDOW)))
    stream.stop_receiving()
    assert lone.sent() == [wire.update(1, WINDOW)]
    lone.feed(wire.data(1, b"x"))
    assert lone.sent() == [wire.reset(1)]


@case("a-writer-stopped-at-zero-in-the-middle-of-a-body")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    raw = wire.data(1, bytes(WINDOW)).pack()
    lone.feed_raw(raw[:5000])
    stream.stop_receiving()
    lone.feed_raw(raw[5000:])
    granted = sum(frame.length for frame in lone.sent_for(1) if not frame.flags & RST)
    if stream.error is None:  # a reset would do as well
        assert granted == WINDOW


@case("close-after-their-fin-is-a-plain-fin")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"unread", FIN))
    stream.close(lone.now)
    assert lone.sent() == [wire.update(1, flags=FIN)]
    assert lone.engine.stream_count == lone.engine.unread_bytes == 0


@case("linger")
def _(make: MakeLone) -> None:
    lone = make(linger=5.0, keepalive_interval=1000.0)
    stream = lone.accepted()
    lone.now = 2.0
    stream.close(lone.now)
    assert lone.sent() == [wire.update(1, flags=FIN)]
    assert lone.engine.next_deadline() == 7.0
    lone.advance(4.9)
    assert lone.sent() == []
    lone.advance(0.2)
    assert lone.sent() == [wire.reset(1)]
    assert lone.engine.stream_count == 0
    assert lone.engine.next_deadline() == 1000.0


@case("no-linger-once-their-fin-came")
def _(make: MakeLone) -> None:
    lone = make(linger=5.0, keepalive_interval=1000.0)
    stream = lone.accepted()
    stream.close(lone.now)
    lone.sent()
    lone.feed(wire.update(1, flags=FIN))
    assert lone.engine.stream_count == 0
    lone.advance(10.0)
    assert lone.sent() == []


@case("linger-ends-a-close-that-waits-for-credit")
def _(make: MakeLone) -> None:
    lone = make(is_client=True, linger=5.0, keepalive_interval=1000.0)
    stream = lone.open()
    send_all(stream, bytes(WINDOW))
    lone.sent()
    send_all(stream, b"stuck")
    stream.close(lone.now)
    assert lone.sent() == []
    lone.advance(5.0)
    assert lone.sent() == [wire.reset(1)]
    assert lone.engine.queued_bytes == lone.engine.stream_count == 0


@case("a-reset-before-the-syn-left-sends-nothing")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    stream = lone.engine.open_stream(lone.now)
    send_all(stream, b"never mind")
    stream.reset()
    assert (lone.engine.stream_count, lone.engine.unacked_opens) == (0, 0)
    assert lone.engine.queued_bytes == 0
    assert lone.sent() == []
    assert lone.opening().id == 3


@case("open-and-close-in-one-turn-still-opens")
def _(make: MakeLone) -> None:
    lone = make(is_client=True)
    lone.engine.open_stream(lone.now).close(lone.now)
    assert lone.sent() == [wire.update(1, flags=SYN | FIN)]


@case("a-reset-of-what-was-offered-carries-no-ack")
def _(make: MakeLone) -> None:
    lone = make()
    lone.feed(wire.update(1, flags=SYN))
    lone.accept().reset(2)
    assert lone.sent() == [wire.reset(1, 2)]


@case("a-finished-receive-half-survives-a-reset")
def _(make: MakeLone) -> None:
    lone = make()
    stream = lone.accepted()
    lone.feed(wire.data(1, b"complete", FIN), wire.reset(1, 6))
    with pytest.raises(StreamReset):
        stream.send(b"x")
    assert read_all(stream) == b"complete"
    assert stream.receive(1) == b""


# -- who is woken by what (81) -------------------------------------------------------------------


def _fin(lone: LoneEngine) -> None:
    lone.feed(wire.update(1, flags=FIN))


def _reset(lone: LoneEngine) -> None:
    lone.feed(wire.reset(1))


def _data_reset(lone: LoneEngine) -> None:
    lone.feed(wire.data(1, b"x", RST))


def _close(lone: LoneEngine) -> None:
    lone.engine.close()


def _lost(lone: LoneEngine) -> None:
    lone.engine.receive_eof(lone.now)


def _gone(lone: LoneEngine) -> None:
    lone.feed(wire.go_away(2))


def _broken(lone: LoneEngine) -> None:
    with pytest.raises(RemoteProtocolError):
        lone.feed(wire.Frame(200, 0, 0, 0))


def _silent(lone: LoneEngine) -> None:
    lone.advance(60.0)


EVENTS = {
    "fin": (_fin, True, False),
    "reset": (_reset, True, True),
    "reset-on-data": (_data_reset, True, True),
    "close": (_close, True, True),
    "lost": (_lost, True, True),
    "gone-away": (_gone, True, True),
    "protocol-error": (_broken, True, True),
    "timeout": (_silent, True, True),
}


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_who_is_woken(event: str, make_lone: MakeLone) -> None:
    happen, wakes_reader, wakes_writer = EVENTS[event]
    lone = make_lone(judged=event != "protocol-error", stream_send_buffer=WINDOW)
    stream = lone.accepted()
    send_all(stream, bytes(WINDOW))
    lone.sent()
    send_all(stream, bytes(WINDOW))
    assert not stream.readable and not stream.writable
    lone.engine.take_changed()
    happen(lone)
    assert lone.engine.take_changed() == [stream]
    assert (stream.readable, stream.writable) == (wakes_reader, wakes_writer)
    if event == "fin":
        assert stream.receive(1) == b""
    else:
        error = stream.error
        assert error is not None
        with pytest.raises(type(error)):
            stream.receive(1)
        with pytest.raises(type(error)):
            stream.send(b"x")
        with pytest.raises(type(error)):
            stream.finish()


@pytest.mark.parametrize("script", case.rows)
def test_closing(script: Callable[[MakeLone], None], make_lone: MakeLone) -> None:
    script(make_lone)


@pytest.mark.parametrize("how", ["finish", "close", "reset", "reset-by-peer", "refused"])
def test_many_short_streams_leave_nothing(how: str, engine_type: type[Engine]) -> None:
    """In small; the memory is watched in the test below."""
    client, server = engine_type(is_client=True), engine_type(is_client=False)
    for _ in range(300):
        _one_short_stream(client, server, how)
    for engine in (client, server):
        assert not engine.is_closed
        assert engine.stream_count == engine.unacked_opens == engine.accept_pending == 0
        assert engine.unread_bytes == engine.queued_bytes == 0
        assert not engine.wants_send
        assert engine.next_deadline() == 10.0


@pytest.mark.slow  # like everything that watches resident memory: see the Makefile's `sanitize`
def test_many_short_streams_take_no_memory() -> None:
    """The compiled engine, 20,000 streams: the resident set does not grow."""
    from tunnelmux.yamux.engine import Engine

    client, server = Engine(is_client=True), Engine(is_client=False)
    hows = ("finish", "close", "reset", "reset-by-peer", "refused")
    for i in range(2_000):
        _one_short_stream(client, server, hows[i % 5])
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(20_000):
        _one_short_stream(client, server, hows[i % 5])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4 * KIB, f"the resident set grew by {grown} KiB"


def _one_short_stream(client: Engine, server: Engine, how: str) -> None:
    ours = client.open_stream(0.0)
    ours.send(b"request")
    _exchange(client, server)
    theirs = server.accept_stream()
    assert theirs is not None
    assert theirs.receive(100) == b"request"
    if how == "refused":
        theirs.reset()
    elif how == "reset":
        ours.reset()
    elif how == "reset-by-peer":
        theirs.send(b"partial")
        _exchange(client, server)
        theirs.reset()
        _exchange(client, server)
        assert ours.receive(100) == b"partial"
    else:
        theirs.send(b"response")
        for stream in (ours, theirs):
            _end(stream, how)
    _exchange(client, server)
    if how == "finish":
        assert ours.receive(100) == b"response"
        assert ours.receive(100) == theirs.receive(100) == b""
    client.take_changed(), server.take_changed()


def _end(stream: EngineStream, how: str) -> None:
    if how == "finish":
        stream.finish()
    else:
        stream.close(0.0)


def _exchange(client: Engine, server: Engine) -> None:
    while client.wants_send or server.wants_send:
        server.receive_data(client.data_to_send(0.0), 0.0)
        client.receive_data(server.data_to_send(0.0), 0.0)


def test_a_closed_session_names_its_streams_error(engine_type: type[Engine]) -> None:
    engine = engine_type(is_client=True)
    stream = engine.open_stream(0.0)
    mine = SessionClosed("the daemon is stopping")
    engine.close(mine)
    assert engine.error is mine
    assert stream.error is mine
    with pytest.raises(SessionClosed, match="the daemon is stopping"):
        stream.send(b"x")
    assert wire.unpack(engine.data_to_send(0.0)) == [wire.go_away(0)]
