"""The messages between a proxy's parent and its workers over a `Link`."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "AGENT",
    "DIRECTORY",
    "DRAIN",
    "ENDED_FIGURES",
    "ENROLLED",
    "EVENT",
    "FIGURES",
    "HAS_SOCKETIO",
    "LEFT",
    "LISTEN",
    "MAKE_WAY",
    "MOVE",
    "NEWS",
    "NODE_KEY",
    "PING",
    "REACH",
    "REACHED",
    "READY",
    "RELOAD",
    "SEATED",
    "TAKES_AGENTS",
    "UNLISTEN",
    "VISITOR",
    "WELCOME",
    "Address",
    "Agent",
    "Reach",
    "Reloaded",
    "Visitor",
    "Way",
    "Welcome",
]

DIRECTORY = "directory"
"""Worker calls: see `tunnelmux.directory.workers`."""

LISTEN = "listen"
"""Worker calls with `Address`; answered by the listening sockets, which all workers share."""

UNLISTEN = "unlisten"
"""Worker tells `Address`: its configuration no longer names it."""

HAS_SOCKETIO = "has socketio"
"""Worker calls; answered by the name of the worker that has the agents by Socket.IO."""

NODE_KEY = "node key"
"""Worker calls; answered by the key and certificate of the node that all workers are together."""

REACH = "reach"
"""Worker calls with `Reach`; answered by a connected socket, or by none if that worker does not
run. That worker gets the other end as `REACHED`."""

REACHED = "reached"
"""Parent tells `Reach`, with a connected socket; its node is the worker at the other end."""

TAKES_AGENTS = "takes agents"
"""Worker calls: it would take agents now. Answered when it is to take visitors as well: at once, or
after the agents of the program before this one have moved."""

READY = "ready"
"""Worker tells: it serves."""

PING = "ping"
"""Parent calls; answered at once by a worker whose loop runs."""

MOVE = "move"
"""Parent calls; answered when the agents of the worker have sessions with the next program."""

MAKE_WAY = "make way"
"""Parent calls: the next program serves. Answered when the worker accepts nothing any more; a drain
follows."""

VISITOR = "visitor"
"""Told with `Visitor` and his connection: the next program is to serve him."""

ENROLLED = "enrolled"
"""Worker calls: it has let a device in by invitation. Parent calls all others, and answers when
they have read the list of such devices again."""

EVENT = "event"
"""Worker tells a `SessionEvent` of its own; parent tells it to all, with its number."""

AGENT = "agent"
"""Parent tells `Agent`, with a connection that it has accepted."""

SEATED = "seated"
"""Worker tells: it has taken one such connection."""

LEFT = "left"
"""Worker tells: one such connection has ended before it had a session."""

FIGURES = "figures"
"""Worker tells: its metrics, as they were last shown."""

ENDED_FIGURES = "ended figures"
"""Worker calls; answered by the counters of workers that have ended, as metrics."""

WELCOME = "welcome"
"""Parent tells `Welcome` first of all."""

NEWS = "news"
"""Parent tells: the next beat has something new."""

RELOAD = "reload"
"""Parent calls; answered by `Reloaded` when the worker has read the configuration again."""

DRAIN = "drain"
"""Parent tells: stop in order."""

Way = Literal["hop", "internal", "visitors"]
"""What a connection between two workers carries: streams to devices, one internal call, or messages
with visitors' connections."""


class Address(msgspec.Struct, frozen=True):
    """One listener. *slot* distinguishes listeners with port 0."""

    slot: str
    host: str
    port: int


class Reach(msgspec.Struct, frozen=True):
    """A connection between two workers."""

    node: str
    way: Way


class Agent(msgspec.Struct, frozen=True):
    """An agent that has connected to the listener of that slot."""

    slot: str


class Visitor(msgspec.Struct, frozen=True):
    """A visitor who came to the listener of that slot, and of whom nothing unread was taken."""

    slot: str
    remote: str


class Welcome(msgspec.Struct, frozen=True):
    """The data that a worker needs first: the events so far, and their numbering."""

    epoch: str
    seq: int
    """The number of the last event before these."""
    events: list[msgspec.Raw]


class Reloaded(msgspec.Struct, frozen=True):
    """The result of a reload in one worker."""

    kicked: list[str]
    problems: list[str]
