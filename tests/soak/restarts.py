"""What is done to the stage, in turn."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

from soak.stage import Restart, Stage

__all__ = ["run_restarts"]

KILLING_PART = 0.4
"""Of the time: later no daemon is ended, so that its memory can be watched."""

Step = tuple[str, Callable[[Stage], Awaitable[object]]]


def _restart(name: str, number: signal.Signals) -> Callable[[Stage], Awaitable[object]]:
    return lambda stage: stage.restart(name, number)


def _cut(name: str) -> Callable[[Stage], Awaitable[object]]:
    return lambda stage: stage.cables[name].cut()


LASTING: list[Step] = [
    ("sshd restarted", _restart("sshd", signal.SIGTERM)),
    ("Socket.IO connection cut", _cut("socketio")),
    ("tunnel connection cut", _cut("tunnel")),
]

KILLING: list[Step] = [
    ("sshd restarted", _restart("sshd", signal.SIGTERM)),
    ("Socket.IO agent killed", _restart("sio-1", signal.SIGKILL)),
    ("tunnel agent killed", _restart("dev1", signal.SIGKILL)),
    ("proxy killed", _restart("proxy", signal.SIGKILL)),
    ("Socket.IO connection cut", _cut("socketio")),
    ("tunnel connection cut", _cut("tunnel")),
    ("tunnel agent stopped", _restart("dev1", signal.SIGTERM)),
    ("Socket.IO agent stopped", _restart("sio-1", signal.SIGTERM)),
    ("proxy stopped", _restart("proxy", signal.SIGTERM)),
]


async def run_restarts(stage: Stage, every: float, started: float, until: float) -> None:
    """One step every so many seconds, until then."""
    change = started + (until - started) * KILLING_PART
    number = 0
    due = started + every
    while due < until:
        await trio.sleep_until(due)
        steps = [
            step
            for step in (KILLING if due < change else LASTING)
            if "sio-1" in stage.destinations or "Socket.IO" not in step[0]
        ]
        what, act = steps[number % len(steps)]
        number += 1
        stage.restarts.append(Restart(what, round(trio.current_time() - started, 1)))
        await act(stage)
        due = max(due + every, trio.current_time())
