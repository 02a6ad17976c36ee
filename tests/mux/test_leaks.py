"""A hundred thousand streams later the process is as large as it was."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from support.sessions import session_pair, stream_pair
from support.streams import next_bytes
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream

pytestmark = pytest.mark.slow

ROOM = 1 << 20
"""What the allocator may keep for itself; a leak of 500 bytes for each of 2,500 streams is more."""


def resident() -> int:
    """Bytes of this process in memory now (statm of proc(5)); what it once had does not count."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def exchange(client: Engine, server: Engine) -> None:
    while client.wants_send or server.wants_send:
        server.receive_data(client.data_to_send(0.0), 0.0)
        client.receive_data(server.data_to_send(0.0), 0.0)


def both_finish(ours: EngineStream, theirs: EngineStream) -> None:
    ours.finish()
    theirs.finish()


def both_close(ours: EngineStream, theirs: EngineStream) -> None:
    ours.close(0.0)
    theirs.close(0.0)


def one_resets(ours: EngineStream, theirs: EngineStream) -> None:
    theirs.send(b"partial")
    ours.reset(1)


ENDINGS: tuple[Callable[[EngineStream, EngineStream], None], ...] = (
    both_finish,
    both_close,
    one_resets,
)


@pytest.mark.timeout(180)
def test_a_hundred_thousand_streams_between_two_engines() -> None:
    client, server = Engine(is_client=True), Engine(is_client=False)

    def run(count: int) -> None:
        for number in range(count):
            ours = client.open_stream(0.0)
            ours.send(b"request")
            exchange(client, server)
            theirs = server.accept_stream()
            assert theirs is not None and theirs.receive(100) == b"request"
            end = ENDINGS[number % len(ENDINGS)]
            end(ours, theirs)
            exchange(client, server)
            if end is both_finish:
                assert ours.receive(1) == theirs.receive(1) == b""
            client.take_changed()
            server.take_changed()

    run(5_000)
    before = resident()
    run(100_000)
    assert resident() - before < ROOM
    assert client.stream_count == server.stream_count == 0


@pytest.mark.timeout(180)
async def test_thousands_of_streams_of_trio_sessions() -> None:
    async with session_pair() as (client, server):

        async def run(count: int) -> None:
            for _ in range(count):
                ours, theirs = await stream_pair(client, server)
                await ours.send_all(b"request")
                assert await next_bytes(theirs, 7) == b"request"
                await theirs.aclose()
                await ours.aclose()

        await run(500)
        before = resident()
        await run(2_500)
        assert resident() - before < ROOM
