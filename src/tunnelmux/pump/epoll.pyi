"""One epoll instance for all the sockets of a process, handled in batches. Linux only."""

from typing import Any, final

from typing_extensions import disjoint_base

from tunnelmux.pump.counts import Histogram, RequestCounts
from tunnelmux.pump.lines import LineBuffer

def trim_heap() -> None:
    """Give the unused memory of the heap back to the system; with the GNU C library only."""

@final
class Pump:
    """Handles the sockets that are ready. One Trio task drives it."""

    def __init__(self) -> None:
        """Raises OSError when the system has no descriptor left."""
    def fileno(self) -> int:
        """The descriptor that is readable when `batch` has something to do."""
    def batch(self, now: float, linger: bool = False) -> list[Member]:
        """Handle what is ready, for a bounded time, at *now* on Trio's clock (seconds).

        With *linger* it also handles what becomes ready within a tenth of a millisecond each time,
        for two milliseconds in all: for when no other task has anything to do.

        Returns the members to which something happened that their owners in Python must decide on.
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
    """Where relays of HTTP requests put log lines about them; the caller empties it after a batch."""
    requests: RequestCounts | None
    """Where relays of HTTP requests count them."""
    @property
    def batches(self) -> Histogram:
        """How long batches took (seconds), without the time for which they lingered."""
    def wake(self) -> None:
        """Make the descriptor readable, so that a batch follows soon."""
    @property
    def leaving_count(self) -> int:
        """How many connections are to be reset once their peers took what was sent before."""
    def close_left(self, now: float, patience: float) -> None:
        """Reset those whose peers took everything, or that have waited for *patience* seconds."""
    def close(self) -> None:
        """Let go of every socket: tunnels and relays on them end with an OSError."""

@disjoint_base
class Member:
    """A socket in a pump, with the code that handles it."""

    owner: Any
    """Its `on_news()` is called after a batch in which something happened that it must decide on."""

    @property
    def fd(self) -> int:
        """The descriptor of its socket."""
