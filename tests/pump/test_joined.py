"""What two joined streams carry, and how they end: a hop between two nodes is made of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from support.carried import tls_contexts
from support.streams import next_bytes, socket_pair, tls_pair
from tunnelmux.errors import StreamReset
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, Stream, open_session
from tunnelmux.pump.data_pump import open_pump
from tunnelmux.relay import join

MIB = 1 << 20
LIMITS = Limits(max_stream_window=262_144)
WAYS = ["pump", "streams"]
"""With a pump in the middle, and without."""


@dataclass
class Chain:
    """A stream to a node, and the stream of that node to a device, joined at the node."""

    near: Stream
    far: Stream
    node: tuple[Session, Session]
    """The node's two sessions: with the other node, and with the device."""
    peers: tuple[Session, Session]
    """The other ends of these: of the other node, and of the agent."""
    joining: trio.CancelScope
    over: trio.Event

    async def is_over(self) -> None:
        with trio.fail_after(30):
            await self.over.wait()

    def count(self) -> int:
        return sum(session.stream_count for session in self.node)


@asynccontextmanager
async def chained(way: str, agent_limits: Limits = LIMITS) -> AsyncIterator[Chain]:
    async with open_pump() as pump, trio.open_nursery() as nursery:
        middle = pump if way == "pump" else None
        hop, device = await tls_pair(*tls_contexts()), await socket_pair()
        async with (
            open_session(hop[0], is_client=True, limits=LIMITS) as visiting,
            open_session(hop[1], is_client=False, limits=LIMITS, pump=middle) as hop_end,
            open_session(device[0], is_client=True, limits=LIMITS, pump=middle) as device_end,
            open_session(device[1], is_client=False, limits=agent_limits) as agent,
        ):
            while way == "pump" and (hop_end.tunnel is None or device_end.tunnel is None):
                await trio.lowlevel.checkpoint()
            near = await visiting.open_stream()
            taken = await hop_end.accept_stream()
            onward = await device_end.open_stream()
            far = await agent.accept_stream()
            node, peers = (hop_end, device_end), (visiting, agent)
            chain = Chain(near, far, node, peers, trio.CancelScope(), trio.Event())

            async def run() -> None:
                with chain.joining:
                    await join(taken, onward, b"early;")
                chain.over.set()

            nursery.start_soon(run)
            assert await next_bytes(far, 6) == b"early;"
            yield chain
            chain.joining.cancel()
        nursery.cancel_scope.cancel()


async def read_all(stream: Stream) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("near_ends_first", [True, False])
async def test_half_close_leaves_the_other_direction_open(way: str, near_ends_first: bool) -> None:
    async with chained(way) as chain:
        first, second = (chain.near, chain.far) if near_ends_first else (chain.far, chain.near)
        await first.send_all(b"all I have")
        await first.send_eof()
        with trio.fail_after(30):
            assert await read_all(second) == b"all I have"
            await second.send_all(b"late answer")
            assert await next_bytes(first, 11) == b"late answer"
            await second.send_eof()
            assert await first.receive_some() == b""
        await chain.is_over()
        with trio.fail_after(30):
            while chain.count():  # noqa: ASYNC110  the last ends are on their way
                await trio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("near_breaks", [True, False])
async def test_a_reset_follows_what_came_before_it(way: str, near_breaks: bool) -> None:
    said = b"421 too many connections\r\n" * 6000
    async with chained(way) as chain:
        breaking, other = (chain.near, chain.far) if near_breaks else (chain.far, chain.near)
        with trio.fail_after(30):
            await breaking.send_all(said)
            await breaking.wait_sent()
            breaking.reset(7)
            got = b""
            with pytest.raises(trio.BrokenResourceError):
                while piece := await other.receive_some():
                    got += piece
        assert got == said
        await chain.is_over()


@pytest.mark.parametrize("way", WAYS)
async def test_megabytes_cross_each_other_unharmed(way: str) -> None:
    dice = random.Random(1)
    sent = {"near": dice.randbytes(3 * MIB + 17), "far": dice.randbytes(2 * MIB + 5)}
    received: dict[str, str] = {}

    async def send(stream: Stream, data: bytes) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receive(stream: Stream, name: str) -> None:
        received[name] = hashlib.sha256(await read_all(stream)).hexdigest()

    async with chained(way) as chain:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, chain.near, sent["near"])
                nursery.start_soon(send, chain.far, sent["far"])
                nursery.start_soon(receive, chain.far, "near")
                nursery.start_soon(receive, chain.near, "far")
        await chain.is_over()
    assert received == {name: hashlib.sha256(data).hexdigest() for name, data in sent.items()}


SMALL = Limits(max_stream_window=262_144, max_frame_payload=100)


async def test_small_frames_that_came_together_leave_in_a_large_one() -> None:
    said = random.Random(2).randbytes(20_000)
    async with chained("pump", SMALL) as chain:
        heard, agents = (session.bytes_received for session in (chain.peers[0], chain.node[1]))
        await chain.far.send_all(said)
        with trio.fail_after(30):
            assert await next_bytes(chain.near, len(said)) == said
        # 200 frames came. Each that leaves costs a header of 12 bytes.
        assert chain.node[1].bytes_received - agents >= len(said) + 200 * 12
        assert chain.peers[0].bytes_received - heard < len(said) + 100 * 12


async def test_small_frames_of_two_streams_do_not_mix() -> None:
    dice = random.Random(3)
    sent = [dice.randbytes(300_000) for _ in range(2)]
    received = [b"", b""]

    async def receive(stream: Stream, number: int) -> None:
        received[number] = await next_bytes(stream, len(sent[number]))

    async with chained("pump", SMALL) as chain, trio.open_nursery() as nursery:
        near = await chain.peers[0].open_stream()
        taken = await chain.node[0].accept_stream()
        onward = await chain.node[1].open_stream()
        far = await chain.peers[1].accept_stream()
        nursery.start_soon(join, taken, onward)
        with trio.fail_after(30):
            async with trio.open_nursery() as transfers:
                for number, (source, sink) in enumerate([(chain.far, chain.near), (far, near)]):
                    transfers.start_soon(source.send_all, sent[number])
                    transfers.start_soon(receive, sink, number)
        nursery.cancel_scope.cancel()
    assert received == sent


async def test_who_does_not_read_stops_the_sender_at_a_bounded_number_of_bytes() -> None:
    async with chained("pump") as chain:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await chain.far.send_all(bytes(65_536))
                sent += 65_536

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                before = -1
                while sent != before:
                    before = sent
                    await trio.testing.wait_all_tasks_blocked(0.1)
                nursery.cancel_scope.cancel()
        # A window at each of the two streams, and what the sender itself has queued.
        assert 0 < sent <= 2 * 262_144 + Limits().stream_send_buffer + 65_536
        hop, device = chain.node
        assert device._engine.unread_bytes <= 262_144
        assert hop._engine.queued_bytes == 0, "what waits is kept where it came"
        with trio.fail_after(30):
            got = 0
            while got < sent:
                got += len(await chain.near.receive_some())
            await chain.near.send_all(b"still here")
            assert await next_bytes(chain.far, 10) == b"still here"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", [0, 1])
async def test_the_end_of_a_session_resets_the_stream_of_the_other(way: str, which: int) -> None:
    async with chained(way) as chain:
        await chain.near.send_all(b"x")
        assert await next_bytes(chain.far, 1) == b"x"
        chain.node[which].abort()
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await (chain.far, chain.near)[which].receive_some()
        await chain.is_over()
        assert chain.count() == 0


@pytest.mark.parametrize("way", WAYS)
async def test_cancelling_resets_both(way: str) -> None:
    async with chained(way) as chain:
        chain.joining.cancel()
        for stream in (chain.near, chain.far):
            with trio.fail_after(30), pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, StreamReset)
        assert chain.over.is_set()
