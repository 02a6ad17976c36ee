"""What a directory keeps and answers, as plain data."""

from __future__ import annotations

import secrets

import msgspec

__all__ = [
    "BEAT_INTERVAL",
    "LEASE",
    "MOST_PLACES",
    "Beat",
    "Claim",
    "Heard",
    "Held",
    "Node",
    "Place",
    "new_incarnation",
]

BEAT_INTERVAL = 2.0
"""Seconds between two beats of a node: two may be lost before the others give it up."""

LEASE = 6.0
"""Seconds after its last beat at which a node counts as dead, with all that it held."""

MOST_PLACES = 4
"""Places of one device: an agent keeps two sessions, and may have just moved both."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the cluster, as it describes itself to the others."""

    name: str
    """Its name, which no other node has."""
    incarnation: str
    """This start of it; see `new_incarnation`."""
    address: str = ""
    """`host:port` where other nodes reach it."""
    certificate: str = ""
    """The one certificate that it shows there, and to others: DER in Base64."""
    internal_url: str = ""
    """Where its internal API is, for back ends."""


class Place(msgspec.Struct, frozen=True):
    """One session of a device. Of two, the one with the higher generation was made later."""

    node: str
    incarnation: str
    generation: int
    instance: str
    """A random name of the agent's process. Sessions of one process stand beside each other; those
    of another one are superseded by it."""


class Held(msgspec.Struct, frozen=True):
    """One session that a node has: what it says again when a directory has lost it."""

    device: str
    instance: str
    generation: int


class Claim(msgspec.Struct, frozen=True):
    """What came of a claim: its generation, and the places that were superseded by it."""

    generation: int
    superseded: list[Place]


class Heard(msgspec.Struct, frozen=True):
    """How much of what the directory had to say a node has. It gives this back with its next beat,
    so that an answer that was lost comes again."""

    message: str = ""
    nodes: str = ""


class Beat(msgspec.Struct, frozen=True):
    """What a node hears when it says that it lives."""

    heard: Heard
    """What to give with the next beat."""
    superseded: list[tuple[str, int]]
    """(device, generation): this node's sessions of the device, up to that generation, are to be
    closed."""
    nodes: dict[str, Node] | None
    """The live nodes by name, this one among them; None when they are those of the beat before."""
    resync: bool
    """The directory does not have all that this node holds: `republish` it."""


def new_incarnation(milliseconds: int) -> str:
    """A name for one start of a node, at this time since 1970. Later ones sort behind it, so that
    the newest of two processes with one name is the one that is believed."""
    return f"{milliseconds:012x}{secrets.token_hex(4)}"
