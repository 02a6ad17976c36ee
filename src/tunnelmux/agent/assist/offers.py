"""A lease on its way to the device, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LeaseAnswer", "LeaseOffer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffer:
    """A lease as a proxy tells of it."""

    id: str
    who: str
    reason: str
    services: tuple[str, ...]
    rights: tuple[str, ...]
    seconds: float
    """Until its end, from now."""
    recorded: bool = True
    sealed: bool = False
    kind: Literal["person", "code"] = "person"
    key: str = ""
    """Of a code: the fingerprint of its key, by which a gateway knows the holder. The key itself
    does not follow from it."""


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """What the device says to an offer."""

    state: Literal["given", "asked", "refused"]
    reason: str = ""
