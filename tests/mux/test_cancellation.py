"""Every await of `Session` and `Stream`, cancelled at every checkpoint it has.

After each: no byte lost or doubled, no task stuck, no stream or credit leaked, and the session goes
on, or is closed where closing was what was cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from support.cancellation import Outcome, at_every_checkpoint, cancelled_after
from support.sessions import session_pair, stream_pair
from tunnelmux.errors import SessionClosed
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, Stream, open_session
from tunnelmux.transports.memory import memory_stream_pair

# Each test asks for autojump_clock by name: a task that is stuck then costs no real time.

THIN = 1_024
"""Bytes the transport holds: whatever can wait does wait."""
PAYLOAD = bytes(range(251)) * 1_400  # more than a stream's buffer and its window


async def read_exactly(stream: Stream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = await stream.receive_some(size - len(received))
        assert chunk, "the end before all had come"
        received += chunk
    return received


async def check_usable(client: Session, server: Session, *, live: int = 0) -> None:
    """Both sessions carry a new stream to its end and hold nothing but *live* streams then."""
    await client.ping()
    ours, theirs = await stream_pair(client, server)
    await ours.send_all(b"question")
    await ours.send_eof()
    assert await read_exactly(theirs, 8) == b"question"
    assert await theirs.receive_some() == b""
    await theirs.send_all(b"answer")
    await theirs.aclose()
    assert await read_exactly(ours, 6) == b"answer"
    await ours.aclose()
    await trio.testing.wait_all_tasks_blocked()
    for session in (client, server):
        engine = session._engine
        counts = engine.stream_count, engine.unacked_opens, engine.accept_pending
        assert counts == (live, 0, 0)
        assert not engine.wants_send


@asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[Session, Session, Stream, Stream]]:
    """Sessions with one open stream; after the block both ends are closed and all is in order."""
    async with session_pair(capacity=THIN) as (client, server):
        ours, theirs = await stream_pair(client, server)
        yield client, server, ours, theirs
        await ours.aclose()
        await theirs.aclose()
        await check_usable(client, server)


async def test_receiving_loses_nothing(autojump_clock: MockClock) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        received = bytearray()
        async with two_ends() as (_, _, ours, theirs), trio.open_nursery() as nursery:

            async def receive() -> None:
                while len(received) < 5_000:
                    received.extend(await theirs.receive_some(700))

            nursery.start_soon(ours.send_all, PAYLOAD[:5_000])
            outcome = await cancelled_after(receive, checkpoint)
            received += await read_exactly(theirs, 5_000 - len(received))
            assert received == PAYLOAD[:5_000]
            assert theirs.bytes_received == 5_000
        return outcome

    assert await at_every_checkpoint(attempt) >= 5


@pytest.mark.parametrize("size", [10, 300_000, len(PAYLOAD)])
async def test_what_a_cancelled_send_took_arrives_and_nothing_else(
    size: int, autojump_clock: MockClock
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        received = bytearray()
        async with two_ends() as (_, _, ours, theirs), trio.open_nursery() as nursery:

            async def read() -> None:
                async for chunk in theirs:
                    received.extend(chunk)

            nursery.start_soon(read)
            outcome = await cancelled_after(lambda: ours.send_all(PAYLOAD[:size]), checkpoint)
            taken = ours.bytes_sent
            assert taken == size or outcome.cancelled
            await ours.send_all(b"and more")
            await ours.send_eof()
        assert received == PAYLOAD[:taken] + b"and more"
        return outcome

    assert (await at_every_checkpoint(attempt) >= 1) == (size > 262_144)


async def test_waiting_for_room_takes_none(autojump_clock: MockClock) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        async with two_ends() as (_, _, ours, theirs), trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                await ours.send_all(PAYLOAD * 2)

            async def read() -> None:
                await trio.sleep(1)
                received = await read_exactly(theirs, ours.bytes_sent + 4)
                assert received == (PAYLOAD * 2)[: len(received) - 4] + b"last"

            nursery.start_soon(read)
            outcome = await cancelled_after(ours.wait_send_all_might_not_block, checkpoint)
            await ours.send_all(b"last")
        return outcome

    assert await at_every_checkpoint(attempt) >= 2


async def test_an_end_that_was_cancelled_can_be_said_again(autojump_clock: MockClock) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        async with two_ends() as (_, _, ours, theirs):
            await ours.send_all(b"all")
            outcome = await cancelled_after(ours.send_eof, checkpoint)
            await ours.send_eof()
            assert await read_exactly(theirs, 3) == b"all"
            assert await theirs.receive_some() == b""
        return outcome

    await at_every_checkpoint(attempt)


async def test_a_stream_is_closed_even_when_closing_was_cancelled(
    autojump_clock: MockClock,
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        async with two_ends() as (_, _, ours, theirs):
            await ours.send_all(b"all")
            outcome = await cancelled_after(ours.aclose, checkpoint)
            with pytest.raises(trio.ClosedResourceError):
                await ours.receive_some()
            assert await read_exactly(theirs, 3) == b"all"
            assert await theirs.receive_some() == b""
        return outcome

    assert await at_every_checkpoint(attempt) >= 1


async def test_an_open_that_was_cancelled_takes_no_place(autojump_clock: MockClock) -> None:
    limits = Limits(max_unacked_opens=1)

    async def attempt(checkpoint: int) -> Outcome:
        opened: list[Stream] = []
        async with session_pair(limits=limits, capacity=THIN) as (client, server):
            first = await client.open_stream()
            async with trio.open_nursery() as nursery:

                async def accept_later() -> None:
                    await trio.sleep(1)
                    await (await server.accept_stream()).aclose()

                async def open_one() -> None:
                    opened.append(await client.open_stream())

                nursery.start_soon(accept_later)
                outcome = await cancelled_after(open_one, checkpoint)
            assert bool(opened) != outcome.cancelled
            assert client.stream_count == 1 + len(opened)
            await first.aclose()
            for stream in opened:
                await stream.aclose()
                await (await server.accept_stream()).aclose()
            await check_usable(client, server)
        return outcome

    assert await at_every_checkpoint(attempt) >= 2


async def test_a_stream_is_accepted_by_somebody_whoever_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        accepted: list[Stream] = []
        async with session_pair(capacity=THIN) as (client, server):

            async def accept() -> None:
                accepted.append(await server.accept_stream())

            async def open_later() -> None:
                await trio.sleep(1)
                await client.open_stream()
                await client.open_stream()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_later)
                nursery.start_soon(accept)
                outcome = await cancelled_after(accept, checkpoint)
                if outcome.cancelled:
                    await accept()
            assert sorted(stream.id for stream in accepted) == [1, 3]
            for stream in accepted:
                stream.reset()
            await check_usable(client, server)
        return outcome

    assert await at_every_checkpoint(attempt) >= 2


async def test_a_ping_that_was_cancelled_leaves_those_that_share_it(
    autojump_clock: MockClock,
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        answers: list[float] = []
        async with session_pair(capacity=THIN) as (client, server):

            async def ping() -> None:
                answers.append(await client.ping())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ping)
                outcome = await cancelled_after(client.ping, checkpoint)
            assert len(answers) == 1
            await check_usable(client, server)
        return outcome

    assert await at_every_checkpoint(attempt) >= 2


async def test_a_session_is_closed_even_when_closing_was_cancelled(
    autojump_clock: MockClock,
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        async with session_pair(capacity=THIN) as (client, server):
            ours, theirs = await stream_pair(client, server)
            await ours.send_all(PAYLOAD[:50_000])
            async with trio.open_nursery() as nursery:
                received = bytearray()

                async def read() -> None:
                    try:
                        async for chunk in theirs:
                            received.extend(chunk)
                    except trio.BrokenResourceError as error:
                        assert isinstance(error.__cause__, SessionClosed)

                nursery.start_soon(read)
                outcome = await cancelled_after(client.aclose, checkpoint)
                assert client.is_closed
                await client.wait_closed()
                await server.wait_closed()
            assert received == PAYLOAD[: len(received)]
            assert outcome.cancelled or len(received) == 50_000
            with pytest.raises(SessionClosed):
                await client.open_stream()
            with pytest.raises(trio.BrokenResourceError):
                await ours.send_all(b"x")
        return outcome

    assert await at_every_checkpoint(attempt) >= 2


async def test_a_block_that_was_cancelled_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        here, there = memory_stream_pair(THIN)
        async with open_session(there, is_client=False) as server, trio.open_nursery() as nursery:

            async def echo() -> None:
                try:
                    async for stream in server:
                        await stream.send_all(await stream.receive_some())
                        await stream.aclose()
                except (SessionClosed, trio.BrokenResourceError):
                    pass  # the other side was cancelled at some point: that is the test

            async def visit() -> None:
                async with (
                    open_session(here, is_client=True) as client,
                    await client.open_stream() as stream,
                ):
                    await stream.send_all(PAYLOAD[:3_000])
                    await read_exactly(stream, 100)

            nursery.start_soon(echo)
            outcome = await cancelled_after(visit, checkpoint)
            if checkpoint == 1 and outcome.cancelled:
                await here.aclose()  # cancelled before the session took the transport: still ours
            with pytest.raises(trio.ClosedResourceError):
                await here.send_all(b"x")
            await server.wait_closed()
            assert server.stream_count == 0
        return outcome

    assert await at_every_checkpoint(attempt) >= 5


async def test_a_session_in_its_owners_task_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async def attempt(checkpoint: int) -> Outcome:
        here, there = memory_stream_pair(THIN)
        async with open_session(there, is_client=False) as server:
            client = Session(here, is_client=True)
            # It ends by itself as well, once it is cancelled late enough.
            server.go_away()
            outcome = await cancelled_after(client.run, checkpoint)
            assert client.is_closed
            with pytest.raises(trio.ClosedResourceError):
                await here.send_all(b"x")
            await client.aclose()  # it was seen to its end: nothing to wait for
            await server.wait_closed()
        return outcome

    assert await at_every_checkpoint(attempt) >= 3


async def test_both_sides_saturate_a_thin_pipe_and_every_byte_arrives(
    autojump_clock: MockClock,
) -> None:
    """Both ends of four streams send more than a window at once, and read it meanwhile."""
    async with session_pair(capacity=THIN) as (client, server), trio.open_nursery() as nursery:

        async def send(stream: Stream) -> None:
            await stream.send_all(PAYLOAD)
            await stream.send_eof()

        async def read(stream: Stream) -> None:
            received = bytearray()
            async for chunk in stream:
                received += chunk
            assert received == PAYLOAD

        for _ in range(4):
            for stream in await stream_pair(client, server):
                nursery.start_soon(send, stream)
                nursery.start_soon(read, stream)
