"""Logs, audit and traces of a running daemon."""

from __future__ import annotations

from tunnelmux.observability.audit import AuditLog, AuditRecord, Sink
from tunnelmux.observability.lines import frequent_line
from tunnelmux.observability.logs import configure_logs, get_logger
from tunnelmux.observability.repeated import BoundedLines, RepeatedLines

__all__ = [
    "AuditLog",
    "AuditRecord",
    "BoundedLines",
    "RepeatedLines",
    "Sink",
    "configure_logs",
    "frequent_line",
    "get_logger",
]
