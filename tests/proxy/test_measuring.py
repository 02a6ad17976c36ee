"""The proxy's end of a measurement of an agent's way: `tunnelmux doctor --agent`."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from support.agents import TunnelBench, gone, known
from tunnelmux.errors import ConnectRefused, SessionError
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.mux.stream import Stream
from tunnelmux.proxy.tunnels.enrolment import Enrolment
from tunnelmux.proxy.tunnels.tunnel import TunnelSettings

PATH = "/tunnel/connect/measure"


def bench_with(nursery: trio.Nursery, **limits: float) -> TunnelBench:
    return TunnelBench(
        nursery,
        [known("dev1", "token-of-dev1"), known("dev2", "token-of-dev2")],
        settings=TunnelSettings(ingress=IngressLimits(**limits)),  # type: ignore[arg-type]
    )


async def read_to_the_end(stream: Stream) -> tuple[dict[str, float], int]:
    """The line with what came, and how many bytes came behind it."""
    content = b""
    while data := await stream.receive_some():
        content += data
    line, _, rest = content.partition(b"\n")
    return json.loads(line), len(rest)


async def test_it_counts_what_comes_sends_back_and_leaves_the_agent_alone(
    nursery: trio.Nursery,
) -> None:
    bench = bench_with(nursery, measurement_bytes=300_000)
    async with bench.dial() as agent:
        session = await bench.arrived()
        async with (
            bench.dial(path=PATH) as dialled,
            await dialled.session.open_stream() as stream,
        ):
            await stream.send_all(bytes(70_000))
            await stream.send_eof()
            came, sent = await read_to_the_end(stream)
        assert (came["bytes"], sent) == (70_000, 300_000)
        assert [handle.device for handle in bench.server.sessions] == ["dev1"]
        assert await bench.arrived() is session
        assert not agent.session.is_closed


async def test_no_more_bytes_are_taken_or_sent_than_the_limit_says(nursery: trio.Nursery) -> None:
    bench = bench_with(nursery, measurement_bytes=1000)
    hasty = Limits(close_grace=0.1)  # what is still queued at the end is of no use
    async with bench.dial(path=PATH, limits=hasty) as dialled, trio.open_nursery() as sending:
        stream = await dialled.session.open_stream()
        # More than fits into the window: it waits for ever where nothing is read.
        sending.start_soon(stream.send_all, bytes(10_000_000))
        came, sent = await read_to_the_end(stream)
        assert came["bytes"] < 300_000
        assert sent == 1000
        sending.cancel_scope.cancel()


async def test_neither_way_takes_longer_than_the_limit_says(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = bench_with(nursery, measurement_time=3.0)
    async with bench.dial(path=PATH) as dialled:
        began = trio.current_time()
        stream = await dialled.session.open_stream()
        await stream.send_all(b"x")
        line = await stream.receive_some(20_000)
        assert trio.current_time() - began == pytest.approx(3.0, abs=0.1)
        assert json.loads(line.partition(b"\n")[0])["bytes"] == 1
        # What is not read stops the proxy, which gives up when its time is over.
        await trio.sleep(3.1)
        sent = 0
        while data := await stream.receive_some():
            sent += len(data)
        assert 0 < sent < 1_000_000
        assert trio.current_time() - began < 6.5


async def test_one_that_does_nothing_is_ended(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = bench_with(nursery)
    began = trio.current_time()
    async with bench.dial(path=PATH) as dialled:
        with pytest.raises(SessionError):
            await dialled.session.accept_stream()
        assert 10 <= trio.current_time() - began < 20
    async with bench.dial(path=PATH):
        pass  # its place is free again


async def test_one_of_each_device_and_so_many_in_all(nursery: trio.Nursery) -> None:
    bench = bench_with(nursery, max_measurements=1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bench.dial(path=PATH))
        for token in ("token-of-dev1", "token-of-dev2"):
            with pytest.raises(ConnectRefused) as caught:
                async with bench.dial(token, path=PATH):
                    pass
            assert (caught.value.status, caught.value.reason) == (503, "device-busy")
            assert "limits.max_measurements" in str(caught.value)
    await gone(bench)


async def test_it_is_for_devices_only_and_uses_no_invitation_up(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    enrolment = Enrolment(tmp_path)
    bench = TunnelBench(nursery, [known("dev1", "token-of-dev1")], enrolment=enrolment)
    invitation = enrolment.invitations.create(900).reveal()
    for token in ("wrong", invitation, None):
        with pytest.raises(ConnectRefused) as caught:
            async with bench.dial(token, path=PATH, name="dev7"):
                pass
        assert caught.value.status == 401
    assert enrolment.invitations.knows(invitation)
