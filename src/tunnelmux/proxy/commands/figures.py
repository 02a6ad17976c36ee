"""Metrics of commands, as the proxy sees them."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import trio
from prometheus_client import Counter, Histogram
from prometheus_client.registry import Collector

from tunnelmux.commands import REASONS, CameBy, Exited, SshUse
from tunnelmux.sessions import SessionHandle

__all__ = ["PROXY_REASONS", "CommandFigures", "PooledConnections"]

PROXY_REASONS: dict[str, str] = {
    "aborted": "Another device's command failed first, and abortOnError was set.",
    "device-busy": "The device is connected, but no stream to it can be opened now.",
    "device-disabled": "The device is disabled in proxy.toml.",
    "device-draining": "The device's agent is about to restart.",
    "device-offline": "The device is not connected.",
    "invalid": "The device's agent did not understand the command.",
    "not-supported": "The device's agent runs no commands.",
    "skipped": "Not begun: abortOnError was set and another device's command failed.",
    "undelivered": "The connection to the agent broke before it took the command.",
    "unknown-device": "The device was removed meanwhile.",
}
"""Further reasons why a command did not end by itself, beside `tunnelmux.commands.REASONS`. Codes
may be added, never changed.
"""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)

_CONNECT_SECONDS = _SECONDS[: _SECONDS.index(30) + 1]  # exec.login_timeout is far shorter


class CommandFigures:
    """Counters and histograms of commands; no label names a device, a user or a host."""

    def __init__(self) -> None:
        self._ended = Counter(
            "tunnelmux_commands",
            "Commands by outcome: ok, failed (a status other than 0), cancelled, or the reason.",
            ["outcome"],
            registry=None,
        )
        self._seconds = Histogram(
            "tunnelmux_command_seconds",
            "Duration of commands, from the request to their end.",
            registry=None,
            buckets=_SECONDS,
        )
        self._start_seconds = Histogram(
            "tunnelmux_command_start_seconds",
            "From the request to the start on the SSH server: waiting, connecting, logging in.",
            registry=None,
            buckets=_SECONDS,
        )
        self._bytes = Counter(
            "tunnelmux_command_output_bytes",
            "Bytes of output of commands.",
            ["stream"],
            registry=None,
        )
        self._moved = Counter(
            "tunnelmux_commands_moved",
            "Commands that were moved to another agent of the group before they had started.",
            registry=None,
        )

        self._connects = Counter(
            "tunnelmux_ssh_connects",
            "Commands by how they came by an SSH connection, where their agent says: one was made "
            "for it (new), was there or made for another (reused), or could not be made (failed).",
            ["result"],
            registry=None,
        )
        self._connect_seconds = Histogram(
            "tunnelmux_ssh_connect_seconds",
            "Duration of making an SSH connection: name look-up, connecting, logging in.",
            registry=None,
            buckets=_CONNECT_SECONDS,
        )

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """The collectors to register with Prometheus."""
        return (
            self._ended,
            self._seconds,
            self._start_seconds,
            self._bytes,
            self._moved,
            self._connects,
            self._connect_seconds,
        )

    def came_by(self, way: CameBy, seconds: float | None) -> None:
        """Count how a command got its SSH connection, and the seconds that making one took."""
        self._connects.labels(way).inc()
        if way == "new" and seconds is not None:
            self._connect_seconds.observe(seconds)

    def started(self, seconds: float) -> None:
        """Count a command that started `seconds` after its request."""
        self._start_seconds.observe(seconds)

    def moved(self) -> None:
        """Count a command that moves to another target."""
        self._moved.inc()

    def ended(self, end: Exited | None, seconds: float) -> None:
        """Count a command that ended after `seconds`; `exited` is None when its caller left before
        the end.
        """
        self._ended.labels(_outcome(end)).inc()
        self._seconds.observe(seconds)
        if end is not None:
            self._bytes.labels("stdout").inc(end.stdout_bytes)
            self._bytes.labels("stderr").inc(end.stderr_bytes)


def _outcome(end: Exited | None) -> str:
    if end is None:
        return "cancelled"
    if end.reason is None:
        return "failed" if end.exit_code else "ok"
    # A code that an agent made up must not become a time series.
    return end.reason if end.reason in REASONS or end.reason in PROXY_REASONS else "other"


class PooledConnections:
    """The SSH connections that agents keep, as they last reported. An agent reports only with its
    commands, so a report counts until its unused connections must have been closed. It ends with
    the session.
    """

    def __init__(self) -> None:
        self._said: WeakKeyDictionary[SessionHandle, tuple[int, float]] = WeakKeyDictionary()

    def note(self, session: SessionHandle, use: SshUse) -> None:
        """Take the report of this session's agent."""
        self._said[session] = (use.pooled, trio.current_time() + use.kept_for)

    def count(self, is_busy: Callable[[str], bool]) -> int:
        """The number of connections; `is_busy(device)` says whether a device runs a command now."""
        now = trio.current_time()
        return sum(
            pooled
            for session, (pooled, until) in list(self._said.items())
            if not session.is_closed and (now <= until or is_busy(session.device))
        )
