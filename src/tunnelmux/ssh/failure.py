"""The error that says why a command could not be run."""

from __future__ import annotations

from tunnelmux.commands import Exited, failure
from tunnelmux.errors import TunnelmuxError

__all__ = ["SshFailure"]


class SshFailure(TunnelmuxError):
    """`reason` is one of `tunnelmux.commands.REASONS`; the message names the cause and the fix."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def exited(self) -> Exited:
        """The same as the end event of a command that never ran."""
        return failure(self.reason, str(self))
