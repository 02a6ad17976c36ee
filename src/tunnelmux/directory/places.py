"""What a directory keeps and answers, as plain data."""

from __future__ import annotations

import secrets

import msgspec

__all__ = [
    "BEAT_INTERVAL",
    "DIED_JUST_NOW",
    "LEASE",
    "MOST_DIED",
    "MOST_PLACES",
    "Beat",
    "Claim",
    "Died",
    "Heard",
    "Held",
    "Node",
    "Place",
    "Swept",
    "new_incarnation",
]

BEAT_INTERVAL = 2.0
"""Seconds between two beats of a node: two may be lost before the others consider it dead."""

LEASE = 6.0
"""Seconds after its last beat at which a node counts as dead, with all that it held."""

DIED_JUST_NOW = 60.0
"""Seconds after the last beat of a node that died until beats do not tell of it any more."""

MOST_DIED = 1000
"""Most nodes that are remembered as dead, the latest: more than die before a sweep."""

MOST_PLACES = 4
"""Most places of one device, unless configured: an agent keeps two sessions, and may have just
moved both. One more supersedes the oldest."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the cluster, as it describes itself to the others."""

    name: str
    """Its name, unique in the cluster."""
    incarnation: str
    """Identifies this start of the node; see `new_incarnation`."""
    address: str = ""
    """`host:port` where other nodes reach it."""
    certificate: str = ""
    """The certificate it uses there, and as a client of other nodes: DER in Base64."""
    internal_url: str = ""
    """The URL of its internal API, for back ends."""
    agent_url: str = ""
    """Where agents reach this node and no other; empty where that is not known."""
    domain: str = ""
    """What fails as a whole with this node; empty where that is not known."""


class Place(msgspec.Struct, frozen=True):
    """One session of a device. Of two, the one with the higher generation was made later."""

    node: str
    incarnation: str
    generation: int
    instance: str
    """A random name of the agent's process. Sessions of one process exist side by side; a session
    of another process supersedes them.
    """


class Held(msgspec.Struct, frozen=True):
    """One session of a node: what it publishes again when the directory has lost it."""

    device: str
    instance: str
    generation: int


class Swept(msgspec.Struct, frozen=True):
    """The result of a sweep."""

    places: int
    """How many were removed."""
    lost: int = 0
    """Devices that were told lost."""
    is_done: bool = True
    """Whether none was left for another sweep, because its node died just now."""


class Claim(msgspec.Struct, frozen=True):
    """The result of a claim: its generation, and the places that it superseded."""

    generation: int
    superseded: list[Place]


class Heard(msgspec.Struct, frozen=True):
    """How far a node has read the directory's messages. It sends this with its next beat, so that a
    lost answer is sent again.
    """

    message: str = ""
    nodes: str = ""


class Died(msgspec.Struct, frozen=True):
    """A node that was given up without having left."""

    node: str
    incarnation: str
    last_beat: float
    """When it was last heard from: seconds since 1970, by the directory's clock."""


class Beat(msgspec.Struct, frozen=True):
    """The answer to a node's beat."""

    heard: Heard
    """What to pass to the next beat."""
    superseded: list[tuple[str, int]]
    """(device, generation): this node must close its sessions of the device up to that generation.
    """
    nodes: dict[str, Node] | None
    """The live nodes by name, this one among them; None when they have not changed since the last
    beat.
    """
    resync: bool
    """The directory has lost sessions of this node: call `republish`."""
    died: list[Died] = []
    """With *nodes*: the nodes that died within the last minute and have not come back."""
    was_given_up: bool = False
    """This node counted as dead, and has not published all its sessions since then."""


def new_incarnation(milliseconds: int) -> str:
    """A name for one start of a node, from the time since 1970 in seconds. Later ones sort behind
    it, so that the newer of two processes with one name wins.
    """
    return f"{milliseconds:012x}{secrets.token_hex(4)}"
