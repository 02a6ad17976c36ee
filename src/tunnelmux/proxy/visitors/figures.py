"""Visitors' traffic in numbers. No label names a device, a path or a visitor."""

from __future__ import annotations

from collections import Counter

from tunnelmux.http.refusal import REASONS
from tunnelmux.pump.counts import RequestCounts

__all__ = ["VisitorFigures"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)


class VisitorFigures:
    """What visitors did so far. Requests are counted by who carried them."""

    def __init__(self) -> None:
        self.by_pump = RequestCounts(*_SECONDS)
        """Requests in the pump; those with a whole answer are counted by it."""
        self.by_h11 = RequestCounts(*_SECONDS)
        """Requests that h11 read and wrote."""
        self.reasons: Counter[str] = Counter()
        """Requests that were answered with a Tunnelmux-Reason."""
        self.relays: Counter[str] = Counter()
        """Connections to TCP ports that are over: `finished`, `broken`, or `refused`."""
        self.relayed_in = 0
        self.relayed_out = 0
        """Their bytes from visitors and to them."""
        self.tls_failures = 0
        """Connections whose TLS handshake with the HTTP ingress failed."""

    def refused(self, reason: str | None) -> None:
        """A request was answered with this reason, if any. A device may have written it."""
        if reason is not None:
            self.reasons[reason if reason in REASONS else "other"] += 1

    def relayed(self, bytes_in: int, bytes_out: int, *, is_whole: bool) -> None:
        """A connection to a TCP port is over."""
        self.relays["finished" if is_whole else "broken"] += 1
        self.relayed_in += bytes_in
        self.relayed_out += bytes_out
