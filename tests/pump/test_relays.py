"""What a relay carries, and how it ends: the same with a pump and without."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket

import pytest
import trio
import trio.testing

from support.carried import WAYS, Relayed, carried_sessions, relayed
from support.streams import next_bytes, socket_pair
from tunnelmux.limits import Limits
from tunnelmux.relay import abort, relay

pytestmark = pytest.mark.parametrize("way", WAYS)

MIB = 1 << 20


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def over(one: Relayed) -> None:
    with trio.fail_after(20):
        await one.over.wait()


async def test_bytes_go_both_ways_and_are_counted(way: str) -> None:
    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        await one.near.send_all(b"question")
        assert await next_bytes(one.far, 8) == b"question"
        await one.far.send_all(b"the answer")
        assert await next_bytes(one.near, 10) == b"the answer"
        await one.end()
        for result in (one.near_result, one.far_result):
            assert result.ended == "finished"
        # The near relay has the stream as its `a`, the far one as its `b`.
        assert (one.near_result.bytes_b_to_a, one.near_result.bytes_a_to_b) == (8, 10)
        assert (one.far_result.bytes_b_to_a, one.far_result.bytes_a_to_b) == (8, 10)
        await client.ping()
        assert client.stream_count == server.stream_count == 0


async def test_a_relay_waits_for_credit_where_more_was_queued_than_the_peer_allows(
    way: str,
) -> None:
    """As after an upload with an Upgrade. It keeps no processor busy until the peer reads."""
    async with carried_sessions(way) as (client, server):
        ours, theirs = await client.open_stream(), await server.accept_stream()
        queued = 0
        with trio.fail_after(30):
            while ours._engine_stream.queued_bytes < 50_000:
                await ours.send_all(bytes(50_000))
                queued += 50_000
                for _ in range(10):  # the session sends what it may
                    await trio.lowlevel.checkpoint()
        near, local = await socket_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, ours, local)
            await near.send_all(b"more")
            for _ in range(10):  # the relay takes it up
                await trio.lowlevel.checkpoint()
            if client._pump is not None:
                with trio.fail_after(30):
                    while client._pump.core.is_busy:  # noqa: ASYNC110  no event says so
                        await trio.sleep(0.01)
            assert await next_bytes(theirs, queued + 4) == bytes(queued) + b"more"
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(near)


@pytest.mark.parametrize("near_ends_first", [True, False])
async def test_half_close_leaves_the_other_direction_open(way: str, near_ends_first: bool) -> None:
    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        first, second = (one.near, one.far) if near_ends_first else (one.far, one.near)
        await first.send_all(b"all I have")
        await first.send_eof()
        assert await read_all(second) == b"all I have"
        await second.send_all(b"late answer")
        assert await next_bytes(first, 11) == b"late answer"
        await second.send_eof()
        assert await first.receive_some() == b""
        await over(one)
        assert one.near_result.ended == one.far_result.ended == "finished"


@pytest.mark.parametrize("near_breaks", [True, False])
async def test_a_reset_of_one_side_resets_the_other(way: str, near_breaks: bool) -> None:
    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        breaking, other = (one.near, one.far) if near_breaks else (one.far, one.near)
        await breaking.send_all(b"x")
        assert await other.receive_some() == b"x"
        await abort(breaking)
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await over(one)
        broke, told = one.near_result, one.far_result
        if not near_breaks:
            broke, told = told, broke
        assert broke.ended == told.ended == "broken"
        # The near relay has its socket as `b`, the far one as `a`.
        assert broke.broken_side == ("b" if near_breaks else "a")
        assert told.broken_side == ("b" if near_breaks else "a")


LAST_WORDS = b"421 too many connections\r\n" * 500


@pytest.mark.parametrize("near_breaks", [True, False])
@pytest.mark.parametrize("flooded", [True, False])
async def test_what_a_side_said_before_it_reset_arrives(
    way: str, near_breaks: bool, flooded: bool
) -> None:
    """A server that is full says so and closes with what it was sent unread, which is a reset."""
    async with (
        carried_sessions(way) as (client, server),
        relayed(client, server) as one,
        trio.open_nursery() as nursery,
    ):
        breaking, other = (one.near, one.far) if near_breaks else (one.far, one.near)

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await other.send_all(bytes(MIB))

        if flooded:
            nursery.start_soon(flood)
            assert await breaking.receive_some(1)
            await trio.testing.wait_all_tasks_blocked(0.01)  # until it is stopped
        await breaking.send_all(LAST_WORDS)
        await abort(breaking)
        got = bytearray()
        # An error shows once: to the sender, when there is one.
        told = contextlib.suppress if flooded else pytest.raises
        with trio.fail_after(20), told(trio.BrokenResourceError):
            while piece := await other.receive_some():
                got += piece
        assert got == LAST_WORDS
        await over(one)
        assert one.near_result.ended == one.far_result.ended == "broken"


@pytest.mark.parametrize("side", ["near", "far"])
async def test_cancelling_a_relay_is_a_reset_for_both_peers(way: str, side: str) -> None:
    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        await one.near.send_all(b"x")
        assert await one.far.receive_some() == b"x"
        (one.near_scope if side == "near" else one.far_scope).cancel()
        for stream in (one.near, one.far):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await over(one)
        result = one.near_result if side == "near" else one.far_result
        assert result.ended == "cancelled"
        assert (result.bytes_a_to_b, result.bytes_b_to_a) in {(1, 0), (0, 1)}
        await client.ping()
        assert client.stream_count == server.stream_count == 0


async def test_megabytes_cross_each_other_unharmed(way: str) -> None:
    dice = random.Random(1)
    question, answer = dice.randbytes(3 * MIB + 17), dice.randbytes(2 * MIB + 5)
    received: dict[str, str] = {}

    async def send(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receive(stream: trio.SocketStream, name: str) -> None:
        received[name] = hashlib.sha256(await read_all(stream)).hexdigest()

    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, one.near, question)
                nursery.start_soon(send, one.far, answer)
                nursery.start_soon(receive, one.near, "answer")
                nursery.start_soon(receive, one.far, "question")
        await over(one)
    assert received == {
        "question": hashlib.sha256(question).hexdigest(),
        "answer": hashlib.sha256(answer).hexdigest(),
    }


async def test_a_reader_that_does_not_read_stops_its_sender_and_no_other(way: str) -> None:
    async with (
        carried_sessions(way, limits=Limits(max_stream_window=262_144)) as (client, server),
        relayed(client, server) as stuck,
        relayed(client, server) as other,
    ):
        sent = 0
        with trio.move_on_after(0.5) as patience:
            while True:
                await stuck.near.send_all(bytes(65_536))
                sent += 65_536
        assert patience.cancelled_caught
        assert sent < 40 * MIB, "nothing stopped the sender"
        for engine in (client._engine, server._engine):
            assert engine.unread_bytes <= 262_144
            assert engine.queued_bytes <= Limits().session_send_buffer + 65_536
        await other.near.send_all(b"still here")
        with trio.fail_after(20):
            assert await next_bytes(other.far, 10) == b"still here"
            await other.far.send_all(b"and back")
            assert await next_bytes(other.near, 8) == b"and back"


async def test_many_relays_at_once_keep_their_bytes_apart(way: str) -> None:
    async def talk(one: Relayed, number: int) -> None:
        for turn in range(20):
            data = b"%d/%d;" % (number, turn) * (1 + turn * number)
            await one.near.send_all(data)
            got = b""
            while len(got) < len(data):
                got += bytes(await one.far.receive_some())
            assert got == data
            await one.far.send_all(data[:100])
            assert await one.near.receive_some()
        await one.end()

    async def run(number: int) -> None:
        async with relayed(client, server, opening) as one:
            await talk(one, number)

    opening = trio.Lock()
    async with carried_sessions(way) as (client, server):
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(run, number)
        await client.ping()
        assert client.stream_count == server.stream_count == 0


@pytest.mark.parametrize("how", ["abort", "close", "cut"])
async def test_the_end_of_the_session_is_a_reset_for_who_is_relayed(way: str, how: str) -> None:
    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        await one.near.send_all(b"x")
        assert await one.far.receive_some() == b"x"
        if how == "abort":
            client.abort()
        elif how == "close":
            await client.aclose()
        else:
            below = client._transport
            below = getattr(below, "transport", below)
            getattr(below, "transport_stream", below).socket.shutdown(socket.SHUT_RDWR)
        for stream in (one.near, one.far):
            with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await over(one)
        assert one.near_result.ended == one.far_result.ended == "broken"


async def test_a_stream_in_python_hands_over_to_a_relay_in_mid_stream(way: str) -> None:
    """What was received before a relay begins, and what its opener has queued, keep their order."""
    from support.streams import socket_pair
    from tunnelmux.relay import relay

    async with carried_sessions(way) as (client, server), trio.open_nursery() as nursery:
        ours = await client.open_stream()
        await ours.send_all(b"head;")
        theirs = await server.accept_stream()
        assert await next_bytes(theirs, 5) == b"head;"
        await ours.send_all(b"early;" * 5000)
        await client.ping()
        await theirs.send_all(b"answer;")
        far, far_local = await socket_pair()
        nursery.start_soon(lambda: relay(theirs, far_local, from_a=b"kept;", from_b=b"first;"))
        await ours.send_all(b"late")
        await ours.send_eof()
        assert await read_all(far) == b"kept;" + b"early;" * 5000 + b"late"
        await far.send_all(b"end")
        await far.send_eof()
        await far.aclose()
        got = b"".join([piece async for piece in ours])
        assert got == b"answer;first;end"


@pytest.mark.parametrize("in_time", [True, False])
async def test_a_reset_does_not_overtake_what_a_slow_peer_has_not_taken_yet(
    way: str, in_time: bool
) -> None:
    """The relay's kernel took all of it, the peer's only a part, when the reset comes."""
    if not way.startswith("pump"):
        pytest.skip("Trio's streams reset at once")
    size = 140_000
    async with carried_sessions(way) as (client, server), relayed(client, server) as one:
        await one.far.send_all(bytes(size))
        await trio.testing.wait_all_tasks_blocked(0.05)  # all is with the relays
        await abort(one.far)
        await over(one)
        assert client._pump is not None
        core = client._pump.core
        assert core.leaving_count == 1
        if not in_time:
            core.close_left(trio.current_time() + 6.0, 5.0)
            assert core.leaving_count == 0
        got = 0
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            while piece := await one.near.receive_some(10_000):
                got += len(piece)
        assert (got == size) == in_time
