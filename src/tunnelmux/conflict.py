"""One task at a time: the rule every Trio stream half enforces."""

from __future__ import annotations

from types import TracebackType

import trio

__all__ = ["OneAtATime"]


class OneAtATime:
    """Held while a task is inside one half of a stream; a second one gets BusyResourceError.

    Two tasks in one half would interleave their bytes; refusing the second shows the mistake
    where it is made.
    """

    __slots__ = ("_busy", "_message")

    def __init__(self, message: str) -> None:
        self._message = message
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(self._message)
        self._busy = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether a task is inside now."""
        return self._busy
