"""Bytes both ways: every byte arrives, and an end never looks like a cut, nor a cut like an end."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.resettable import ResettableStream, resettable_pair
from support.streams import next_bytes, socket_pair
from tunnelmux.relay import RelayResult, abort, relay


@asynccontextmanager
async def running_relay(
    *, idle_timeout: float | None = None, capacity: int | None = None
) -> AsyncIterator[tuple[ResettableStream, ResettableStream, RelayResult, trio.CancelScope]]:
    """The outer ends of a relay; leaving the block waits for the relay to return."""
    left, a = resettable_pair(capacity)
    right, b = resettable_pair(capacity)
    result = RelayResult()
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await relay(a, b, idle_timeout=idle_timeout, result=result)

    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield left, right, result, scope


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def test_bytes_go_both_ways_and_are_counted() -> None:
    async with running_relay() as (left, right, result, _):
        await left.send_all(b"question")
        assert await next_bytes(right, 8) == b"question"
        await right.send_all(b"the answer")
        assert await next_bytes(left, 10) == b"the answer"
        await left.send_eof()
        await right.send_eof()
    assert (result.bytes_a_to_b, result.bytes_b_to_a) == (8, 10)
    assert result.ended == "finished"
    assert not left.was_reset
    assert not right.was_reset


@pytest.mark.parametrize("left_ends_first", [True, False])
async def test_half_close_leaves_the_other_direction_open(left_ends_first: bool) -> None:
    async with running_relay() as (left, right, result, _):
        first, second = (left, right) if left_ends_first else (right, left)
        await first.send_all(b"all I have")
        await first.send_eof()
        assert await read_all(second) == b"all I have"
        await second.send_all(b"late answer")
        assert await next_bytes(first, 11) == b"late answer"
        await second.send_eof()
        assert await first.receive_some() == b""
    assert result.ended == "finished"


@pytest.mark.parametrize("left_breaks", [True, False])
async def test_reset_of_one_side_resets_the_other(left_breaks: bool) -> None:
    async with running_relay() as (left, right, result, _):
        breaking, other = (left, right) if left_breaks else (right, left)
        breaking.reset()
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
    assert result.ended == "broken"
    assert result.broken_side == ("a" if left_breaks else "b")
    assert isinstance(result.error, trio.BrokenResourceError)


async def test_reset_after_half_close_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    async with running_relay() as (left, right, result, _):
        await left.send_eof()
        assert await right.receive_some() == b""
        left.reset()
        await trio.sleep(6)
        with pytest.raises(trio.BrokenResourceError):
            await right.receive_some()
    assert result.broken_side == "a"


async def test_cancelled_relay_resets_both_sides() -> None:
    async with running_relay() as (left, right, result, scope):
        await left.send_all(b"some")
        assert await next_bytes(right, 4) == b"some"
        scope.cancel()
        for side in (left, right):
            with pytest.raises(trio.BrokenResourceError):
                await side.receive_some()
    assert scope.cancelled_caught
    assert result.ended == "cancelled"
    assert result.bytes_a_to_b == 4


async def test_cancelled_while_the_sink_is_clogged() -> None:
    async with running_relay(capacity=10) as (left, right, result, scope):
        with trio.move_on_after(0.01):
            await left.send_all(b"x" * 1000)
        scope.cancel()
    assert result.ended == "cancelled"
    assert right.was_reset


async def test_a_slow_reader_slows_the_sender_down(autojump_clock: trio.testing.MockClock) -> None:
    async with running_relay(capacity=1000) as (left, right, _, scope):
        with trio.move_on_after(60) as blocked:
            await left.send_all(bytes(10_000))
        assert blocked.cancelled_caught
        # Two pipes of 1000 bytes, and one read of at most a pipe's content in between.
        assert len(await right.receive_some()) <= 1000
        got = 1000
        with trio.move_on_after(1):
            while True:
                got += len(await right.receive_some())
        assert got <= 3000
        scope.cancel()


async def test_idle_relay_ends_after_its_timeout(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    async with running_relay(idle_timeout=30) as (left, right, result, _):
        await trio.sleep(29)
        await left.send_all(b"still here")
        await right.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await right.receive_some()
        assert trio.current_time() - start == pytest.approx(59)
    assert result.ended == "idle"


async def test_without_idle_timeout_silence_is_fine(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_relay() as (left, right, result, _):
        await trio.sleep(3000)
        await left.send_all(b"good morning")
        assert await next_bytes(right, 12) == b"good morning"
        await left.send_eof()
        await right.send_eof()
    assert result.ended == "finished"


async def test_bytes_read_before_go_first() -> None:
    left, a = resettable_pair()
    right, b = resettable_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: relay(a, b, from_a=b"head ", from_b=b"early "))
        await left.send_all(b"tail")
        await left.send_eof()
        await right.send_all(b"late")
        await right.send_eof()
        assert await read_all(right) == b"head tail"
        assert await read_all(left) == b"early late"


class WithoutHalfClose(trio.abc.Stream):
    """A stream that, like TLS, has no send_eof."""

    def __init__(self, inner: ResettableStream) -> None:
        self._inner = inner
        self.reset = inner.reset
        self.send_all = inner.send_all  # type: ignore[method-assign]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_end_towards_a_side_without_half_close_closes_it() -> None:
    left, a = resettable_pair()
    right, b = resettable_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, WithoutHalfClose(a), b)
        await right.send_all(b"bye")
        await right.send_eof()
        assert await read_all(left) == b"bye"
    assert not left.was_reset
    assert not right.was_reset


# Real sockets


@asynccontextmanager
async def socket_relay() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, RelayResult]]:
    left, a = await socket_pair()
    right, b = await socket_pair()
    result = RelayResult()
    with trio.fail_after(20):
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: relay(a, b, result=result))
            yield left, right, result


async def test_half_close_over_sockets() -> None:
    async with socket_relay() as (left, right, result):
        await left.send_all(b"all I have")
        await left.send_eof()
        assert await read_all(right) == b"all I have"
        await right.send_all(b"late answer")
        await right.send_eof()
        assert await read_all(left) == b"late answer"
    assert result.ended == "finished"


async def test_reset_socket_resets_the_other() -> None:
    async with socket_relay() as (left, right, result):
        await left.send_all(b"half a mess")
        assert await next_bytes(right, 11) == b"half a mess"
        await abort(left)
        with pytest.raises(trio.BrokenResourceError):
            await right.receive_some()
    assert result.broken_side == "a"


async def test_abort_of_a_socket_is_seen_as_a_reset_even_with_unsent_data() -> None:
    client, server = await socket_pair()
    async with client:
        await server.send_all(b"x" * 100)
        await abort(server)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)


@pytest.mark.slow
async def test_100_megabytes_arrive_whole() -> None:
    block = bytes(range(256)) * 4096
    sent, got = hashlib.sha256(), hashlib.sha256()

    async def send(stream: trio.SocketStream) -> None:
        for _ in range(100):
            sent.update(block)
            await stream.send_all(block)
        await stream.send_eof()

    async with socket_relay() as (left, right, result), trio.open_nursery() as nursery:
        nursery.start_soon(send, left)
        async for chunk in right:
            got.update(chunk)
        await right.send_eof()
        assert await left.receive_some() == b""
    assert got.digest() == sent.digest()
    assert result.bytes_a_to_b == 100 * len(block)
