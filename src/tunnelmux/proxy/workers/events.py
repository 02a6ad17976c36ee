"""The events of all workers' sessions, as one sequence."""

from __future__ import annotations

import secrets
from collections import Counter, deque

import msgspec

from tunnelmux.proxy.workers.words import Welcome
from tunnelmux.sessions import SessionEvent, numbered_event
from tunnelmux.sessions.handle import utc_now

__all__ = ["SharedEvents"]

_AGAIN = "the device connected again"


class SharedEvents:
    """The last *history* events, numbered in the order in which the parent got them, so that a
    reader can go on at any worker. Events are kept as JSON."""

    def __init__(self, history: int) -> None:
        self._epoch = secrets.token_hex(4)
        self._seq = 0
        self._kept: deque[bytes] = deque(maxlen=history)
        self._live: dict[str, tuple[str, SessionEvent]] = {}
        self._counts: Counter[str] = Counter()

    def welcome(self) -> Welcome:
        """The message for a worker that starts, and for all when the numbering begins anew."""
        kept = [msgspec.Raw(event) for event in self._kept]
        return Welcome(self._epoch, self._seq - len(kept), kept)

    def restart(self, epoch: str, seq: int) -> None:
        """Go on with the events after that number of another sequence."""
        self._epoch, self._seq = epoch, seq
        self._kept.clear()

    def keep(self, number: int, text: str) -> bytes | None:
        """Keep an event that has its number already. None where the text says none."""
        event = numbered_event(number, text)
        if event is None:
            self.restart(self._epoch, number)
            return None
        self._seq = number - 1
        return self.number(event)

    def sessions_of(self, worker: str) -> int:
        """How many devices have their session there."""
        return self._counts[worker]

    def session_of(self, device: str) -> SessionEvent | None:
        """The event that the device has a session at one of the workers, if it has one."""
        _, event = self._live.get(device, ("", None))
        if event is None:
            return None
        return msgspec.structs.replace(event, type="connected", time=utc_now(), reason="")

    def take(self, worker: str, told: bytes) -> SessionEvent | None:
        """A worker's event, for `number`. None if the event is outdated, because the device has a
        newer session at another worker."""
        event = msgspec.json.decode(told, type=SessionEvent)
        where, before = self._live.get(event.device_id, ("", None))
        if event.type == "lost":
            if where != worker:
                return None
            self._drop(event.device_id)
        else:
            if before is not None and where != worker:
                event = msgspec.structs.replace(event, type="replaced", reason=_AGAIN)
            self._drop(event.device_id)
            self._live[event.device_id] = worker, event
            self._counts[worker] += 1
        return event

    def worker_ended(self, worker: str) -> list[SessionEvent]:
        """The events for the loss of all its sessions."""
        gone = [event for where, event in self._live.values() if where == worker]
        lost = []
        for event in gone:
            self._drop(event.device_id)
            reason = f"{worker}, which had it, ended"
            lost.append(msgspec.structs.replace(event, type="lost", time=utc_now(), reason=reason))
        return lost

    def _drop(self, device: str) -> None:
        where, _ = self._live.pop(device, ("", None))
        self._counts[where] -= 1

    def number(self, event: SessionEvent) -> bytes:
        """The event as JSON, with the next number."""
        self._seq += 1
        told = msgspec.json.encode(msgspec.structs.replace(event, seq=self._seq))
        self._kept.append(told)
        return told
