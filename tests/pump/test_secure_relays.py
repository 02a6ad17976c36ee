"""A relay whose socket is under TLS: in the pump where there is one, and the same without."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from support.carried import Relayed, carried_sessions, relayed
from support.streams import next_bytes
from tunnelmux.relay import abort

MIB = 1 << 20

in_the_pump = pytest.mark.parametrize("way", ["pump-tcp", "pump-wss"])
both_ways = pytest.mark.parametrize("way", ["pump-tcp", "pump-wss", "streams-tcp"])


@asynccontextmanager
async def secured(way: str) -> AsyncIterator[tuple[Relayed, trio.SSLStream[trio.abc.Stream]]]:
    async with (
        carried_sessions(way) as (client, server),
        relayed(client, server, tls=True) as one,
    ):
        assert one.secure is not None
        yield one, one.secure


async def over(one: Relayed) -> None:
    with trio.fail_after(30):
        await one.over.wait()


@both_ways
async def test_bytes_go_both_ways_in_the_pump(way: str) -> None:
    async with secured(way) as (one, visitor):
        await visitor.send_all(b"question")
        assert await next_bytes(one.far, 8) == b"question"
        await one.far.send_all(b"the answer")
        assert await next_bytes(visitor, 10) == b"the answer"
        await trio.testing.wait_all_tasks_blocked()  # Trio's way counts after it has sent
        # The near relay has the stream as its `a`.
        assert one.near_result.bytes_now == (10, 8)
        # `carried` is there while a pump moves the bytes.
        assert (one.near_result.carried is not None) == way.startswith("pump")


@both_ways
async def test_megabytes_cross_each_other_unharmed(way: str) -> None:
    dice = random.Random(3)
    question, answer = dice.randbytes(3 * MIB + 17), dice.randbytes(2 * MIB + 5)
    async with secured(way) as (one, visitor):
        received: dict[str, str] = {}

        async def receive(stream: trio.abc.Stream, size: int, name: str) -> None:
            digest = hashlib.sha256()
            while size:
                piece = await stream.receive_some()
                assert piece
                digest.update(piece)
                size -= len(piece)
            received[name] = digest.hexdigest()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(visitor.send_all, question)
                nursery.start_soon(one.far.send_all, answer)
                nursery.start_soon(receive, one.far, len(question), "question")
                nursery.start_soon(receive, visitor, len(answer), "answer")
        assert received == {
            "question": hashlib.sha256(question).hexdigest(),
            "answer": hashlib.sha256(answer).hexdigest(),
        }


@in_the_pump
async def test_the_other_sides_end_comes_behind_all_that_it_said(way: str) -> None:
    """Also to a visitor who reads late, when TLS still holds what the socket did not take. Trio's
    way ends with the FIN only, which a strict visitor takes for a cut."""
    words = random.Random(4).randbytes(4 * MIB)
    async with secured(way) as (one, visitor):

        async def speak() -> None:
            await one.far.send_all(words)
            await one.far.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            await trio.testing.wait_all_tasks_blocked(0.01)  # all buffers on the way are full
            got = bytearray()
            with trio.fail_after(30):
                # Without a close_notify the end would be a cut.
                while piece := await visitor.receive_some():
                    got += piece
        assert got == words
        await over(one)
        assert one.near_result.ended == "finished"


@in_the_pump
async def test_the_visitors_end_is_passed_on_and_the_answer_still_comes(way: str) -> None:
    async with secured(way) as (one, visitor):
        await visitor.send_all(b"all I have")
        await one.near.send_eof()
        assert await next_bytes(one.far, 10) == b"all I have"
        assert await one.far.receive_some() == b""
        await one.far.send_all(b"late answer")
        assert await next_bytes(visitor, 11) == b"late answer"
        await one.far.send_eof()
        await over(one)
        assert one.near_result.ended == one.far_result.ended == "finished"


@both_ways
@pytest.mark.parametrize("how", ["reset", "garbage"])
async def test_a_visitor_who_breaks_is_a_reset_for_the_other_side(way: str, how: str) -> None:
    async with secured(way) as (one, visitor):
        await visitor.send_all(b"x")
        assert await one.far.receive_some() == b"x"
        if how == "reset":
            await abort(visitor)
        else:
            await one.near.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await one.far.receive_some()
        await over(one)
        assert one.near_result.ended == "broken"
        assert one.near_result.broken_side == "b"


@both_ways
async def test_the_other_sides_reset_is_a_cut_for_the_visitor(way: str) -> None:
    async with secured(way) as (one, visitor):
        await one.far.send_all(b"x")
        assert await visitor.receive_some() == b"x"
        await abort(one.far)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some()
        await over(one)
        assert (one.near_result.ended, one.near_result.broken_side) == ("broken", "a")


@both_ways
async def test_cancelling_is_a_cut_for_both(way: str) -> None:
    async with secured(way) as (one, visitor):
        await visitor.send_all(b"x")
        assert await one.far.receive_some() == b"x"
        one.near_scope.cancel()
        for stream in (visitor, one.far):
            with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await over(one)
        assert one.near_result.ended == "cancelled"


@both_ways
async def test_a_visitor_who_does_not_read_stops_the_other_side(way: str) -> None:
    async with secured(way) as (one, visitor), trio.open_nursery() as nursery:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await one.far.send_all(bytes(MIB))
                sent += MIB

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < 64 * MIB  # the buffers of the kernel and the windows
        assert await visitor.receive_some()
        nursery.cancel_scope.cancel()
