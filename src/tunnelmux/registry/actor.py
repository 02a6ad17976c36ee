"""Who makes a change, as the audit writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Actor", "ActorKind"]

ActorKind = Literal["user", "token", "device", "program"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A user, an access token, a device, or one of our own programs. There is no nobody."""

    kind: ActorKind
    id: str
    """The id of the user, token or device; the name of the program."""
    name: str = ""
    """How people know it, at the time: names change, entries do not."""
    address: str = ""
    """Where the request came from; empty for a program's own doing."""

    @classmethod
    def program(cls, name: str) -> Actor:
        """One of our own programs, acting by itself or for the person at its terminal."""
        return cls(kind="program", id=name, name=name)
