"""Spans of requests, as far as the proxy's beginning and end are concerned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tunnelmux.config import OtelConfig
from tunnelmux.errors import ConfigError

if TYPE_CHECKING:
    from tunnelmux.observability.tracing import Tracing

__all__ = ["close_tracing", "trace_gauges", "tracing_from"]


def tracing_from(otel: OtelConfig) -> Tracing | None:
    """What makes spans of requests, where a receiver is named. Raises ConfigError."""
    if otel.endpoint is None:
        return None
    try:
        # Not at the top: its libraries are an extra, and take longer to import than the proxy.
        from tunnelmux.observability.tracing import open_tracing
    except ImportError as error:
        message = f"otel.endpoint needs the extra: install tunnelmux[otel] ({error})"
        raise ConfigError(message) from error
    return open_tracing(otel.endpoint, ratio=otel.ratio, queue=otel.queue)


def trace_gauges(tracing: Tracing | None) -> dict[str, tuple[str, float]]:
    """What the metrics show of it, where it is on."""
    if tracing is None:
        return {}
    lost = tracing.counts["dropped"] + tracing.counts["failed"]
    return {"tunnelmux_spans_lost": ("Spans that no receiver got, since the start.", lost)}


async def close_tracing(tracing: Tracing | None) -> None:
    """Send what is there, for as long as `Tracing.close` takes at most."""
    if tracing is not None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tracing.close)
