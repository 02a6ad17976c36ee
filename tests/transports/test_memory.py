from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnelmux.transports import MemoryStream, memory_stream_pair


async def make() -> tuple[MemoryStream, MemoryStream]:
    return memory_stream_pair()


async def make_clogged() -> tuple[MemoryStream, MemoryStream]:
    left, right = memory_stream_pair(capacity=4)
    await left.send_all(b"full")
    await right.send_all(b"full")
    return left, right


async def test_memory_streams_keep_trios_contract() -> None:
    await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_a_bounded_pair_makes_the_sender_wait_for_the_reader() -> None:
    left, right = memory_stream_pair(capacity=10)
    sent: list[int] = []

    async def send() -> None:
        for size in (10, 5):
            await left.send_all(b"x" * size)
            sent.append(size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == [10]
        assert await right.receive_some(6) == b"x" * 6
        await trio.testing.wait_all_tasks_blocked()
        assert sent == [10, 5]


async def test_what_was_sent_before_the_close_is_still_read() -> None:
    left, right = memory_stream_pair()
    await left.send_all(b"last words")
    await left.aclose()
    assert await right.receive_some() == b"last words"
    assert await right.receive_some() == b""


@pytest.mark.parametrize("capacity", [0, -1])
async def test_a_capacity_below_one_byte_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        memory_stream_pair(capacity)
