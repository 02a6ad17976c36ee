"""Short calls to many agents at once. By one of them they make their next session before this one
ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from tunnelmux.errors import SessionError
from tunnelmux.http import ClientConnection, UpstreamGone
from tunnelmux.http.body import BadBody
from tunnelmux.limits import IngressLimits
from tunnelmux.observability import get_logger
from tunnelmux.relay import abort
from tunnelmux.sessions import LocalHandle
from tunnelmux.wire import AGENT_AUTHORITY, MOVE_PATH

__all__ = ["move_agents", "post_to_agents"]

_log = get_logger("proxy.tunnel")

_TIMEOUT = 15.0
# Seconds for all agents to make a session. Who has none by then makes it when this one ends.

_AT_ONCE = 128
# Agents that are asked at the same time: each makes a handshake with the other process.


async def move_agents(sessions: Sequence[LocalHandle], limits: IngressLimits) -> None:
    """Ask the agents of these sessions to move. Returns when all have answered, or after some
    seconds."""
    moved = await post_to_agents(sessions, MOVE_PATH, limits, _TIMEOUT)
    _log.info("agents moved", count=moved, left=len(sessions) - moved)


async def post_to_agents(
    sessions: Sequence[LocalHandle],
    path: bytes,
    limits: IngressLimits,
    timeout: float,
    *,
    body: Callable[[], bytes] = bytes,
) -> int:
    """Call this path of these agents' own API, with a body for each, within `timeout` seconds.
    Returns how many did what it asks for. Older agents do not know every path."""
    turns = trio.CapacityLimiter(_AT_ONCE)
    done = 0

    async def ask(handle: LocalHandle) -> None:
        nonlocal done
        async with turns:
            has_done = await _post(handle, path, limits, body())
            done += has_done  # not in one line: it would add to what was before the wait

    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            for handle in sessions:
                nursery.start_soon(ask, handle)
    return done


async def _post(handle: LocalHandle, path: bytes, limits: IngressLimits, body: bytes) -> bool:
    target = b"http://" + AGENT_AUTHORITY + path
    headers = [
        (b"Host", AGENT_AUTHORITY),
        (b"Content-Length", b"%d" % len(body)),
        (b"Connection", b"close"),
    ]
    try:
        stream = await handle.open_stream()
    except SessionError:
        return False
    try:
        client = ClientConnection(stream, limits)
        await client.send_request(b"POST", target, headers, first=body, end=True)
        while (head := await client.read_head()).is_interim:
            pass
        return head.status < 300
    except (UpstreamGone, BadBody):
        return False
    finally:
        with trio.CancelScope(shield=True):
            await abort(stream)
