"""One visitor's use of one service, and the register of all live visits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self

import trio

from tunnelmux.http.connection import DRAIN_TIMEOUT
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Stream
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.proxy.visitors.feed import RequestFeed
from tunnelmux.proxy.visitors.figures import VisitorFigures
from tunnelmux.proxy.visitors.inspector import Inspector
from tunnelmux.pump.visits import VisitBook, VisitEntry
from tunnelmux.sessions.handle import utc_now
from tunnelmux.transports.admission import source_of

if TYPE_CHECKING:
    from tunnelmux.proxy.access.proofs import Pass

__all__ = [
    "AGENT_SLACK",
    "IN_THE_PUMP",
    "PATIENCE",
    "LinesAboutStrangers",
    "Visit",
    "VisitRegister",
    "Wait",
    "Way",
]

_log = get_logger("proxy.visits")

Way = Literal["http", "tcp", "raw", "api", "ws", "exec"]
"""How a visit came in: an ingress (http, tcp), or a call of the back end; `api` is a raw forward
for one named request."""

Wait = Literal[
    "device", "connect", "answer", "nothing",
    "handshake", "silent", "agreeing", "idle", "reading", "sending", "waiting", "answering",
    "leaving",
]  # fmt: skip
"""What a visit waits for: the device to return or to take a stream; the agent to accept a CONNECT;
the head of an answer through the agent; nothing with a deadline. Then those of an HTTP connection
in the pump: the TLS handshake, the first request, the phases of `HttpRelay.phase`, and the
visitor's close.
"""

AGENT_SLACK = 5.0
"""Seconds beyond the agent's own timeouts: the agent's answer says more about the target."""

PATIENCE: dict[Wait, Callable[[IngressLimits], float]] = {
    "device": lambda limits: limits.reconnect_wait + limits.connect_timeout,
    "connect": lambda limits: limits.connect_timeout + AGENT_SLACK,
    "answer": lambda limits: limits.response_timeout + limits.connect_timeout + AGENT_SLACK,
    "nothing": lambda _: float("inf"),  # no deadline: both legs have their own liveness checks
    # In the pump no agent answers in between, so there is no slack.
    "handshake": lambda limits: limits.handshake_timeout,
    "silent": lambda limits: limits.head_timeout,
    "agreeing": lambda limits: limits.connect_timeout,
    "idle": lambda limits: limits.idle_timeout,
    "reading": lambda limits: limits.head_timeout,
    "sending": lambda limits: limits.body_stall,
    "waiting": lambda limits: limits.response_timeout,
    "answering": lambda _: float("inf"),  # an answer may pause: events, long polls
    "leaving": lambda _: DRAIN_TIMEOUT,
}
"""Seconds that a visit may wait for each of these, as functions of the limits. All waits take their
time from here.
"""

IN_THE_PUMP: tuple[Wait, ...] = (
    "handshake", "silent", "agreeing", "idle", "reading", "sending", "waiting", "answering",
    "leaving",
)  # fmt: skip
"""What an HTTP connection in the pump may wait for."""


class LinesAboutStrangers:
    """Which log lines are written about visitors that reached no device. Strangers cause any number
    of them, from many addresses; those about what a device served are all written."""

    def __init__(self) -> None:
        self.request = RepeatedLines("request")
        self.relay = RepeatedLines("relay refused")
        self.lost = RepeatedLines("visitor lost")
        self.refused = RepeatedLines("visitor refused")


class Visit(VisitEntry):
    """One visit, from its beginning to `end`. Made by `VisitRegister.begin`. As a context manager,
    it ends with the block."""

    __slots__ = ()

    _register: VisitRegister
    way: Way
    waits_for: Wait
    by: Pass | None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<Visit {self.number} {self.way} {self.visitor} -> {self.device}/{self.service}>"

    @property
    def id(self) -> str:
        """Its id, unique among all processes."""
        return f"{self._register.epoch}-{self.number}"

    @property
    def asked_for(self) -> str:
        """What the visitor asked for, and access rules are about: a device, or a group."""
        return self.named or self.device

    @property
    def is_idle(self) -> bool:
        """Whether it has no request in progress; then `crowd` does not count it."""
        return False

    @property
    def busy_for(self) -> float:
        """Seconds since it began; for HTTP, since its present request began."""
        return trio.current_time() - self.began

    @property
    def asked_by(self) -> str:
        """The address of its last request: the visitor's, or the one that trusted proxies name."""
        return self.visitor

    @property
    def stream_now(self) -> int | None:
        """The id of the stream that it uses now, if known."""
        return self.stream

    @property
    def agreed_after(self) -> float | None:
        """Seconds until its target accepted the connection, if that was noted."""
        return None

    @property
    def figures(self) -> VisitorFigures:
        """The counters of all visits."""
        return self._register.figures

    @property
    def feed(self) -> RequestFeed:
        """The request feed."""
        return self._register.feed

    @property
    def lines(self) -> LinesAboutStrangers:
        """Which log lines are written about visitors that reached no device."""
        return self._register.lines

    def crowd(self, enough: int) -> int:
        """How many visits of this device count as this address, including this one; see
        `VisitRegister.crowd`.
        """
        return self._register.crowd(self.device, self.counts_as, enough)

    @property
    def state(self) -> Wait:
        """What it waits for now."""
        return self.waits_for

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes from and to the visitor so far."""
        return self.count() if self.count is not None else (0, 0)

    def wait_for(self, what: Wait, limits: IngressLimits) -> float:
        """Record a new wait. Returns its deadline, at which `late` is called."""
        self.waits_for = what
        self.until = trio.current_time() + PATIENCE[what](limits)
        if self.until < float("inf"):
            self._register.watch(self)
        return self.until

    def hold(self, stream: trio.abc.AsyncResource) -> None:
        """Set its stream, which `cut` resets from now on."""
        self.waits_for = "nothing"
        if isinstance(stream, Stream):
            self.session, self.stream, self.on_cut = stream.session, stream.id, stream.reset

    def let_in(self, by: Pass | None) -> None:
        """Set the pass of its present request; None while access is being checked."""
        self.by = by
        self.lease = by.lease if by is not None else ""

    def go_to(self, device: str, service: str | None, named: str = "") -> None:
        """Set its destination. *named* is the group that the device was chosen from, if any."""
        self.service, self.named = service, named
        if device != self.device:
            self._register.move(self, device)

    def finish_soon(self) -> None:
        """End at the next good moment; does nothing by default."""

    def cut(self, reason: str) -> None:
        """End it now. `reason` goes into the log."""
        if self.cut_reason is None:
            self.cut_reason = reason
            self.stop()

    def stop(self) -> None:
        """Do the work of `cut`; calls `on_cut` by default."""
        if self.on_cut is not None:
            self.on_cut()

    def late(self) -> None:
        """Called when `until` has passed; calls `on_late` by default."""
        if self.on_late is not None:
            self.on_late()

    def end(self) -> None:
        """End the visit. Harmless twice."""
        self._register.remove(self)
        self.on_cut = self.on_late = None


class VisitRegister(VisitBook):
    """All live visits of a proxy; those of a device can be found by its name.

    `run` watches their deadlines.
    """

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(trio.current_time, source_of)
        self.epoch = secrets.token_hex(4)
        """Distinguishes visit ids of different processes."""
        self._clock = clock
        self.figures = VisitorFigures()
        """The counters of visitors."""
        self.feed = RequestFeed()
        """The feed of finished requests."""
        self.lines = LinesAboutStrangers()
        """Which log lines are written about visitors that reached no device."""
        self.inspector = Inspector()
        """Services whose requests are kept for a while."""
        self._timer = trio.CancelScope()

    def __iter__(self) -> Iterator[Visit]:
        """The visits that are live now, the oldest first; they may end meanwhile."""
        return iter(list(self.live.values()))

    def begin(
        self,
        way: Way,
        *,
        device: str,
        service: str | None,
        visitor: str,
        scheme: str = "tcp",
    ) -> Visit:
        """A new visit, live from now on."""
        visit = Visit(self, way, device=device, service=service, visitor=visitor, scheme=scheme)
        self.add(visit)
        return visit

    def find(self, visit_id: str) -> Visit | None:
        """The live visit of this id, or None."""
        epoch, _, number = visit_id.partition("-")
        if epoch != self.epoch or not number.isascii() or not number.isdigit():
            return None
        return self.live.get(int(number)) if len(number) < 20 else None

    def idle_by_address(self, way: Way) -> dict[str, list[Visit]]:
        """The idle visits of each address, the oldest first. Takes time linear in all visits."""
        idle: dict[str, list[Visit]] = {}
        for visit in self.live.values():
            if visit.way == way and visit.is_idle:
                idle.setdefault(visit.source, []).append(visit)
        return idle

    def cut_device(self, device: str, reason: str) -> int:
        """Cut all visits of a device that are not idle. Returns how many."""
        visits = [visit for visit in self.of_device(device) if not visit.is_idle]
        for visit in visits:
            visit.cut(reason)
        return len(visits)

    def cut_lease(self, device: str, lease_id: str, reason: str) -> int:
        """Cut the visits of a device under this lease that are not idle. Returns how many."""
        visits = [
            visit
            for visit in self.of_device(device)
            if visit.lease == lease_id and not visit.is_idle
        ]
        for visit in visits:
            visit.cut(reason)
        return len(visits)

    def began_at(self, visit: Visit) -> datetime:
        """When the visit began, by the wall clock."""
        return self._clock() - timedelta(seconds=trio.current_time() - visit.began)

    @property
    def times_kept(self) -> int:
        """How many deadlines are noted now: at most about twice as many as there are visits."""
        return len(self.due)

    # -- deadlines ---------------------------------------------------------------------------

    def watch(self, visit: Visit) -> None:
        """Call `visit.late` when its time has passed."""
        if self.note_time(visit):
            self._timer.deadline = visit.until

    async def run(self) -> NoReturn:
        """Watch the deadlines of visits until cancelled."""
        while True:
            self.wakes_at = self.due[0][0] if self.due else float("inf")
            # Without an end while no visit has a deadline: `watch` moves it.
            with trio.CancelScope(deadline=self.wakes_at) as self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            while (visit := self.pop_due(now)) is not None:
                self._look(visit, now)

    def _look(self, visit: Visit, now: float) -> None:
        if visit.until > now:  # it waits for something else by now
            if visit.until < float("inf"):
                self.watch(visit)
            return
        visit.until = float("inf")
        try:
            visit.late()
        except Exception:  # noqa: BLE001  a bug met by one visit must not end the others
            _log.exception("unhandled error in connection", visitor=visit.visitor)
