"""Accepted connections that wait for a place, unread and without a task. Thousands of agents dial
at once when a node is lost; to reset those that come too early costs both ends more than to let
them wait.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelmux.transports.tcp import reset_socket, socket_has_hung_up

if TYPE_CHECKING:
    from tunnelmux.transports.admission import Place

__all__ = ["Waiting", "WaitingLine"]


@dataclass(eq=False, slots=True)
class Waiting:
    """One connection in the line, which owns it until `seated` is called with its place."""

    source: str
    """The address that limits count."""
    connection: socket.socket
    seated: Callable[[Place], object]
    """Takes the connection over. It must not raise."""
    since: float


class WaitingLine:
    """Connections by address. The addresses take turns, and of each the oldest is first.

    At most `limit` wait, half of them of one address, and each for at most `patience` seconds. One
    that has waited longer, and one that finds no room, is reset: what would be served last would
    be left too little time for its handshake.
    """

    def __init__(self) -> None:
        self.limit = 0
        self.patience = 0.0
        self._lines: dict[str, dict[Waiting, None]] = {}  # the address whose turn it is first
        self._all: dict[Waiting, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, source: str) -> bool:
        return source in self._lines

    def add(self, waiting: Waiting) -> bool:
        """Have it wait; False when there is no room for it."""
        line = self._lines.get(waiting.source, {})
        if len(self._all) >= self.limit or len(line) >= max(self.limit // 2, 1):
            return False
        self._lines.setdefault(waiting.source, line)[waiting] = None
        self._all[waiting] = None
        return True

    def next_source(self, may_enter: Callable[[str], bool]) -> str | None:
        """The address whose turn it is, of those that may have one more place."""
        # An address that may not has its full share of the places, so there are few of them.
        return next(filter(may_enter, self._lines), None)

    def take(self, source: str) -> Waiting | None:
        """The next one of that address, which then is the last to have its turn. None where its
        peer has left: it is dropped."""
        waiting = next(iter(self._lines[source]))
        self._remove(waiting)
        if source in self._lines:
            self._lines[source] = self._lines.pop(source)
        if socket_has_hung_up(waiting.connection):
            waiting.connection.close()
            return None
        return waiting

    def turn_out_late(self, now: float) -> list[str]:
        """Reset those that have waited for longer than `patience`. Returns their addresses."""
        late: list[str] = []
        while self._all:
            oldest = next(iter(self._all))
            if now - oldest.since <= self.patience:
                break
            self._turn_out(oldest)
            late.append(oldest.source)
        return late

    def turn_out_all(self) -> None:
        """Reset all."""
        while self._all:
            self._turn_out(next(iter(self._all)))

    def _turn_out(self, waiting: Waiting) -> None:
        self._remove(waiting)
        reset_socket(waiting.connection)

    def _remove(self, waiting: Waiting) -> None:
        del self._all[waiting]
        line = self._lines[waiting.source]
        del line[waiting]
        if not line:
            del self._lines[waiting.source]
