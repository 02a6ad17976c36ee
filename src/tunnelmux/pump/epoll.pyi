"""One epoll instance for all the sockets of a process, handled in batches. Linux only."""

from typing import Any, final

from typing_extensions import disjoint_base

from tunnelmux.pump.counts import Histogram, RequestCounts
from tunnelmux.pump.lines import LineBuffer

def trim_heap() -> None:
    """Give back to the system what the heap holds and nothing uses; with the GNU C library only."""

@final
class Pump:
    """Handles what is ready, and says when there is more. One Trio task drives it."""

    def __init__(self) -> None:
        """Raises OSError when the system has no descriptor left."""
    def fileno(self) -> int:
        """The descriptor that is readable when `batch` has something to do."""
    def batch(self, now: float, linger: bool = False) -> list[Member]:
        """Handle what is ready, for a bounded time, at *now* on Trio's clock (seconds).

        With *linger* it also handles what becomes ready within a tenth of a millisecond each time,
        for two milliseconds in all: for when no other task has anything to do.

        Answers the members whose owners have to look: something happened that Python decides on.
        """
    @property
    def is_busy(self) -> bool:
        """Whether something is left to do although no socket is ready."""
    @property
    def count(self) -> int:
        """How many members there are."""
    @property
    def now(self) -> float:
        """The time of the last batch."""
    lines: LineBuffer | None
    """Where relays of HTTP requests put the log's lines about them; to be emptied after a batch."""
    requests: RequestCounts | None
    """Where relays of HTTP requests count them."""
    @property
    def batches(self) -> Histogram:
        """How long batches took (seconds), without the time in which they waited for more."""
    def wake(self) -> None:
        """Make the descriptor readable, so that a batch follows soon."""
    @property
    def leaving_count(self) -> int:
        """Connections that were reset and wait for their peers to take what was sent before."""
    def close_left(self, now: float, patience: float) -> None:
        """Reset those of which all was taken, or which wait for *patience* seconds."""
    def close(self) -> None:
        """Let go of every socket: what runs on them ends with an OSError."""

@disjoint_base
class Member:
    """What has a socket in a pump."""

    owner: Any
    """Who is told: its `on_news()` is called after a batch in which it has to look."""

    @property
    def fd(self) -> int:
        """The descriptor of its socket."""
