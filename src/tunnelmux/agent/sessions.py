"""An agent's sessions with its proxy: how one ends, and the one that is made before it does."""

from __future__ import annotations

import trio

from tunnelmux.agent.link import ProxyLink
from tunnelmux.errors import ProtocolError
from tunnelmux.mux import Session
from tunnelmux.observability import get_logger
from tunnelmux.transports import WebSocketStream
from tunnelmux.wire import CLOSE_REPLACED

__all__ = ["Successor", "end_of", "log_end", "printable", "replaced_by"]

_log = get_logger("agent")


class Successor:
    """The session that follows the present one: it begins, or cannot; later it is over."""

    def __init__(self) -> None:
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


def log_end(link: ProxyLink, session: Session, duration: float) -> None:
    """Tell the log that a session of *duration* seconds is over."""
    error = session.error
    write = _log.error if isinstance(error, ProtocolError) else _log.info
    write(
        "session ended",
        device=link.device,
        proxy=str(link.url),
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
