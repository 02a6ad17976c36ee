"""Cases 110, 111 and 117: opening, in the orders that trip implementations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from support.exchanges import echo_through, read_to_end, send_pattern
from support.peer_process import Link, PeerError, pattern_digest
from tunnelmux.errors import SessionClosed
from tunnelmux.mux import Stream

Deviation = Callable[[str], None]


@pytest.mark.case(110, "open and close at once; the end arrives both ways")
async def test_open_and_close_at_once(link: Link, deviation: Deviation) -> None:
    await link.call("serve echo")
    for _ in range(20):
        with trio.fail_after(20):
            async with await link.session.open_stream() as stream:
                await stream.send_eof()
                assert await stream.receive_some() == b""

    await link.call("open a")
    await link.call("finish a")
    if link.name == "rust":
        with trio.move_on_after(0.2):
            await link.session.accept_stream()
            raise AssertionError("rust-yamux announces a stream nobody wrote to")
        deviation("a stream closed before its first write is never announced")
        return
    with trio.fail_after(20):
        async with await link.session.accept_stream() as stream:
            assert await stream.receive_some() == b""
            await stream.send_eof()
            assert (await link.call("read a eof"))["bytes"] == "0"


@pytest.mark.whole_table
@pytest.mark.case(111, "the side that accepted a stream speaks first")
async def test_acceptor_speaks_first(link: Link, deviation: Deviation) -> None:
    await link.call("serve greet 300000")
    with trio.fail_after(20):
        async with await link.session.open_stream() as stream:
            assert await read_to_end(stream) == (300_000, pattern_digest(300_000))

    await link.call("open a")
    if link.name == "rust":
        with trio.move_on_after(0.2):
            await link.session.accept_stream()
            raise AssertionError("rust-yamux announces a stream nobody wrote to")
        await link.call("write a 1")
        deviation("a stream is announced with its first write: the opener must speak first")
    with trio.fail_after(20):
        stream = await link.session.accept_stream()
        async with stream, trio.open_nursery() as nursery:
            reply: dict[str, str] = {}

            async def read() -> None:
                reply.update(await link.call("read a eof"))

            nursery.start_soon(read)
            await send_pattern(stream, 300_000)
            await stream.send_eof()
    assert reply["bytes"] == "300000"
    assert reply["sha256"] == pattern_digest(300_000)


@pytest.mark.whole_table
@pytest.mark.slow
@pytest.mark.case(117, "300 opens by us that the peer does not accept")
async def test_opens_the_peer_does_not_accept(link: Link, deviation: Deviation) -> None:
    if link.name == "js-libp2p":
        await see_js_give_up(link)
        deviation("ends the session when 11 streams come before the application asked for any")
        return
    done = 0

    async def use_one(i: int) -> None:
        nonlocal done
        await echo_through(link.session, 100, i)
        done += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for i in range(300):
                nursery.start_soon(use_one, i)
            await trio.sleep(1)
            assert done == 0
            await see_a_busy_peer(link, deviation)
            await link.call("serve echo")
    assert done == 300


async def see_js_give_up(link: Link) -> None:
    for _ in range(11):
        await link.session.open_stream()
    with trio.fail_after(20):
        await link.session.wait_closed()
    assert type(link.session.error) is SessionClosed  # it says GoAway(0), as in a normal end


async def see_a_busy_peer(link: Link, deviation: Deviation) -> None:
    """Pings are answered while streams wait, unless the peer is known to stall."""
    with trio.move_on_after(2) as scope:
        await link.session.ping()
    assert scope.cancelled_caught == (link.name == "py-libp2p")
    if scope.cancelled_caught:
        deviation("answers no ping and reads nothing while 11 streams wait to be accepted")


@pytest.mark.whole_table
@pytest.mark.slow
@pytest.mark.case(117.1, "300 opens by the peer that we do not accept for a while")
async def test_opens_we_do_not_accept(link: Link, deviation: Deviation) -> None:
    limitless = link.name == "js-libp2p"
    most = 300 if limitless else 256
    opened = refused = 0
    full = trio.Event()
    accepting = trio.Event()

    async def use_one(i: int) -> None:
        nonlocal opened, refused
        await link.call(f"open s{i}")
        if link.name == "rust":
            await link.call(f"write s{i} 1")  # announces the stream
        opened += 1
        if opened == most:
            full.set()
        await accepting.wait()
        try:
            assert (await link.call(f"read s{i} 1"))["bytes"] == "1"
        except PeerError:
            refused += 1
        await link.call(f"close s{i}")

    async def answer(stream: Stream) -> None:
        async with stream:
            await stream.send_all(b"\0")

    async with trio.open_nursery() as nursery:
        for i in range(300):
            nursery.start_soon(use_one, i)
        with trio.fail_after(30):
            await full.wait()
        await link.session.ping()  # what the peer sent before its answer has come
        await trio.sleep(0.1)
        assert opened == most
        assert link.session.stream_count == 256
        accepting.set()
        with trio.fail_after(20):
            for _ in range(256 if limitless else 300):
                nursery.start_soon(answer, await link.session.accept_stream())
    assert refused == (44 if limitless else 0)
    if limitless:
        deviation("opens without limit: what is over the acceptor's backlog is reset")
