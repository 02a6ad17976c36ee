"""What operators see of a running daemon."""

from __future__ import annotations

from tunnelmux.observability.logs import configure_logs, get_logger

__all__ = ["configure_logs", "get_logger"]
