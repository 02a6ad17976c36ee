"""Cases 115 and 116: the end of a session, wanted or not, with data on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NoReturn

import pytest
import trio

from support.peer_process import Link, PeerError, PeerGone, pattern, pattern_digest
from tunnelmux.errors import SessionClosed, SessionDraining, SessionLost, StreamReset
from tunnelmux.mux import Stream

MIB = 1024 * 1024


async def inbound_bulk(link: Link, nursery: trio.Nursery, count: int) -> Stream:
    """A stream the peer opened, on which it is sending *count* bytes."""
    await link.call("open bulk")

    async def write() -> None:
        with contextlib.suppress(PeerError, PeerGone):  # the test cuts it short
            await link.call(f"write bulk {count}", timeout=60)

    nursery.start_soon(write)
    with trio.fail_after(30):
        return await link.session.accept_stream()


async def read_what_comes(stream: Stream) -> tuple[bytes, BaseException | None]:
    """All that comes before the end or the failure, and the failure."""
    received = bytearray()
    try:
        while data := await stream.receive_some():
            received += data
    except trio.BrokenResourceError as exc:
        return bytes(received), exc.__cause__
    return bytes(received), None


@pytest.mark.whole_table
@pytest.mark.case(115, "the peer is killed in the middle of a transfer")
async def test_peer_is_killed_mid_transfer(link: Link) -> None:
    async with trio.open_nursery() as nursery:
        stream = await inbound_bulk(link, nursery, 64 * MIB)
        first = await stream.receive_some()
        with trio.fail_after(20):
            await link.peer.die()
            rest, failure = await read_what_comes(stream)
            await link.session.wait_closed()
        received = first + rest
        assert received == pattern(len(received))
        assert isinstance(failure, SessionLost)
        assert isinstance(link.session.error, SessionLost)
        with pytest.raises(SessionLost):
            await link.session.open_stream()


@pytest.mark.whole_table
@pytest.mark.case(116, "the peer closes its session with data on its way")
async def test_peer_closes_with_data_in_flight(
    link: Link, deviation: Callable[[str], None]
) -> None:
    async with trio.open_nursery() as nursery:
        stream = await inbound_bulk(link, nursery, 16 * MIB)
        first = await stream.receive_some()
        nursery.start_soon(close_quietly, link)
        with trio.fail_after(20):
            rest, failure = await read_what_comes(stream)
            await link.session.wait_closed()
        received = first + rest
        assert received == pattern(len(received))
        if link.name == "js-libp2p":
            deviation(
                "may end each stream in order before the session: then there is no cut to see"
            )
        if failure is None:
            assert link.name == "js-libp2p"
        else:
            assert isinstance(failure, SessionClosed)  # cut short, and never taken for the end
        nursery.cancel_scope.cancel()


async def close_quietly(link: Link) -> None:
    # Some report the streams they cut; what is asserted is our side.
    with contextlib.suppress(PeerError, PeerGone):
        await link.call("close-session", timeout=60)


@pytest.mark.whole_table
@pytest.mark.case(116.1, "we close the session with data on its way: what we sent arrives")
async def test_we_close_with_data_in_flight(link: Link, deviation: Callable[[str], None]) -> None:
    async with trio.open_nursery() as nursery:
        bulk = await inbound_bulk(link, nursery, 16 * MIB)
        await bulk.receive_some()
        stream = await link.session.open_stream()
        await stream.send_all(pattern(200_000))
        await link.call("accept ours")
        with trio.fail_after(30):
            await link.session.aclose()
            await link.call("closed")
        try:
            reply = await link.call("read ours 200000")
        except PeerError:
            assert link.name not in {"hashicorp", "rust"}
        else:
            assert reply["sha256"] == pattern_digest(200_000)
            assert link.name in {"hashicorp", "rust", "js-libp2p"}
        # Whether js-libp2p's reader was told before the GoAway is its own race.
        if link.name == "js-libp2p":
            deviation("a GoAway(0) may discard what was received and not read yet")
        elif link.name not in {"hashicorp", "rust"}:
            deviation("a GoAway(0) discards what was received and not read yet")
        nursery.cancel_scope.cancel()


@pytest.mark.whole_table
@pytest.mark.case(116.2, "a reset by either side ends that stream and no other")
async def test_reset_ends_one_stream(link: Link, deviation: Callable[[str], None]) -> None:
    ours, theirs = await stream_from_peer(link, "ours"), await stream_from_peer(link, "theirs")
    ours.reset()
    if link.name in {"rust", "py-libp2p"}:
        assert (await link.call("read ours eof"))["end"] == "eof"
        deviation("a reset reads like an end")
    else:
        with pytest.raises(PeerError):
            await link.call("read ours eof")
    if link.name == "hashicorp":
        with pytest.raises(PeerError, match="unsupported"):
            await link.call("reset theirs")
        deviation("its API resets nothing: the half of this case that it would begin is left out")
    else:
        await link.call("reset theirs")
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError) as caught:
            await theirs.receive_some()
        assert isinstance(caught.value.__cause__, StreamReset)
    await link.session.ping()
    assert not link.session.is_closed


async def stream_from_peer(link: Link, name: str) -> Stream:
    """A stream the peer opened and wrote one byte to, which was read."""
    await link.call(f"open {name}")
    await link.call(f"write {name} 1")
    with trio.fail_after(20):
        stream = await link.session.accept_stream()
        assert await stream.receive_some() == pattern(1)
    return stream


@pytest.mark.whole_table
@pytest.mark.case(116.3, "the peer says GoAway(0) and goes on with the streams it has")
async def test_live_streams_go_on_after_a_goaway(
    link: Link, leave_out: Callable[[str], NoReturn]
) -> None:
    stream = await stream_from_peer(link, "a")
    try:
        await link.call("goaway")
    except PeerError as exc:
        assert str(exc) == "unsupported"
        leave_out("the library says GoAway only when it closes")
    await link.session.ping()  # what was sent before its answer has come
    assert link.session.is_draining
    with pytest.raises(SessionDraining):
        await link.session.open_stream()
    await stream.send_all(pattern(100_000))
    assert (await link.call("read a 100000"))["sha256"] == pattern_digest(100_000)
    await link.call("write a 100000")
    received = bytearray()
    with trio.fail_after(20):
        while len(received) < 100_000:
            received += await stream.receive_some()
    assert received == pattern(100_000)
