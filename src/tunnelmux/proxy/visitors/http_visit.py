"""A visitor's HTTP connection as a visit: of the device that its last request named."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from tunnelmux.proxy.visitors.visit import Visit, VisitRegister, Wait
from tunnelmux.transports.admission import Place

if TYPE_CHECKING:
    from tunnelmux.pump.http_relay import HttpRelay

__all__ = ["HttpVisit", "ServedInTask"]


class Connection(Protocol):
    """What serves the visitor at the moment: the pump, or a task."""

    def finish_soon(self) -> None:
        """End after the current request; now, when there is none."""

    def cut(self) -> None:
        """End now: an answer that is being sent must not look like a whole one."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""

    @property
    def relay(self) -> HttpRelay | None:
        """What carries its requests at the moment, if a pump does."""


class ServedInTask:
    """A connection that a task serves, within `scope`."""

    def __init__(self, finish_soon: Callable[[], object]) -> None:
        self.scope = trio.CancelScope()
        self.relay: HttpRelay | None = None
        """What carries its requests at the moment, if a pump does."""
        self._waits = True
        self._finish_soon = finish_soon

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress. The task says so, where no relay does."""
        return self._waits if self.relay is None else self.relay.phase == "idle"

    @is_idle.setter
    def is_idle(self, waits: bool) -> None:
        self._waits = waits

    def finish_soon(self) -> None:
        """End after the current request; now, when there is none."""
        self._finish_soon()

    def cut(self) -> None:
        """Cancel the task, which resets the connection then."""
        self.scope.cancel()


class HttpVisit(Visit):
    """One connection, from its accepting on. Until its first request it has no device, and a place
    among those that have not said what they want."""

    __slots__ = ("connection", "place")

    def __init__(
        self,
        visits: VisitRegister,
        remote: str,
        place: Place,
        *,
        scheme: str = "http",
        is_exempt: bool = False,
    ) -> None:
        super().__init__(visits, "http", device="", service=None, visitor=remote, scheme=scheme)
        self.is_exempt = is_exempt
        self.place = place
        self.connection: Connection | None = None
        """Set by whatever serves it now."""
        visits.add(self)

    @property
    def is_idle(self) -> bool:
        return self.connection is not None and self.connection.is_idle

    @property
    def state(self) -> Wait:
        relay = self.connection.relay if self.connection is not None else None
        return self.waits_for if relay is None else relay.phase

    def ask(self, device: str, service: str | None) -> None:
        """A request has come that goes there: the visitor has said what it wants."""
        self.place.leave()
        self.go_to(device, service)

    def finish_soon(self) -> None:
        if self.connection is not None:
            self.connection.finish_soon()

    def stop(self) -> None:
        if self.connection is not None:
            self.connection.cut()

    def end(self) -> None:
        self.place.leave()
        super().end()
        self.connection = None  # which knows its visit
