"""`Session`: opening, accepting, pinging, draining, ending."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from support.sessions import StuckStream, session_pair, stream_pair
from support.streams import next_bytes
from tunnelmux._frame import encode_header
from tunnelmux.errors import (
    RemoteProtocolError,
    SessionClosed,
    SessionDraining,
    SessionLost,
    SessionTimeout,
    TooManyStreams,
)
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.transports.memory import memory_stream_pair


async def test_iterating_accepts_streams_until_a_clean_end() -> None:
    seen: list[bytes] = []
    async with session_pair() as (client, server):

        async def serve() -> None:
            async for stream in server:
                seen.append(await stream.receive_some())
                await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for word in (b"one", b"two"):
                stream = await client.open_stream()
                await stream.send_all(word)
                await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
    assert seen == [b"one", b"two"]


async def test_iterating_raises_when_the_connection_is_lost() -> None:
    here, there = memory_stream_pair()
    async with open_session(there, is_client=False) as server:
        await here.send_all(b"\0\0\0")
        here.close()
        with pytest.raises(SessionLost, match="middle of a frame"):
            async for _ in server:
                pass


async def test_the_block_raises_what_its_body_raised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, _ = memory_stream_pair()
    with pytest.raises(LookupError, match="mine"):
        async with open_session(here, is_client=True):
            raise LookupError("mine")


async def test_closing_sends_what_was_queued_first() -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"x" * 200_000)
        await ours.aclose()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            received = 0
            while chunk := await theirs.receive_some():
                received += len(chunk)
        assert received == 200_000


async def test_a_ping_measures_the_round_trip(autojump_clock: trio.testing.MockClock) -> None:
    async with session_pair() as (client, _):
        async with trio.open_nursery() as nursery:
            results: list[float] = []

            async def ping() -> None:
                results.append(await client.ping())

            nursery.start_soon(ping)
            nursery.start_soon(ping)
        assert len(results) == 2
        assert client.rtt == results[0] == results[1]


async def test_opens_wait_for_answers_and_cancelling_one_costs_nothing() -> None:
    limits = Limits(max_unacked_opens=2)
    async with session_pair(limits=limits) as (client, server):
        first = await client.open_stream()
        await client.open_stream()
        with trio.move_on_after(0.01) as scope:
            await client.open_stream()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                await server.accept_stream()

            nursery.start_soon(accept)
            third = await client.open_stream()
        assert (first.id, third.id) == (1, 5)


async def test_opens_over_the_limit_fail_with_the_reason() -> None:
    async with session_pair(limits=Limits(max_streams=1)) as (client, _):
        await client.open_stream()
        with pytest.raises(TooManyStreams, match=r"limits\.max_streams"):
            await client.open_stream()


async def test_going_away_lets_live_streams_finish_and_then_ends_the_session() -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        server.go_away()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(SessionDraining):
            await client.open_stream()
        await ours.send_all(b"still here")
        assert await next_bytes(theirs, 10) == b"still here"
        await ours.aclose()
        await theirs.aclose()
        with trio.fail_after(20):
            await client.wait_closed()
            await server.wait_closed()
        assert type(client.error) is SessionClosed
        assert type(server.error) is SessionClosed


async def test_a_dead_peer_is_noticed_within_twenty_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, _ = memory_stream_pair()
    async with open_session(here, is_client=True) as session:
        stream = await session.open_stream()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, SessionTimeout)
        assert trio.current_time() <= 20


async def test_a_dead_peer_is_noticed_though_the_transport_takes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, _ = memory_stream_pair(capacity=10)
    async with open_session(here, is_client=True) as session:
        stream = await session.open_stream()
        await stream.send_all(b"x" * 1000)
        await session.wait_closed()
        assert isinstance(session.error, SessionTimeout)
        assert trio.current_time() <= 20


async def test_a_busy_session_is_never_taken_for_dead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Bytes are a sign of life: no answer to a ping is needed while they come."""
    here, there = memory_stream_pair()
    async with open_session(here, is_client=True) as session:
        await session.open_stream()
        with trio.move_on_after(100):
            while True:
                await there.send_all(encode_header(0, 0, 1, 1) + b"x")
                await trio.sleep(5)
        assert not session.is_closed


async def test_a_protocol_error_is_told_to_the_peer_before_the_end() -> None:
    here, there = memory_stream_pair()
    async with open_session(here, is_client=True) as session:
        await there.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(RemoteProtocolError, match="not a yamux peer"):
            await session.accept_stream()
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.aclose)
            while chunk := await there.receive_some():
                received += chunk
            there.close()
        assert received == encode_header(3, 0, 0, 1)


async def test_closing_does_not_wait_for_a_stuck_transport(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, _ = memory_stream_pair()
    here.__class__ = StuckStream
    assert isinstance(here, StuckStream)
    async with open_session(here, is_client=True, limits=Limits(close_grace=3)) as session:
        stream = await session.open_stream()
        here.stick()
        await stream.send_all(b"x" * 1000)
        started = trio.current_time()
        await session.aclose()
        assert trio.current_time() - started <= 3 + 3


async def test_cancelling_the_block_closes_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    here, there = memory_stream_pair()
    with trio.move_on_after(1):
        async with open_session(here, is_client=True):
            await trio.sleep_forever()
    assert trio.current_time() == 1
    with pytest.raises(trio.BrokenResourceError):
        await there.send_all(b"x")


@pytest.mark.parametrize("operation", ["accept_stream", "open_stream", "ping"])
async def test_the_end_wakes_every_waiter(operation: str) -> None:
    limits = Limits(max_unacked_opens=1)
    here, _ = memory_stream_pair()
    async with open_session(here, is_client=True, limits=limits) as session:
        await session.open_stream()

        async def wait(session: Session) -> None:
            with pytest.raises(SessionClosed, match="enough"):
                await getattr(session, operation)()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, session)
            nursery.start_soon(wait, session)
            await trio.testing.wait_all_tasks_blocked()
            session.abort(SessionClosed("enough"))


async def test_many_streams_at_once_keep_their_bytes_apart() -> None:
    async with session_pair() as (client, server):

        async def echo() -> None:
            async with trio.open_nursery() as nursery:
                async for stream in server:
                    nursery.start_soon(answer, stream)

        async def answer(stream: trio.abc.HalfCloseableStream) -> None:
            async with stream:
                async for chunk in stream:
                    await stream.send_all(chunk)

        async def ask(number: int) -> None:
            async with await client.open_stream() as stream:
                payload = f"{number};".encode() * 1000
                await stream.send_all(payload)
                await stream.send_eof()
                received = bytearray()
                async for chunk in stream:
                    received += chunk
                assert received == payload

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            async with trio.open_nursery() as visitors:
                for number in range(200):
                    visitors.start_soon(ask, number)
            assert client.stream_count == 0
            await client.aclose()


@pytest.mark.slow
async def test_ten_thousand_streams_leave_nothing_behind() -> None:
    async with session_pair() as (client, server):
        for _ in range(10_000):
            ours, theirs = await stream_pair(client, server)
            await ours.aclose()
            await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert client.stream_count == server.stream_count == 0
