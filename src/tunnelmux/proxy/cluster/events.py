"""The events of all nodes, for readers at this one."""

from __future__ import annotations

import msgspec

from tunnelmux.directory.event_stream import EventStream
from tunnelmux.sessions import EventLog, SessionEvent, numbered_event

__all__ = ["ClusterEvents"]


class ClusterEvents:
    """Tells the other nodes what `record` is told, and keeps the last *history* events of all."""

    def __init__(self, history: int) -> None:
        self.log = EventLog(history)
        """The events of all nodes, in one sequence."""
        self.stream = EventStream(history, self.log.restart, self._take)
        """Runs while this is a node."""

    def record(self, event: SessionEvent) -> None:
        """Tell all nodes of an event of this one."""
        self.stream.publish(msgspec.json.encode(event).decode())

    def _take(self, number: int, text: str) -> None:
        event = numbered_event(number, text)
        if event is None:  # another program's: readers are told of a gap
            self.log.restart(self.log.epoch, number)
        else:
            self.log.add(event)
