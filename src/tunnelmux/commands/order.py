"""The order in which the events of one command may come."""

from __future__ import annotations

from tunnelmux.commands.events import Event, Exited, InvalidEvent, Started, StreamName, Truncated

__all__ = ["EventOrder"]


class EventOrder:
    """Checks the events of one command: one Started with its own id, one Truncated for each stream,
    and nothing after Exited. So a peer can send only output without limit.
    """

    def __init__(self, command_id: str) -> None:
        self.has_ended = False
        self._command_id = command_id
        self._has_started = False
        self._truncated: set[StreamName] = set()

    def check(self, event: Event) -> None:
        """Raise InvalidEvent when this one may not come now."""
        if self.has_ended:
            raise InvalidEvent("there is an event after the exit")
        match event:
            case Started(command_id):
                if self._has_started:
                    raise InvalidEvent("there is a second started")
                if command_id != self._command_id:
                    raise InvalidEvent("started has the commandId of another command")
                self._has_started = True
            case Truncated(stream):
                if stream in self._truncated:
                    raise InvalidEvent(f"there is a second truncated for {stream}")
                self._truncated.add(stream)
            case Exited():
                self.has_ended = True
            case _:
                pass
