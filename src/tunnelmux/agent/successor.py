"""The session that follows the present one, and is made while that still goes on."""

from __future__ import annotations

import trio

__all__ = ["Successor"]


class Successor:
    """It begins, or cannot; later it is over."""

    def __init__(self) -> None:
        self.began = trio.Event()
        """Set when it is up, and when it will not be."""
        self.over = trio.Event()
        self.is_up = False
        """Whether it came about."""
        self.problem: Exception | None = None
        """Why it did not."""
        self.replaced_by: str | None = None
        """The address of the agent that replaced it, if one did."""

    def begin(self) -> None:
        """It is up."""
        self.is_up = True
        self.began.set()

    def end(self) -> None:
        """It is over, or never came about."""
        self.began.set()
        self.over.set()
