"""How many connections to targets an agent may have, by the files and sockets that it may."""

from __future__ import annotations

from collections import Counter

from tunnelmux.http import Refusal
from tunnelmux.observability import get_logger

__all__ = ["Room"]

_log = get_logger("agent")

_RETRY_AFTER = 1
# Seconds after which a visitor may try again: most connections are short.

_SESSIONS = 2
# With different nodes of a cluster: neither takes the other's places, unless files run out.


class Room:
    """Places for connections to targets. Half of the files that this process may open are left for
    its sessions, for commands and for shells, and a quarter of the places for other services, so
    that visitors of one service take them from no other.
    """

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._total = self._all = self._each = 0

    def configure(self, files: int | None, services: int, max_streams: int) -> None:
        """This process may open so many files, None where connections take none, and there are so
        many services. Places are as many as streams, unless files run out by that."""
        self._all = self._each = max_streams * _SESSIONS
        if files is None:
            return
        if files // 2 >= max_streams:
            self._all = self._each = min(files // 2, self._all)
            return
        self._all = fitting = max(2, files // 2)
        self._each = fitting if services == 1 else fitting - fitting // 4
        _log.warning(
            "limits are lowered",
            files=files,
            connections=self._all,
            of_one_service=self._each,
            fix="this process may open few files and sockets: raise LimitNOFILE (ulimit -n)",
        )

    def has(self, service: str) -> bool:
        """Whether one more connection of this service has a place."""
        return self._taken[service] < self._each and self._total < self._all

    def refusal(self, service: str) -> Refusal:
        """What is said where it has none."""
        message = (
            f'This device has no file descriptor left for service "{service}": its agent may have '
            "few open (raise LimitNOFILE, ulimit -n). Try again in a moment."
        )
        return Refusal(503, "device-busy", message, retry_after=_RETRY_AFTER)

    def enter(self, service: str) -> None:
        """A connection of this service begins."""
        self._taken[service] += 1
        self._total += 1

    def leave(self, service: str) -> None:
        """A connection that had a place is over."""
        self._total -= 1
        self._taken[service] -= 1
        if not self._taken[service]:
            del self._taken[service]
