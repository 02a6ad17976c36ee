"""Session events in order; the latest are kept for readers that come later."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime
from typing import Literal

import msgspec
import trio

from tunnelmux.json_text import BadJson, read_json
from tunnelmux.sessions.handle import utc_now
from tunnelmux.sessions.summary import SessionSummary, shorten_token

__all__ = ["EventLog", "SessionEvent", "numbered_event", "session_event"]

EventType = Literal["connected", "replaced", "lost"]


class SessionEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One event. `seq` counts up by one from the first event of this process.

    `replaced` says that the device connected again and its earlier session was closed; `reason` is
    empty for `connected`. The token is shortened to its beginning.
    """

    seq: int
    type: EventType
    time: datetime
    token_prefix: str
    device_id: str
    user_id: str
    remote_addr: str
    reason: str = ""
    proxy_node_id: str = ""
    """The node where it happened, if the proxy is one of several."""


def session_event(
    number: int, kind: EventType, time: datetime, summary: SessionSummary, reason: str = ""
) -> SessionEvent:
    """The event of this session."""
    return SessionEvent(
        seq=number,
        type=kind,
        time=time,
        token_prefix=shorten_token(summary.token),
        device_id=summary.device_id,
        user_id=summary.user_id,
        remote_addr=summary.remote_addr,
        reason=reason,
        proxy_node_id=summary.proxy_node_id,
    )


def numbered_event(number: int, text: str | bytes) -> SessionEvent | None:
    """The event that JSON of another process says, with this number; None where it says none."""
    try:
        event = read_json(text, SessionEvent)
    except BadJson:
        return None
    return msgspec.structs.replace(event, seq=number)


class EventLog:
    """The last `history` events, and a way to wait for the next.

    Readers keep their own position and the log keeps nothing per reader, so a slow reader costs no
    memory: it misses the events that were dropped meanwhile. `epoch` tells one process's numbers
    from another's.
    """

    def __init__(
        self,
        history: int,
        *,
        clock: Callable[[], datetime] = utc_now,
        on_record: Callable[[SessionEvent], None] = lambda _event: None,
    ) -> None:
        self.epoch = secrets.token_hex(4)
        self.last_seq = 0
        self.counts: Counter[str] = Counter()
        """How many events of each type there were since the process began."""
        self._events: deque[SessionEvent] = deque(maxlen=history)
        self._clock = clock
        self._on_record = on_record
        self._arrival = trio.Event()

    def record(self, kind: EventType, summary: SessionSummary, reason: str = "") -> None:
        """Add an event and wake the tasks that wait for one; `on_record` is told of it."""
        event = session_event(self.last_seq + 1, kind, self._clock(), summary, reason)
        self.add(event)
        self._on_record(event)

    def add(self, event: SessionEvent) -> None:
        """Add an event that has its number, the next one."""
        self.last_seq = event.seq
        self.counts[event.type] += 1
        self._events.append(event)
        self._arrival.set()
        self._arrival = trio.Event()

    def restart(self, epoch: str, last_seq: int) -> None:
        """Go on with the events after that number of another sequence; drop those of this one."""
        self.epoch, self.last_seq = epoch, last_seq
        self._events.clear()
        self._arrival.set()
        self._arrival = trio.Event()

    @property
    def first_seq(self) -> int:
        """The number of the oldest event that is kept; of the next one while there is none."""
        return self.last_seq - len(self._events) + 1

    def after(self, seq: int) -> list[SessionEvent]:
        """The kept events with a higher number, oldest first."""
        return [event for event in self._events if event.seq > seq]

    async def wait_after(self, seq: int) -> None:
        """Return when there is an event with a higher number, or another epoch. The caller bounds
        the wait."""
        epoch = self.epoch
        while self.last_seq <= seq and self.epoch == epoch:
            await self._arrival.wait()
