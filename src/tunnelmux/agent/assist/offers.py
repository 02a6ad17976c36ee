"""The offer of a lease to a device, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LeaseAnswer", "LeaseOffer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffer:
    """A lease as a proxy offers it."""

    id: str
    who: str
    reason: str
    services: tuple[str, ...]
    rights: tuple[str, ...]
    seconds: float
    """Seconds from now to its end."""
    recorded: bool = True
    sealed: bool = False
    kind: Literal["person", "code"] = "person"
    key: str = ""
    """For a lease with a code: the fingerprint of its key, by which a gateway recognizes the
    holder. It does not reveal the key.
    """


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """The device's answer to an offer."""

    state: Literal["given", "asked", "refused"]
    reason: str = ""
