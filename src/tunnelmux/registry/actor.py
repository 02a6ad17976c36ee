"""Who makes a change, as the audit writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Actor", "ActorKind"]

ActorKind = Literal["user", "token", "device", "program"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A user, an access token, a device, or one of our own programs. Every change has one."""

    kind: ActorKind
    id: str
    """The id of the user, token or device; the name of the program."""
    behind: str = ""
    """For an access token, the id of the user who stands behind it."""
    name: str = ""
    """How people know it, at the time: names change, entries do not."""
    address: str = ""
    """Where the request came from; empty for a program's own doing."""

    @property
    def user_id(self) -> str:
        """The user whom records of the registry name; empty when it was none."""
        return self.id if self.kind == "user" else self.behind

    @classmethod
    def program(cls, name: str) -> Actor:
        """One of our own programs, acting by itself or for the person at its terminal."""
        return cls(kind="program", id=name, name=name)
