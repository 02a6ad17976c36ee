"""Agents are asked to make their next session before the present one ends."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from tunnelmux.errors import SessionError
from tunnelmux.http import ClientConnection, UpstreamGone
from tunnelmux.http.body import BadBody
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.relay import abort
from tunnelmux.sessions import LocalHandle
from tunnelmux.wire import AGENT_AUTHORITY, MOVE_PATH

__all__ = ["move_agents"]

_log = get_logger("proxy.tunnel")

_TIMEOUT = 15.0
# Seconds for all agents to make a session. Who has none by then makes it when this one ends.

_AT_ONCE = 128
# Agents that are asked at the same time: each makes a handshake with the other process.


async def move_agents(sessions: Sequence[LocalHandle], limits: IngressLimits) -> None:
    """Ask the agents of these sessions to move. Returns when all have answered, or after some
    seconds."""
    turns = trio.CapacityLimiter(_AT_ONCE)
    moved = 0

    async def ask(handle: LocalHandle) -> None:
        nonlocal moved
        async with turns:
            has_moved = await _ask(handle, limits)
            moved += has_moved  # not in one line: it would add to what was before the wait

    with trio.move_on_after(_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for handle in sessions:
                nursery.start_soon(ask, handle)
    _log.info("agents moved", count=moved, left=len(sessions) - moved)


async def _ask(handle: LocalHandle, limits: IngressLimits) -> bool:
    """Whether the agent has its next session now. Older agents have no answer to this."""
    target = b"http://" + AGENT_AUTHORITY + MOVE_PATH
    headers = [(b"Host", AGENT_AUTHORITY), (b"Content-Length", b"0"), (b"Connection", b"close")]
    try:
        stream = await handle.open_stream()
    except SessionError:
        return False
    try:
        client = ClientConnection(stream, limits)
        await client.send_request(b"POST", target, headers, end=True)
        while (head := await client.read_head()).is_interim:
            pass
        return head.status < 300
    except (UpstreamGone, BadBody):
        return False
    finally:
        with trio.CancelScope(shield=True):
            await abort(stream)
