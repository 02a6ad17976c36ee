"""What one process of a proxy gives to another one that it starts."""

from __future__ import annotations

import socket
from dataclasses import dataclass

__all__ = ["SuccessorStart", "WorkerStart"]


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """A parent to one of its workers."""

    link: socket.socket
    name: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class SuccessorStart:
    """A program to the one that is to follow it."""

    link: socket.socket
