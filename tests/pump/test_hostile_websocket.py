"""What a peer can make the other end of a WebSocket keep, without reading what it gets back."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest
import trio

from support.carried import tls_contexts
from support.streams import socket_pair, tls_pair, websocket_pair
from tunnelmux.limits import Limits
from tunnelmux.mux import open_session
from tunnelmux.pump.data_pump import open_pump

FLOOD = 96 << 20
FIRST = 8 << 20
"""What is sent before anything is measured: with it come the buffers that are kept anyway."""
ROOM = 12 << 20
"""What may be kept of it: buffers for one read, and what the allocator keeps for itself."""


PATIENT = Limits(keepalive_interval=600.0, keepalive_timeout=600.0)
"""No answer comes from the flooding end, and on a busy machine the flood takes its time."""


def resident() -> int:
    """Bytes of this process in memory now (statm of proc(5))."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def control_frame(opcode: int, *, masked: bool) -> bytes:
    head = bytes([0x80 | opcode, (0x80 if masked else 0) | 125])
    return head + (bytes(4) if masked else b"") + b"x" * 125


async def flood(transport: trio.abc.Stream, frame: bytes, size: int) -> None:
    """Send it over and over; return when all went, or when the other end has stopped reading."""
    piece = frame * 8_000
    for _ in range(size // len(piece)):
        with trio.move_on_after(2) as waiting:
            await transport.send_all(piece)
        if waiting.cancelled_caught:
            return


@pytest.mark.slow
@pytest.mark.parametrize("opcode", [pytest.param(9, id="ping"), pytest.param(10, id="pong")])
@pytest.mark.parametrize("victim", ["proxy", "agent"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("pumped", [True, False], ids=["pump", "streams"])
async def test_control_frames_that_nobody_reads_the_answers_to_cost_no_memory(
    opcode: int, victim: str, secure: bool, pumped: bool
) -> None:
    """A device that sent 300 MiB of Pings once made the proxy 600 MiB larger."""
    async with open_pump() as pump, trio.open_nursery() as nursery:
        pair = await (tls_pair(*tls_contexts()) if secure else socket_pair())
        agent, proxy = await websocket_pair(nursery, pair)
        near, far = (proxy, agent) if victim == "proxy" else (agent, proxy)
        await far.lend()  # so that its own reader stops
        used_pump = pump if pumped else None
        async with open_session(
            near, is_client=near is agent, limits=PATIENT, pump=used_pump
        ) as session:
            while pumped and session.tunnel is None:
                await trio.lowlevel.checkpoint()
            frame = control_frame(opcode, masked=far is agent)
            await flood(far.transport, frame, FIRST)
            before = resident()
            await flood(far.transport, frame, FLOOD)
            assert resident() - before < ROOM
            assert not session.is_closed
            await trio.aclose_forcefully(far)
        nursery.cancel_scope.cancel()
