"""Pings: whether the peer lives, how far away it is, how often it asks."""

from typing import final

@final
class Liveness:
    """Silence of *interval* seconds asks for a ping, *timeout* more after it mean the peer is dead."""

    def __init__(self, interval: float, timeout: float, now: float) -> None: ...
    @property
    def pings_answered(self) -> int: ...
    @property
    def rtt(self) -> float | None: ...
