"""Settings that the daemons share: logs, audit, spans, the drain, and limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from tunnelmux.config.rules import InvalidSetting
from tunnelmux.limits import (
    INITIAL_WINDOW,
    AccessLimits,
    AgentLogLimits,
    AuditLimits,
    IngressLimits,
    InternalLimits,
    Limits,
    SocketIOLimits,
)

__all__ = [
    "AgentLimitsConfig",
    "AgentLogConfig",
    "AuditConfig",
    "DrainConfig",
    "LimitsConfig",
    "LogConfig",
    "OtelConfig",
]

_MAY_BE_ZERO = frozenset(
    {
        *("reconnect_wait", "reserved_streams", "session_window_budget", "process_window_budget"),
        *("max_idle_targets", "max_waiting_handshakes"),
    }
)
_LARGEST_COUNT = 2**40
"""The largest count or size of a limit: more than any machine has, and it fits into 64 bits."""
_LARGEST_TIME = 30 * 86_400.0
"""Seconds; the longest wait of a limit."""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and in which format. Logs go to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""

    format: Literal["auto", "text", "json"] = "auto"
    """`text` for people, `json` for programs; `auto` is text on a terminal and JSON elsewhere."""


class AgentLogConfig(LogConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same for an agent, whose log an operator reads from elsewhere."""

    limits: AgentLogLimits = AgentLogLimits()
    """What is kept for that."""

    def __post_init__(self) -> None:
        _check_range("keep_lines", self.limits.keep_lines, 0, 100_000)


class AuditConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audit: one JSON line for every command that was run."""

    file: Path | None = None
    """The file, one for each daemon; without it, the lines go to the log."""

    limits: AuditLimits = AuditLimits()
    """Its size on disk."""

    def __post_init__(self) -> None:
        limits = self.limits
        _check_range("max_bytes", limits.max_bytes, 4096, _LARGEST_COUNT)
        _check_range("keep", limits.keep, 1, 1000)
        if not 0 <= limits.keep_for <= 3650 * 86_400:
            raise InvalidSetting("keep_for", f"{limits.keep_for} is not from 0 to ten years")
        _check_range("min_free", limits.min_free, 0, _LARGEST_COUNT)
        _check_range("max_command", limits.max_command, 16, 1_048_576)
        _check_range("refusals_per_minute", limits.refusals_per_minute, 1, 1_000_000)


class OtelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Spans of visits, by OpenTelemetry; needs the extra `otel`. A change needs a restart."""

    endpoint: str | None = None
    """Where spans are sent, by OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`. Without it there
    are none."""

    ratio: float = 0.01
    """The share of requests and connections without `traceparent` that are sampled, from 0 to 1;
    for others its flag decides. A sampled request leaves the fast path, which costs the proxy about
    a millisecond.
    """

    per_second: int = 100
    """The most requests and connections that are sampled in one second. Any visitor can send a
    `traceparent` that asks for it: this many cost the proxy a tenth of a core.
    """

    queue: int = 2048
    """Spans that wait for the receiver, a kilobyte each; one more is dropped, and counted. Five
    belong to a request: 400 requests of a burst, or of a second without a receiver."""

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise InvalidSetting("endpoint", 'is no URL: write "http://127.0.0.1:4318/v1/traces"')
        if not 0 <= self.ratio <= 1:
            raise InvalidSetting("ratio", f"{self.ratio} is not from 0 to 1")
        _check_range("per_second", self.per_second, 1, 1_000_000)
        _check_range("queue", self.queue, 1, 1_000_000)


class DrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long SIGTERM and Ctrl-C wait."""

    grace: float = 10.0
    """Seconds that streams in progress may take to finish; then they are cut."""

    def __post_init__(self) -> None:
        if not 0 <= self.grace <= 86_400:
            raise InvalidSetting("grace", f"{self.grace} is not from 0 to 86400 seconds")


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on memory that peers and visitors use, and on waiting for them."""

    left_out: ClassVar[frozenset[str]] = frozenset(
        {
            "socketio_max_silence",
            "socketio_max_cookies",
            "socketio_max_queued",
            "socketio_result_memory",
            "socketio_remembered",
        }
    )
    """Limits that the program does not use, and that are no keys of its file."""

    session: Limits = Limits()
    """Limits of every tunnel session."""

    ingress: IngressLimits = IngressLimits()
    """Limits for visitors, handshakes and targets."""

    access: AccessLimits = AccessLimits()
    """Limits for sign-in and proofs."""

    internal: InternalLimits = InternalLimits()
    """Limits for callers of the internal API."""

    socketio: SocketIOLimits = SocketIOLimits()
    """Limits for the two ends of a Socket.IO connection."""

    def __post_init__(self) -> None:
        parts = (self.session, self.ingress, self.access, self.internal, self.socketio)
        for part in parts:
            for field in dataclasses.fields(part):
                _check_limit(field.name, getattr(part, field.name))
        # Data frames of any length are legal; other implementations are known to accept this much.
        _check_range("max_frame_payload", self.session.max_frame_payload, 1, 65_536)
        # The engine sends whole frames, of 12 bytes and their payload.
        _check_range(
            "flush_size", self.session.flush_size, self.session.max_frame_payload + 12, 2**24
        )
        # The yamux header has 32 bits for a window update.
        _check_range("max_stream_window", self.session.max_stream_window, INITIAL_WINDOW, 2**31 - 1)
        self._check_expiry()

    def _check_expiry(self) -> None:
        quiet = self.session.keepalive_interval + self.session.keepalive_timeout
        expiry = self.internal.session_expiry
        if "session_expiry" not in self.left_out and expiry <= quiet:
            raise InvalidSetting(
                "session_expiry",
                f"{expiry:g} is not above keepalive_interval + keepalive_timeout ({quiet:g}), so "
                "idle sessions would be closed: raise it",
            )


def _check_limit(key: str, value: float) -> None:
    largest = _LARGEST_COUNT if isinstance(value, int) else _LARGEST_TIME
    if value == 0 and key in _MAY_BE_ZERO:
        return
    if not 0 < value <= largest:
        raise InvalidSetting(key, f"{value} is not above 0 and at most {largest:.0f}")


def _check_range(key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidSetting(key, f"{value} is not from {least} to {most}")


class AgentLimitsConfig(LimitsConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same for an agent, which has neither visitors nor an internal API."""

    left_out: ClassVar[frozenset[str]] = frozenset(
        {"max_visitors", "max_handshakes", "reconnect_wait", "max_idle_targets", "target_idle_time"}
        | {"max_arrivals_per_address", "max_waiting_handshakes", "first_byte_timeout"}
        | {"max_streams_per_visitor", "max_visitors_per_address", "reserved_streams"}
        | {"max_streams_per_port"}
        | {"max_hop_streams", "max_hops_per_node", "max_device_sessions"}
        | {"max_measurements", "measurement_bytes", "measurement_time"}
        | {"socketio_max_sessions", "socketio_max_commands"}
        | {"socketio_start_timeout", "socketio_result_grace"}
        | {field.name for field in dataclasses.fields(AccessLimits)}
        | {field.name for field in dataclasses.fields(InternalLimits)}
    )
