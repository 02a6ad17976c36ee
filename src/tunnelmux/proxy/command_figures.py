"""Commands in numbers, as the proxy sees them."""

from __future__ import annotations

from prometheus_client import Counter, Histogram
from prometheus_client.registry import Collector

from tunnelmux.commands import REASONS, Exited

__all__ = ["PROXY_REASONS", "CommandFigures"]

PROXY_REASONS: dict[str, str] = {
    "aborted": "Another device's command failed first, and abortOnError was set.",
    "device-busy": "The device is connected and takes no stream now.",
    "device-disabled": "The device is disabled in proxy.toml.",
    "device-draining": "The device's agent is about to restart.",
    "device-offline": "The device is not connected.",
    "invalid": "The device's agent did not understand the command.",
    "not-supported": "The device's agent runs no commands.",
    "skipped": "It was not begun: abortOnError was set and another device's command failed.",
    "undelivered": "The way to the agent broke before it took the command.",
    "unknown-device": "The device was removed meanwhile.",
}
"""Why a command did not simply end, on top of `tunnelmux.commands.REASONS`. Codes may be added,
never changed."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)


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
            "Duration of commands, from being asked for to their end.",
            registry=None,
            buckets=_SECONDS,
        )
        self._start_seconds = Histogram(
            "tunnelmux_command_start_seconds",
            "From being asked for to the start on the SSH server: waiting, connecting, logging in.",
            registry=None,
            buckets=_SECONDS,
        )
        self._bytes = Counter(
            "tunnelmux_command_output_bytes",
            "What commands wrote.",
            ["stream"],
            registry=None,
        )
        self._moved = Counter(
            "tunnelmux_commands_moved",
            "Commands that another agent of the group took over before they had started.",
            registry=None,
        )

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """What to register with Prometheus."""
        return (self._ended, self._seconds, self._start_seconds, self._bytes, self._moved)

    def started(self, seconds: float) -> None:
        """A command was started `seconds` after it was asked for."""
        self._start_seconds.observe(seconds)

    def moved(self) -> None:
        """A command goes to another target."""
        self._moved.inc()

    def ended(self, end: Exited | None, seconds: float) -> None:
        """A command ended after `seconds`; None when its caller left before that."""
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
    # A code of an agent's own invention would be a series of its own.
    return end.reason if end.reason in REASONS or end.reason in PROXY_REASONS else "other"
