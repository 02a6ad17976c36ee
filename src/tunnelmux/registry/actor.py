"""Who makes a change, for the audit."""

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
    """For an access token, the id of the user whose token it is."""
    name: str = ""
    """Its name at the time of the change: names change later, entries do not."""
    address: str = ""
    """The address that the request came from; empty when a program acts on its own."""

    @property
    def user_id(self) -> str:
        """The user to write into records; empty when there is none."""
        return self.id if self.kind == "user" else self.behind

    @classmethod
    def program(cls, name: str) -> Actor:
        """One of our own programs, acting on its own or for the person at its terminal."""
        return cls(kind="program", id=name, name=name)
