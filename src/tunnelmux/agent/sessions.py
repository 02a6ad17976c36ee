"""An agent's sessions with its proxy: how one ends, and the one that is made before it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import trio

from tunnelmux.errors import ProtocolError
from tunnelmux.mux import Session
from tunnelmux.observability import get_logger
from tunnelmux.transports import WebSocketStream, parse_url
from tunnelmux.wire import CLOSE_REPLACED

__all__ = ["SessionNow", "Successor", "end_of", "log_end", "printable", "replaced_by"]

_log = get_logger("agent")


@dataclass(frozen=True, slots=True)
class SessionNow:
    """What the agent knows of a session that is up."""

    node: str
    """The node that has it; empty where the proxy does not say."""
    dialled: str = field(repr=False)
    since: datetime

    @property
    def url(self) -> str:
        """What was dialled, without its query, which may hold a token."""
        return str(parse_url(self.dialled))

    @property
    def about(self) -> dict[str, str]:
        """The node for the log, if it is known."""
        return {"node": self.node} if self.node else {}


class Successor:
    """The session that follows the present one: it begins, or cannot; later it is over."""

    def __init__(self, leaves: str | None = None) -> None:
        self.leaves = leaves
        """The node that it is not to be on; empty where that has no name, and None where the
        same node may have it."""
        self.began = trio.Event()
        """Set when it is up, and when it will not be."""
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        """What ends it, also before it began."""
        self.is_up = False
        """Whether it came about."""
        self.problem: Exception | None = None
        """Why it did not."""
        self.replaced_by: str | None = None
        """The address of the agent that replaced it, if one did."""

    def begin(self) -> None:
        """It is up."""
        self.is_up = True
        self.began.set()

    def end(self) -> None:
        """It is over, or never came about."""
        self.began.set()
        self.over.set()


def log_end(device: str, now: SessionNow, session: Session, duration: float) -> None:
    """Tell the log that a session of *duration* seconds is over."""
    error = session.error
    write = _log.error if isinstance(error, ProtocolError) else _log.info
    write(
        "session ended",
        device=device,
        proxy=now.url,
        **now.about,
        duration=round(duration, 3),
        bytes_to_proxy=session.bytes_sent,
        bytes_from_proxy=session.bytes_received,
        reason=end_of(session),
    )


def end_of(session: Session) -> str:
    """Why it is over, in words."""
    return str(session.error) if session.error is not None else "closed by this agent"


def printable(text: str) -> str:
    """What may go into a log of a text from the proxy."""
    return "".join(c for c in text if c.isprintable())[:128]


def replaced_by(transport: trio.abc.Stream) -> str | None:
    """The address of the connection that replaced this one, if the proxy sent it."""
    close = transport.peer_close if isinstance(transport, WebSocketStream) else None
    if close is None or close[0] != CLOSE_REPLACED:
        return None
    return printable(close[1])
