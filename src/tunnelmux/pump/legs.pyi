"""Legs: streams that lead raw to a connection of a target, used by one visitor at a time."""

from collections.abc import Callable
from typing import final

from tunnelmux.pump.epoll import Member
from tunnelmux.pump.tunnel import Tunnel
from tunnelmux.yamux.streams import EngineStream

class LegUser(Member):
    """Who may use legs."""

@final
class Route:
    """The way to one service of one session, with its idle legs."""

    def __init__(
        self,
        opener: Callable[[], tuple[Tunnel, EngineStream] | None],
        answer: bytes,
        destination: object,
        *,
        max_idle: int = 0,
        idle_time: float = 0.0,
    ) -> None:
        """*opener* opens a stream, with the head on it to which the other side is to agree with
        exactly *answer*; None when that cannot be had now. At most *max_idle* unused legs are kept,
        and used again for *idle_time* seconds."""
    @property
    def opener(self) -> Callable[[], tuple[Tunnel, EngineStream] | None]:
        """As given."""
    @property
    def answer(self) -> bytes:
        """As given."""
    @property
    def destination(self) -> object:
        """As given."""
    has_answered: bool
    """Whether the service has ever answered, in this session."""
    max_idle: int
    idle_time: float
    @property
    def idle_count(self) -> int:
        """Idle legs."""
    def close_idle(self, before: float) -> None:
        """End those that have not been used since this moment on Trio's clock."""

@final
class Leg(Member):
    """One such stream."""

    @property
    def route(self) -> Route:
        """Where it leads."""
    @property
    def tunnel(self) -> Tunnel:
        """What carries its session."""
    @property
    def stream(self) -> EngineStream:
        """The stream."""
    @property
    def exchanges(self) -> int:
        """Requests on it that were answered whole."""
