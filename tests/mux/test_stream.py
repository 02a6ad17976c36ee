"""`Stream` keeps Trio's contract, and its own promises beyond it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from support.sessions import fill, session_pair, stream_pair
from support.streams import next_bytes
from tunnelmux.errors import SessionClosed, StreamReset
from tunnelmux.mux import Stream


async def test_it_is_a_half_closeable_stream(nursery: trio.Nursery) -> None:
    """Trio's own contract suite, with and without clogged buffers."""

    async def live_pair(task_status: trio.TaskStatus[tuple[Stream, Stream]]) -> None:
        async with session_pair() as (client, server):
            task_status.started(await stream_pair(client, server))
            await trio.sleep_forever()

    async def make() -> tuple[Stream, Stream]:
        pair: tuple[Stream, Stream] = await nursery.start(live_pair)
        return pair

    async def make_clogged() -> tuple[Stream, Stream]:
        ours, theirs = await make()
        await clog(ours)
        await clog(theirs)
        return ours, theirs

    async def clog(stream: Stream) -> None:
        async def send_on() -> None:
            while True:
                await stream.send_all(b"\0" * 65_536)

        async with trio.open_nursery() as clogging:
            clogging.start_soon(send_on)
            await wait_all_tasks_blocked()
            clogging.cancel_scope.cancel()

    await check_half_closeable_stream(make, make_clogged)
    nursery.cancel_scope.cancel()


async def test_bytes_arrive_whole_and_in_order_through_a_thin_pipe() -> None:
    sent = bytes(range(256)) * 4096
    received = bytearray()
    async with session_pair(capacity=1024) as (client, server):
        ours, theirs = await stream_pair(client, server)

        async def send() -> None:
            for start in range(0, len(sent), 5000):
                await ours.send_all(sent[start : start + 5000])
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in theirs:
                received += chunk
        assert ours.bytes_sent == theirs.bytes_received == len(sent)
    assert received == sent


async def test_both_sides_may_write_more_than_a_window_at_once() -> None:
    size = 1_000_000
    async with session_pair(capacity=1024) as (client, server):
        ours, theirs = await stream_pair(client, server)

        async def echo() -> None:
            async for chunk in theirs:
                await theirs.send_all(chunk)
            await theirs.send_eof()

        async def send() -> None:
            await ours.send_all(b"x" * size)
            await ours.send_eof()

        received = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(send)
            async for chunk in ours:
                received += len(chunk)
        assert received == size


async def test_half_close_leaves_the_other_direction_open() -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(b"question")
        await ours.send_eof()
        assert await next_bytes(theirs, 8) == b"question"
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"answer")
        assert await next_bytes(ours, 6) == b"answer"
        with pytest.raises(trio.ClosedResourceError, match="sending was ended"):
            await ours.send_all(b"more")


async def test_a_reset_reaches_the_other_side_with_its_code() -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        theirs.reset(7)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await ours.receive_some()
        assert isinstance(caught.value.__cause__, StreamReset)
        assert caught.value.__cause__.code == 7
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"x")


async def test_a_writer_nobody_reads_is_told() -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await fill(ours)
        async with trio.open_nursery() as nursery:

            async def write_on() -> None:
                with pytest.raises(trio.BrokenResourceError, match="reset"):
                    await ours.send_all(b"x" * 1_000_000)

            nursery.start_soon(write_on)
            await trio.testing.wait_all_tasks_blocked()
            await theirs.aclose()


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        received = bytearray()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(200):
                    await ours.send_all(bytes([number]))
                    await trio.sleep(0.01)
                await ours.send_eof()

            nursery.start_soon(send)
            done = False
            while not done:
                with trio.move_on_after(0.007):
                    chunk = await theirs.receive_some()
                    received += chunk
                    done = not chunk
        assert received == bytes(range(200))


async def test_the_session_ending_wakes_both_halves() -> None:
    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await theirs.send_all(b"before the end")
        await trio.testing.wait_all_tasks_blocked()
        await fill(ours)
        errors: list[str] = []

        async def expect_broken(operation: object) -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await operation(b"x" * 1_000_000)  # type: ignore[operator]
            assert isinstance(caught.value.__cause__, SessionClosed)
            errors.append("broken")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken, ours.send_all)
            await trio.testing.wait_all_tasks_blocked()
            client.abort()
        assert errors == ["broken"]
        assert await next_bytes(ours, 14) == b"before the end"
        with pytest.raises(trio.BrokenResourceError):
            await ours.receive_some()


async def test_wrong_sizes_are_refused() -> None:
    async with session_pair() as (client, server):
        ours, _ = await stream_pair(client, server)
        with pytest.raises(ValueError, match="at least 1"):
            await ours.receive_some(0)


async def test_a_memoryview_of_wide_items_is_sent_as_bytes() -> None:
    from array import array

    async with session_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        words = array("I", [1, 2, 3])
        await ours.send_all(memoryview(words))
        assert await theirs.receive_some() == words.tobytes()
