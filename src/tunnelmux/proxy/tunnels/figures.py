"""Counters of tunnels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tunnelmux.sessions import LocalHandle

__all__ = ["TunnelFigures"]


@dataclass(slots=True)
class TunnelFigures:
    """Counters of agents' connections; `add` a session when it is over."""

    refused: Counter[str] = field(default_factory=Counter)
    """Refused agents, by reason; `no-handshake` where no valid handshake came."""
    tls_failures: int = 0
    """Connections whose TLS handshake failed."""
    window_stalls: int = 0
    """How often a stream waited because its agent had not read."""
    bytes_to_agents: int = 0
    bytes_from_agents: int = 0

    def add(self, handle: LocalHandle) -> None:
        """Add the traffic of this session."""
        session = handle.session
        self.window_stalls += session.window_stalls
        self.bytes_to_agents += session.bytes_sent
        self.bytes_from_agents += session.bytes_received

    def with_live(self, sessions: list[LocalHandle]) -> TunnelFigures:
        """These counters plus the traffic of these live sessions."""
        now = TunnelFigures(
            self.refused,
            self.tls_failures,
            self.window_stalls,
            self.bytes_to_agents,
            self.bytes_from_agents,
        )
        for handle in sessions:
            now.add(handle)
        return now
