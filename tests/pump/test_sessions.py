"""A session in the pump, as its users see it: streams, pings, control frames, and its end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from support.carried import WAYS, carried_sessions
from support.streams import socket_pair, websocket_pair
from tunnelmux.errors import SessionLost, SessionTimeout
from tunnelmux.limits import Limits
from tunnelmux.mux import Session, open_session
from tunnelmux.pump.data_pump import open_pump
from tunnelmux.relay import abort

PUMPED = [way for way in WAYS if way.startswith("pump")]


@pytest.mark.parametrize("way", WAYS)
async def test_streams_keep_trios_contract(way: str) -> None:
    async with carried_sessions(way) as (client, server):

        async def make() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
            ours = await client.open_stream()
            return ours, await server.accept_stream()

        with trio.fail_after(30):
            await trio.testing.check_half_closeable_stream(make, None)


@pytest.mark.parametrize("way", WAYS)
async def test_a_bulk_transfer_between_two_streams_of_python(way: str) -> None:
    size = 5_000_000
    async with carried_sessions(way) as (client, server), trio.open_nursery() as nursery:
        ours = await client.open_stream()

        async def send() -> None:
            await ours.send_all(bytes(range(256)) * (size // 256))
            await ours.send_eof()

        nursery.start_soon(send)
        theirs = await server.accept_stream()
        got = b"".join([piece async for piece in theirs])
        assert got == bytes(range(256)) * (size // 256)
        assert client.bytes_sent > size // 256 * 256
        assert server.bytes_received == client.bytes_sent
        await theirs.aclose()


@pytest.mark.parametrize("way", WAYS)
async def test_pings_measure_and_closing_is_in_order(way: str) -> None:
    async with carried_sessions(way) as (client, server):
        assert 0 < await client.ping() < 5
        assert 0 < await server.ping() < 5
        await client.aclose()
        with trio.fail_after(20):
            await server.wait_closed()
        assert type(server.error).__name__ in {"SessionClosed", "SessionGoneAway"}


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_session_in_its_owners_task_needs_no_other(
    nursery: trio.Nursery, cancelled: bool
) -> None:
    near, far = await socket_pair()
    async with open_pump() as pump, open_session(far, is_client=False, pump=pump) as server:
        session = Session(near, is_client=True, pump=pump)
        owner = trio.CancelScope()

        async def own() -> None:
            with owner:
                await session.run()

        nursery.start_soon(own)
        with trio.fail_after(20):
            stream = await session.open_stream()
            await stream.send_all(b"here")
            assert await (await server.accept_stream()).receive_some() == b"here"
            (task,) = nursery.child_tasks
            assert not task.child_nurseries
            if cancelled:
                owner.cancel()
            else:
                server.go_away()
                await stream.aclose()
                await session.aclose()
            await server.wait_closed()
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
        assert session.is_closed and near.socket.fileno() < 0


@pytest.mark.parametrize("way", PUMPED)
async def test_a_broken_frame_ends_the_session_with_the_cause(way: str) -> None:
    from tunnelmux.errors import RemoteProtocolError

    async with carried_sessions(way) as (client, server):
        stream = await client.open_stream()
        tunnel = server.tunnel
        assert tunnel is not None
        tunnel.feed(b"\x07" + bytes(11), trio.current_time())
        with trio.fail_after(20):
            await server.wait_closed()
            assert isinstance(server.error, RemoteProtocolError)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await client.wait_closed()


async def test_control_frames_pass_between_the_messages() -> None:
    """A peer that pings the WebSocket gets its pongs while the pump moves megabytes."""
    async with open_pump() as pump, trio.open_nursery() as nursery:
        ends = await websocket_pair(nursery, await socket_pair())
        async with (
            open_session(ends[0], is_client=True, pump=pump) as client,
            open_session(ends[1], is_client=False, pump=pump) as server,
        ):
            ours = await client.open_stream()
            nursery.start_soon(ours.send_all, bytes(3_000_000))
            theirs = await server.accept_stream()
            with trio.fail_after(30):
                for end in ends:
                    for _ in range(5):
                        await end._connection.ping()
                got = 0
                while got < 3_000_000:
                    got += len(await theirs.receive_some())


async def test_a_websocket_that_its_peer_closes_ends_the_session() -> None:
    async with open_pump() as pump, trio.open_nursery() as nursery:
        ends = await websocket_pair(nursery, await socket_pair())
        async with open_session(ends[0], is_client=True, pump=pump) as client:
            stream = await client.open_stream()
            while client.tunnel is None:
                await trio.lowlevel.checkpoint()
            with trio.fail_after(20):
                await ends[1].aclose()
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                await client.wait_closed()
            assert isinstance(client.error, SessionLost)


async def test_a_websocket_that_is_over_before_it_is_lent_ends_the_session() -> None:
    async with open_pump() as pump, trio.open_nursery() as nursery:
        near, far = await websocket_pair(nursery, await socket_pair())
        await far._connection.send_message("a text")
        while near._wire.frames.error is None:
            await trio.lowlevel.checkpoint()
        async with open_session(near, is_client=True, pump=pump) as session:
            with trio.fail_after(20):
                await session.wait_closed()
            assert "text" in str(session.error)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", PUMPED)
async def test_a_silent_peer_is_noticed(way: str) -> None:
    limits = Limits(keepalive_interval=0.05, keepalive_timeout=0.1)
    patient = Limits(keepalive_interval=60, keepalive_timeout=60)
    async with carried_sessions(way, limits=limits, server_limits=patient) as (client, server):
        tunnel = server.tunnel
        assert tunnel is not None
        tunnel.detach()  # it neither reads nor writes from now on
        with trio.fail_after(20):
            await client.wait_closed()
        assert isinstance(client.error, SessionTimeout)
        server.abort()


@asynccontextmanager
async def a_stopped_pump() -> AsyncIterator[trio.abc.Stream]:
    """A stream whose session's pump was stopped under it."""
    near, far = await socket_pair()
    async with trio.open_nursery() as nursery:
        started = trio.Event()
        scope = trio.CancelScope()
        held: list[trio.abc.Stream] = []

        async def hold() -> None:
            async with open_pump() as pump:
                assert pump is not None
                async with open_session(near, is_client=True, pump=pump) as session:
                    held.append(await session.open_stream())
                    while session.tunnel is None:
                        await trio.lowlevel.checkpoint()
                    pump.core.close()
                    started.set()
                    with scope:
                        await trio.sleep_forever()

        nursery.start_soon(hold)
        await started.wait()
        yield held[0]
        scope.cancel()
    await abort(far)


async def test_a_stopped_pump_breaks_what_it_carried() -> None:
    async with a_stopped_pump() as stream:
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError, match="pump"):
            await stream.receive_some()


async def test_a_socket_that_is_closed_at_once_is_a_lost_session_and_no_failure() -> None:
    async with open_pump() as pump, trio.open_nursery() as nursery:
        near, far = await websocket_pair(nursery, await socket_pair())
        async with open_session(near, is_client=True, pump=pump) as session:
            await trio.aclose_forcefully(near)
            with trio.fail_after(20):
                await session.wait_closed()
        assert isinstance(session.error, SessionLost)
        await far.aclose()


async def test_frames_that_cost_much_are_read_a_few_at_a_time() -> None:
    """Streams opened and reset at once: others waited for all that fitted into one read."""
    ours, theirs = await socket_pair()
    raw = ours.socket
    frames = b"".join(
        struct.pack(">BBHII", 0, 1, flags, number, 0)
        for number in range(1, 200_000, 2)
        for flags in (1, 8)
    )

    def flood() -> None:
        with socket.socket(fileno=os.dup(raw.fileno())) as sending:
            sending.setblocking(True)
            with contextlib.suppress(OSError):
                sending.sendall(frames)

    async with (
        open_pump() as pump,
        open_session(theirs, is_client=False, pump=pump) as session,
        trio.open_nursery() as nursery,
    ):
        await trio.testing.wait_all_tasks_blocked()
        tunnel = session.tunnel
        assert tunnel is not None
        assert tunnel.portion == 262_144
        tunnel.turn = 0.0  # as if each read took too long
        nursery.start_soon(trio.to_thread.run_sync, flood)
        portions, read = set[int](), 0
        while read < len(frames):
            await trio.lowlevel.checkpoint()
            if tunnel.bytes_received > read:
                read = tunnel.bytes_received
                portions.add(tunnel.portion)
            if tunnel.portion == 8192:
                tunnel.turn = 60.0  # as if they cost little again
        assert {8192, 262_144} <= portions
        await abort(ours)
