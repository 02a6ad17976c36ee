"""Which node of a cluster holds the session of a device.

A *node* is one process that agents connect to. Each keeps its own sessions. The little that all
nodes have to agree on is behind one interface, `Directory`. `LocalDirectory` keeps it in this
process, `WorkersDirectory` in the parent of a proxy's workers, `RedisDirectory` in Redis. This data
may be lost: each node writes its own sessions again, and the list of devices that may connect is
elsewhere.
"""

from __future__ import annotations

from tunnelmux.directory.directory import Directory
from tunnelmux.directory.local import LocalDirectory, PlaceBook
from tunnelmux.directory.places import (
    BEAT_INTERVAL,
    LEASE,
    MOST_PLACES,
    Beat,
    Claim,
    Died,
    Heard,
    Held,
    Node,
    Place,
    Swept,
    new_incarnation,
)

__all__ = [
    "BEAT_INTERVAL",
    "LEASE",
    "MOST_PLACES",
    "Beat",
    "Claim",
    "Died",
    "Directory",
    "Heard",
    "Held",
    "LocalDirectory",
    "Node",
    "Place",
    "PlaceBook",
    "Swept",
    "new_incarnation",
]
