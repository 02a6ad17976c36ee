"""Spans of visits, as far as a daemon's beginning and end are concerned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from tunnelmux.errors import ConfigError

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing

__all__ = ["close_tracing", "spans_lost", "tracing_from"]


class SpanSettings(Protocol):
    """The table `[otel]`."""

    @property
    def endpoint(self) -> str | None:
        """Where spans are sent, if anywhere."""

    @property
    def ratio(self) -> float:
        """How many are seen of those that come without a parent."""

    @property
    def per_second(self) -> int:
        """How many are seen in a second at most."""

    @property
    def queue(self) -> int:
        """Spans that wait for the receiver."""


def tracing_from(otel: SpanSettings, service: str) -> Tracing | None:
    """What makes the spans of this daemon, where a receiver is named. Raises ConfigError."""
    if otel.endpoint is None:
        return None
    try:
        # Not at the top: its libraries are an extra, and take longer to import than a daemon.
        from tunnelmux.observability.tracing import open_tracing
    except ImportError as error:
        message = f"otel.endpoint needs the extra: install tunnelmux[otel] ({error})"
        raise ConfigError(message) from error
    return open_tracing(
        otel.endpoint, ratio=otel.ratio, queue=otel.queue, most=otel.per_second, service=service
    )


def spans_lost(tracing: Tracing) -> int:
    """Spans that did not fit into the queue, or that no receiver took."""
    return tracing.counts["dropped"] + tracing.counts["failed"]


async def close_tracing(tracing: Tracing | None) -> None:
    """Send what is there, for as long as `Tracing.close` takes at most."""
    if tracing is not None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tracing.close)
