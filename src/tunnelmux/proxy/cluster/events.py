"""The events of all nodes, for readers at this one."""

from __future__ import annotations

from typing import Any

import msgspec

from tunnelmux.directory.event_stream import EventStream
from tunnelmux.directory.membership import Membership
from tunnelmux.sessions import EventLog, OwnHandle, SessionEvent, numbered_event, session_event
from tunnelmux.sessions.handle import utc_now

__all__ = ["ClusterEvents", "ToldWhenFound", "lost_event"]


def lost_event() -> str:
    """The event for a device of a node that died, as `Directory.sweep` takes it. What only that
    node knew of the session is empty."""
    event = SessionEvent(
        seq=0,
        type="lost",
        time=utc_now(),
        token_prefix="",
        device_id="{device}",
        user_id="",
        remote_addr="",
        reason="node {node}, which had it, was last heard from {seconds} s ago",
        proxy_node_id="{node}",
    )
    return msgspec.json.encode(event).decode()


class ToldWhenFound:
    """Tells all nodes of events by *stream*: that a device has connected when they can find it.

    So no sweep for a node that died can tell afterwards that the device was lost there.
    """

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self._membership: Membership[Any] | None = None
        self._waiting: dict[str, list[SessionEvent]] = {}

    def follow(self, membership: Membership[Any]) -> None:
        """Wait for what this one writes to the directory."""
        self._membership = membership
        membership.on_written = self._tell

    def still_here(self, handle: OwnHandle) -> None:
        """Tell that this session lives, as the others may have been told otherwise."""
        if not handle.is_closed:
            self.record(session_event(0, "connected", utc_now(), handle.summary()))

    def record(self, event: SessionEvent) -> None:
        """Tell of it, at once or when the device is found."""
        device, members = event.device_id, self._membership
        if device not in self._waiting:
            if event.type == "lost" or members is None or not members.will_claim(device):
                self._publish(event)
                return
            self._waiting[device] = []
        self._waiting[device].append(event)
        if event.type == "lost":
            self._tell(device)

    def _tell(self, device: str | None) -> None:
        for name in list(self._waiting) if device is None else [device]:
            for event in self._waiting.pop(name, ()):
                self._publish(event)

    def _publish(self, event: SessionEvent) -> None:
        self.stream.publish(msgspec.json.encode(event).decode())


class ClusterEvents:
    """Tells the other nodes what `record` is told, and keeps the last *history* events of all."""

    def __init__(self, history: int) -> None:
        self.log = EventLog(history)
        """The events of all nodes, in one sequence."""
        self.stream = EventStream(history, self.log.restart, self._take)
        """Runs while this is a node."""
        self.told = ToldWhenFound(self.stream)
        """Tells of events of this node."""

    def _take(self, number: int, text: str) -> None:
        event = numbered_event(number, text)
        if event is None:  # another program's: readers are told of a gap
            self.log.restart(self.log.epoch, number)
        else:
            self.log.add(event)
