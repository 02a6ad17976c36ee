"""The log's lines about requests, put together where the requests are carried."""

from collections.abc import Callable
from typing import final

@final
class LineBuffer:
    """Lines of JSON in ASCII, until they are taken to be written down.

    Its user bounds it: it has no limit of its own.
    """

    def __init__(self, clock: Callable[[], bytes]) -> None:
        """*clock* gives the time of day as a line begins with it. It is asked again when a
        millisecond has passed."""

    def __len__(self) -> int:
        """Bytes held."""

    @property
    def doubtful(self) -> bool:
        """Whether some path holds an equals sign or a colon, as `token=…` does: then the lines are
        to be searched for secrets before they are written."""

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
        """One line. *about* is what comes before the stream: fields of JSON without braces; *began*
        and *now* are on one clock (seconds)."""

    def take(self) -> bytes:
        """All lines, which are then forgotten."""
