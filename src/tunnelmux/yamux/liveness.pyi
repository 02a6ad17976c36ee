"""Pings: whether the peer lives, how far away it is, how often it asks."""

from typing import final

@final
class Liveness:
    """After *interval* seconds of silence a ping is due; after *timeout* seconds more the peer is
    dead.
    """

    def __init__(self, interval: float, timeout: float, now: float) -> None: ...
    @property
    def pings_answered(self) -> int: ...
    @property
    def rtt(self) -> float | None: ...
