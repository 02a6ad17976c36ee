"""A line of the log about each visit that lasts: the line at its end may be hours away."""

from __future__ import annotations

from typing import NoReturn

import trio

from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.visit import Visit, VisitRegister

__all__ = ["tell_long_visits"]

_log = get_logger("proxy.visits")

_LONG = 5.0
# Seconds after which a download, a WebSocket or a connection has a line. Most are over by then.

_PORTION = 256
# Visits that are looked at before other tasks get their turn.


async def tell_long_visits(visits: VisitRegister) -> NoReturn:
    """Write one line for each request, connection, forward or command that has lasted for some
    seconds; until cancelled. The line at the end has the same `stream`."""
    told: dict[int, float] = {}  # the moment at which what was told began, by the visit's number
    while True:
        await trio.sleep(_LONG / 2)
        told = await _look(visits, told)


async def _look(visits: VisitRegister, told: dict[int, float]) -> dict[int, float]:
    still: dict[int, float] = {}
    for index, visit in enumerate(visits):
        if index % _PORTION == _PORTION - 1:
            await trio.lowlevel.checkpoint()
        seconds = visit.busy_for
        if seconds < _LONG:
            continue
        began = trio.current_time() - seconds
        before = told.get(visit.number)
        # Another request of the same connection began later, by seconds.
        if before is None or began > before + _LONG / 2:
            _tell(visit, seconds)
            before = began
        still[visit.number] = before
    return still


def _tell(visit: Visit, seconds: float) -> None:
    stream = visit.stream_now
    _log.info(
        "long visit",
        visit=visit.id,
        way=visit.way,
        visitor=visit.asked_by,
        device=visit.device,
        **({"service": visit.service} if visit.service else {}),
        **({"stream": stream} if stream is not None else {}),
        seconds=round(seconds, 1),
    )
