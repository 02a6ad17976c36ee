"""The log's lines about requests, written by the code that carries the requests."""

from collections.abc import Callable
from typing import final

@final
class LineBuffer:
    """Holds lines of JSON in ASCII until they are written.

    It has no limit of its own: its user has to take the lines often enough.
    """

    def __init__(self, clock: Callable[[], bytes]) -> None:
        """*clock* returns the time of day with which a line begins. It is called again when a
        millisecond has passed."""

    def __len__(self) -> int:
        """How many bytes it holds."""

    @property
    def doubtful(self) -> bool:
        """Whether some path holds an equals sign or a colon, as `token=…` does. Such lines must be
        searched for secrets before they are written."""

    def add_request(
        self,
        about: bytes,
        stream: int,
        method: bytes,
        path: bytes,
        status: int,
        bytes_in: int,
        bytes_out: int,
        began: float,
        now: float,
    ) -> None:
        """Add one line. *about* holds the fields before the stream, as JSON without braces; *began*
        and *now* are seconds on one clock."""

    def take(self) -> bytes:
        """Return all lines, and empty the buffer."""
