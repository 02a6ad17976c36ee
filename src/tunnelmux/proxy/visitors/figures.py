"""Counters of visitors' traffic. No label names a device, a path or a visitor."""

from __future__ import annotations

from collections import Counter

from tunnelmux.http.refusal import REASONS
from tunnelmux.pump.counts import RequestCounts

__all__ = ["VisitorFigures"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)


class VisitorFigures:
    """Counters of visitors. Requests are counted by the path that carried them."""

    def __init__(self) -> None:
        self.by_pump = RequestCounts(*_SECONDS)
        """Requests in the pump, which itself counts those with a complete answer."""
        self.by_h11 = RequestCounts(*_SECONDS)
        """Requests served with h11."""
        self.reasons: Counter[str] = Counter()
        """Requests that were answered with a Tunnelmux-Reason."""
        self.relays: Counter[str] = Counter()
        """Ended connections to TCP ports: `finished`, `broken`, or `refused`."""
        self.relayed_in = 0
        self.relayed_out = 0
        """Their bytes from visitors and to them."""
        self.passed_on = 0
        """Connections passed to another worker."""
        self.taken_over = 0
        """Connections that another worker passed to this one."""
        self.tls_failures = 0
        """Connections whose TLS handshake with the HTTP ingress failed."""

    def refused(self, reason: str | None) -> None:
        """Count a request that was answered with this reason, if any; the reason may come from a
        device.
        """
        if reason is not None:
            self.reasons[reason if reason in REASONS else "other"] += 1

    def relayed(self, bytes_in: int, bytes_out: int, *, is_whole: bool) -> None:
        """Count a connection to a TCP port that has ended."""
        self.relays["finished" if is_whole else "broken"] += 1
        self.relayed_in += bytes_in
        self.relayed_out += bytes_out
