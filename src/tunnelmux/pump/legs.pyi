"""Legs: streams joined to one connection of a target each, used by one visitor at a time."""

from collections.abc import Callable
from typing import final

from tunnelmux.pump.epoll import Member
from tunnelmux.pump.tunnel import Tunnel
from tunnelmux.yamux.streams import EngineStream

class LegUser(Member):
    """A member that may use legs."""

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
        """*opener* opens a stream and writes the head on it that asks for the target; the other side
        agrees with exactly the bytes of *answer*. It returns None when no stream can be opened now.
        At most *max_idle* unused legs are kept, each for *idle_time* seconds."""
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
        """How many legs are idle."""
    def close_idle(self, before: float) -> None:
        """End the legs that have not been used since *before*, a time on Trio's clock."""

@final
class Leg(Member):
    """One such stream."""

    @property
    def route(self) -> Route:
        """The route that it belongs to."""
    @property
    def tunnel(self) -> Tunnel:
        """The tunnel that carries its session."""
    @property
    def stream(self) -> EngineStream:
        """The stream."""
    @property
    def exchanges(self) -> int:
        """How many requests on it were answered in full."""
