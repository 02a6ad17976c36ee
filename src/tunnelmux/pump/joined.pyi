"""Two streams of two sessions, joined: what comes on one leaves on the other."""

from typing import final

from tunnelmux.pump.data_pump import Owner
from tunnelmux.pump.epoll import Member
from tunnelmux.pump.tunnel import Tunnel
from tunnelmux.yamux.streams import EngineStream

def join_streams(
    one_tunnel: Tunnel,
    one: EngineStream,
    other_tunnel: Tunnel,
    other: EngineStream,
    owner: Owner | None = None,
) -> JoinedStream:
    """Carry bytes both ways between the two streams until both directions have ended, or one stream
    breaks, which resets the other behind what came before. *owner* is called at the end. Nothing else
    may use either stream. Raises ValueError when something does, or for tunnels of two pumps.
    """

@final
class JoinedStream(Member):
    """The first of two such streams."""

    def __init__(self, *args: object) -> None:
        """Raises TypeError: `join_streams` makes them."""

    @property
    def is_over(self) -> bool:
        """Whether both have ended."""
    def abort(self) -> None:
        """Reset both now. Harmless when they are over."""
