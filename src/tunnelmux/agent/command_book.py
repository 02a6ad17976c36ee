"""The commands of a main server, so that none is executed twice and no result is lost. Without I/O,
and only in memory: a restarted agent does not know which commands it executed before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

__all__ = ["CommandBook", "Known"]

Known = Literal["new", "running", "finished", "forgotten"]
"""The state of a command. The result of a `finished` one is kept; of a `forgotten` one only the
fact that it was executed.
"""

_OVERHEAD = 512
# Bytes of an entry besides its texts.


@dataclass(slots=True)
class _Finished:
    result: dict[str, object]
    size: int
    is_acknowledged: bool = False


class CommandBook:
    """The commands of one main server, by commandId."""

    def __init__(self, *, max_bytes: int, max_remembered: int) -> None:
        self._max_bytes = max_bytes
        self._max_remembered = max_remembered
        self._running: set[str] = set()
        self._finished: OrderedDict[str, _Finished] = OrderedDict()
        self._size = 0
        self._executed: OrderedDict[str, None] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether unacknowledged results take all the room for results."""
        self._make_room()
        return self._size >= self._max_bytes or len(self._finished) > self._max_remembered

    @property
    def running(self) -> int:
        """Commands that were begun and have no result yet."""
        return len(self._running)

    @property
    def unacknowledged(self) -> list[str]:
        """Finished commands whose result the main server has not confirmed, oldest first."""
        return [key for key, entry in self._finished.items() if not entry.is_acknowledged]

    def state(self, command_id: str) -> Known:
        """What is known of that command."""
        if command_id in self._running:
            return "running"
        if command_id in self._finished:
            return "finished"
        return "forgotten" if command_id in self._executed else "new"

    def begin(self, command_id: str) -> None:
        """Record that the command runs, or waits for its turn."""
        self._running.add(command_id)

    def give_up(self, command_id: str) -> None:
        """Record that the command was not executed: it may be requested again."""
        self._running.discard(command_id)

    def finish(self, command_id: str, result: dict[str, object]) -> None:
        """Keep the result of a command that was executed, until it is acknowledged."""
        self._running.discard(command_id)
        self._executed[command_id] = None
        while len(self._executed) > self._max_remembered:
            self._executed.popitem(last=False)
        texts = sum(len(text) for text in result.values() if isinstance(text, str))
        entry = _Finished(result, texts + _OVERHEAD)
        self._finished[command_id] = entry
        self._size += entry.size
        self._make_room()

    def result(self, command_id: str) -> dict[str, object] | None:
        """The result of a finished command, or None when it is not at hand."""
        entry = self._finished.get(command_id)
        return entry.result if entry is not None else None

    def acknowledge(self, command_id: str) -> None:
        """Record that the main server has the result. It is kept while there is room, in case it is
        requested again.
        """
        entry = self._finished.get(command_id)
        if entry is not None:
            entry.is_acknowledged = True

    def _make_room(self) -> None:
        """Drop acknowledged results, oldest first, until the others fit."""
        if self._size < self._max_bytes and len(self._finished) <= self._max_remembered:
            return
        for command_id, entry in list(self._finished.items()):
            if entry.is_acknowledged:
                self._size -= entry.size
                del self._finished[command_id]
                if self._size < self._max_bytes and len(self._finished) <= self._max_remembered:
                    return
