"""Log visits that last, because the line at their end may come hours later."""

from __future__ import annotations

from typing import NoReturn

import trio

from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.visit import Visit, VisitRegister

__all__ = ["tell_long_visits"]

_log = get_logger("proxy.visits")

_LONG = 5.0
# Seconds after which a request or connection is logged. Most have ended by then.

_PORTION = 256
# Visits that are checked before other tasks run.


async def tell_long_visits(visits: VisitRegister) -> NoReturn:
    """Write one line for each request, connection, forward or command that has lasted for some
    seconds; until cancelled. The line at the end has the same `stream`."""
    told: dict[int, float] = {}  # when the logged request began, by the visit's number
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
        # A later request of the same connection began later than this.
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
