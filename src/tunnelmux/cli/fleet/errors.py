"""Errors of commands. Each has an exit status of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunnelmux.errors import TunnelmuxError

__all__ = ["FleetError", "NoSuchThing", "NotAllowed", "NotThere", "one_error"]


class FleetError(TunnelmuxError):
    """A command failed. `code` is the server's word for it, or empty; `exit_status` says which
    kind it is, as `tunnelmux --help` lists them. `wait` are the seconds that the server asks to
    wait before another try."""

    exit_status = 1

    def __init__(self, message: str, *, code: str = "", wait: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.wait = wait


class NotAllowed(FleetError):
    """The caller is not signed in, or may not do this."""

    exit_status = 3


class NoSuchThing(FleetError):
    """There is no device, service or invitation of this name."""

    exit_status = 4


class NotThere(FleetError):
    """The device is offline, or its service does not answer: it may answer later."""

    exit_status = 5


@asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """Within the block, unwrap an exception that is alone in the groups of nurseries."""
    try:
        yield
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        if inner is group or isinstance(inner, BaseExceptionGroup):
            raise
        raise inner from inner.__cause__
