"""One visitor's use of one service, and the register of all that are live."""

from __future__ import annotations

import heapq
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self, TypeVar

import trio

from tunnelmux.http.connection import DRAIN_TIMEOUT
from tunnelmux.limits import IngressLimits
from tunnelmux.mux import Session, Stream
from tunnelmux.observability import get_logger
from tunnelmux.proxy.visitors.feed import RequestFeed
from tunnelmux.proxy.visitors.figures import VisitorFigures
from tunnelmux.proxy.visitors.inspector import Inspector
from tunnelmux.sessions.handle import utc_now
from tunnelmux.transports.admission import source_of

if TYPE_CHECKING:
    from tunnelmux.proxy.access.proofs import Pass

__all__ = ["AGENT_SLACK", "IN_THE_PUMP", "PATIENCE", "Visit", "VisitRegister", "Wait", "Way"]

_log = get_logger("proxy.visits")

_Key = TypeVar("_Key")

_STALE = 1024
# Times of visits that are over which may stand in the heap, beside as many as there are visits.

Way = Literal["http", "tcp", "raw", "api", "ws", "exec"]
"""How a visit came in: an ingress (http, tcp), or a call of the back end; `api` is a raw forward
that has named the one request for which it is."""

Wait = Literal[
    "device", "connect", "answer", "nothing",
    "handshake", "silent", "agreeing", "idle", "reading", "sending", "waiting", "answering",
    "leaving",
]  # fmt: skip
"""What a visit waits for: the device's return, or its taking of a stream; the agent's yes to a
CONNECT; the head of an answer that comes through the agent; nothing that has a time. Then those of
an HTTP connection in the pump: the TLS handshake, the first request, the phases of
`HttpRelay.phase`, and the visitor's close."""

AGENT_SLACK = 5.0
"""Seconds on top of the agent's own limits: its answer, which knows the target, goes first."""

_FROM_OUTSIDE = frozenset({"http", "tcp"})
# The ways of strangers, who are held to a number of streams.

PATIENCE: dict[Wait, Callable[[IngressLimits], float]] = {
    "device": lambda limits: limits.reconnect_wait + limits.connect_timeout,
    "connect": lambda limits: limits.connect_timeout + AGENT_SLACK,
    "answer": lambda limits: limits.response_timeout + limits.connect_timeout + AGENT_SLACK,
    "nothing": lambda _: float("inf"),  # bytes both ways: both legs have their own liveness
    # In the pump no agent stands between that would answer first, so that there is no slack.
    "handshake": lambda limits: limits.handshake_timeout,
    "silent": lambda limits: limits.head_timeout,
    "agreeing": lambda limits: limits.connect_timeout,
    "idle": lambda limits: limits.idle_timeout,
    "reading": lambda limits: limits.head_timeout,
    "sending": lambda limits: limits.body_stall,
    "waiting": lambda limits: limits.response_timeout,
    "answering": lambda _: float("inf"),  # an answer may rest: events, long polls
    "leaving": lambda _: DRAIN_TIMEOUT,
}
"""How long, in seconds, a visit may wait for each of these. The waiting side takes the time from
here, also where it watches the time itself."""

IN_THE_PUMP: tuple[Wait, ...] = (
    "handshake", "silent", "agreeing", "idle", "reading", "sending", "waiting", "answering",
    "leaving",
)  # fmt: skip
"""What an HTTP connection in the pump may wait for."""


class Visit:
    """One visit, from its begin to `end`. Made by `VisitRegister.begin`; a context manager, which
    ends it."""

    __slots__ = (
        "_register",
        "began",
        "by",
        "count",
        "cut_reason",
        "device",
        "is_exempt",
        "lease",
        "number",
        "on_cut",
        "on_late",
        "scheme",
        "service",
        "session",
        "stream",
        "until",
        "visitor",
        "waits_for",
        "way",
    )

    def __init__(
        self,
        register: VisitRegister,
        way: Way,
        *,
        device: str,
        service: str | None,
        visitor: str,
        scheme: str = "tcp",
    ) -> None:
        self.way: Way = way
        self.device = device
        """Where it leads; of HTTP, where its last request went, and empty before the first."""
        self.service = service
        """The service asked for; None is the device's default one."""
        self.is_exempt = False
        """Whether its address stands for many: a trusted proxy's does."""
        self.lease = ""
        """The id of the lease it is under, with which it ends; empty for none."""
        self.visitor = visitor
        """The visitor's address, as `host:port`."""
        self.scheme = scheme
        """What it came in by: http, https, tcp."""
        self.number = 0
        """Counts up from 1 in each process."""
        self.began = trio.current_time()
        self.session: Session | None = None
        self.stream: int | None = None
        """The id of its stream on the session, once there is one."""
        self.waits_for: Wait = "nothing"
        self.until = float("inf")
        """When it has waited too long, on Trio's clock."""
        self.cut_reason: str | None = None
        """Why it was cut, in words; None when it was not."""
        self.by: Pass | None = None
        """What let its last request in, where that was judged."""
        self.count: Callable[[], tuple[int, int]] | None = None
        """Answers the bytes from and to the visitor so far."""
        self.on_cut: Callable[[], object] | None = None
        """Ends it now, from outside of its task: resets its stream, for one. Does not raise."""
        self.on_late: Callable[[], object] | None = None
        """Called when `until` has passed."""
        self._register = register

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
        """What finds it, also among the visits of other processes."""
        return f"{self._register.epoch}-{self.number}"

    @property
    def is_from_outside(self) -> bool:
        """Whether a stranger makes it, and no call of the back end."""
        return self.way in _FROM_OUTSIDE

    @property
    def is_counted(self) -> bool:
        """Whether `max_streams_per_visitor` holds for it."""
        return self.is_from_outside and not self.is_exempt and bool(self.device)

    @property
    def is_idle(self) -> bool:
        """Whether it asks for nothing at the moment: then it is none of a crowd."""
        return False

    @property
    def busy_for(self) -> float:
        """Seconds for which it has been doing what it does: of HTTP, its present request."""
        return trio.current_time() - self.began

    @property
    def asked_by(self) -> str:
        """Who makes its last request: the visitor, or whom trusted proxies name in its place."""
        return self.visitor

    @property
    def stream_now(self) -> int | None:
        """The id of the stream that it uses at this moment, if it is known."""
        return self.stream

    @property
    def agreed_after(self) -> float | None:
        """Seconds until its target took the connection, where that was noted."""
        return None

    @property
    def figures(self) -> VisitorFigures:
        """Where all visits are counted."""
        return self._register.figures

    @property
    def feed(self) -> RequestFeed:
        """Where those who watch are told of requests."""
        return self._register.feed

    def crowd(self, enough: int) -> int:
        """How many visits of this device come from this address, itself included, as
        `VisitRegister.crowd` counts them."""
        return self._register.crowd(self.device, self.visitor, enough)

    @property
    def source(self) -> str:
        """The address that is held to limits: of IPv6, its /64."""
        return source_of(self.visitor)

    @property
    def state(self) -> Wait:
        """What it waits for at this moment."""
        return self.waits_for

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes from and to the visitor so far."""
        return self.count() if self.count is not None else (0, 0)

    def wait_for(self, what: Wait, limits: IngressLimits) -> float:
        """Note what it waits for from now on. Answers until when it may; `late` is called then."""
        self.waits_for = what
        self.until = trio.current_time() + PATIENCE[what](limits)
        if self.until < float("inf"):
            self._register.watch(self)
        return self.until

    def hold(self, stream: trio.abc.AsyncResource) -> None:
        """Its stream is there: to cut the visit is to reset that from now on."""
        self.waits_for = "nothing"
        if isinstance(stream, Stream):
            self.session, self.stream, self.on_cut = stream.session, stream.id, stream.reset

    def let_in(self, by: Pass | None) -> None:
        """This let its present request in; None while that is being judged."""
        self.by = by
        self.lease = by.lease if by is not None else ""

    def go_to(self, device: str, service: str | None) -> None:
        """It leads there from now on."""
        self.service = service
        if device != self.device:
            self._register.move(self, device)

    def finish_soon(self) -> None:
        """End soon if it can; the default is that it cannot know when."""

    def cut(self, reason: str) -> None:
        """End it now, whatever it is doing. `reason` is what the log says about it."""
        if self.cut_reason is None:
            self.cut_reason = reason
            self.stop()

    def stop(self) -> None:
        """What `cut` does: the default is to call `on_cut`."""
        if self.on_cut is not None:
            self.on_cut()

    def late(self) -> None:
        """Called when `until` has passed: the default is to call `on_late`."""
        if self.on_late is not None:
            self.on_late()

    def end(self) -> None:
        """It is over. Harmless twice."""
        self._register.remove(self)
        self.on_cut = self.on_late = None


class VisitRegister:
    """All live visits of a proxy: those of one device are found by its name.

    `run` watches their times.
    """

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.epoch = secrets.token_hex(4)
        """Tells one process's visits from another's."""
        self._clock = clock
        self._last = 0
        self._visits: dict[int, Visit] = {}
        self._by_device: dict[str, dict[int, Visit]] = {}
        self._crowds: dict[tuple[str, str], dict[int, Visit]] = {}
        self._of_way: Counter[Way] = Counter()
        self.figures = VisitorFigures()
        """What visitors did so far, in numbers."""
        self.feed = RequestFeed()
        """What visitors do now, for those who watch."""
        self.inspector = Inspector()
        """Services whose requests are kept for a while."""
        self._of_address: Counter[tuple[Way, str]] = Counter()
        self._due: list[
            tuple[float, int]
        ] = []  # a heap; a visit stands in it once, or seldom twice
        self._watched: dict[int, float] = {}  # the earliest time at which each stands in there
        self._timer = trio.CancelScope()

    def __len__(self) -> int:
        return len(self._visits)

    def __iter__(self) -> Iterator[Visit]:
        """Those that are live now, the oldest first; they may end meanwhile."""
        return iter(list(self._visits.values()))

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

    def add(self, visit: Visit) -> None:
        """Have this visit among the live ones."""
        self._last += 1
        visit.number = self._last
        self._visits[visit.number] = visit
        self._of_way[visit.way] += 1
        self._of_address[visit.way, visit.source] += 1
        self._index(visit)

    def by_way(self) -> dict[str, int]:
        """How many live visits there are, by way; once there was one of a way, it stays."""
        return {str(way): count for way, count in self._of_way.items()}

    def move(self, visit: Visit, device: str) -> None:
        """The visit leads to another device from now on."""
        if visit.number not in self._visits:
            return
        self._drop(visit)
        visit.device = device
        self._index(visit)

    def _index(self, visit: Visit) -> None:
        self._by_device.setdefault(visit.device, {})[visit.number] = visit
        if visit.is_counted:
            self._crowds.setdefault((visit.device, visit.source), {})[visit.number] = visit

    def _drop(self, visit: Visit) -> None:
        _take_out(self._by_device, visit.device, visit)
        if visit.is_counted:
            _take_out(self._crowds, (visit.device, visit.source), visit)

    def remove(self, visit: Visit) -> None:
        """The visit is over; one that is not here is no error."""
        if self._visits.pop(visit.number, None) is None:
            return
        self._watched.pop(visit.number, None)
        self._of_way[visit.way] -= 1
        address = visit.way, visit.source
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        self._drop(visit)

    def find(self, visit_id: str) -> Visit | None:
        """The live visit of this id."""
        epoch, _, number = visit_id.partition("-")
        if epoch != self.epoch or not number.isascii() or not number.isdigit():
            return None
        return self._visits.get(int(number)) if len(number) < 20 else None

    def of_device(self, device: str) -> list[Visit]:
        """The live visits of a device, the oldest first."""
        return list(self._by_device.get(device, {}).values())

    def of_way(self, way: Way) -> int:
        """How many there are that came in this way."""
        return self._of_way[way]

    def of_address(self, way: Way, remote: str) -> int:
        """How many of these come from the address of `remote` (`host:port`)."""
        return self._of_address[way, source_of(remote)]

    def idle_of(self, way: Way, address: str | None = None) -> list[Visit]:
        """Those that are idle of this address, the oldest first; by default, of the address that
        has most of them. Looks at all visits."""
        idle: dict[str, list[Visit]] = {}
        for visit in self._visits.values():
            if visit.way == way and visit.is_idle:
                idle.setdefault(visit.source, []).append(visit)
        if address is not None:
            return idle.get(address, [])
        return max(idle.values(), key=len, default=[])

    def crowd(self, device: str, remote: str, enough: int) -> int:
        """How many visits of a device come from the address of `remote` (`host:port`) now. From
        `enough` on, those that are idle are left out."""
        group = self._crowds.get((device, source_of(remote)), {})
        if len(group) < enough:
            return len(group)
        return sum(not visit.is_idle for visit in group.values())

    def cut_device(self, device: str, reason: str) -> int:
        """Cut all visits of a device that are not idle; answers how many there were."""
        visits = [visit for visit in self.of_device(device) if not visit.is_idle]
        for visit in visits:
            visit.cut(reason)
        return len(visits)

    def cut_lease(self, device: str, lease_id: str, reason: str) -> int:
        """Cut the visits of a device that are under this lease and not idle; answers how many
        there were."""
        visits = [
            visit
            for visit in self.of_device(device)
            if visit.lease == lease_id and not visit.is_idle
        ]
        for visit in visits:
            visit.cut(reason)
        return len(visits)

    def began_at(self, visit: Visit) -> datetime:
        """When it began, by the clock on the wall."""
        return self._clock() - timedelta(seconds=trio.current_time() - visit.began)

    @property
    def times_kept(self) -> int:
        """Times that are noted now: at most about twice as many as there are visits."""
        return len(self._due)

    # -- times ------------------------------------------------------------------------------------

    def watch(self, visit: Visit) -> None:
        """Call `visit.late` when its time has passed."""
        if visit.until < self._watched.get(visit.number, float("inf")):
            heapq.heappush(self._due, (visit.until, visit.number))
            self._watched[visit.number] = visit.until
            if len(self._due) > 2 * len(self._watched) + _STALE:
                self._due = [(at, number) for number, at in self._watched.items()]
                heapq.heapify(self._due)
            if visit.until < self._timer.deadline:  # noqa: PLR1730  to set it costs more than all this
                self._timer.deadline = visit.until

    async def run(self) -> NoReturn:
        """Watch the times of visits until cancelled."""
        while True:
            due = self._due[0][0] if self._due else float("inf")
            # Endless while no visit has a time: `watch` moves the deadline.
            with trio.CancelScope(deadline=due) as self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                at, number = heapq.heappop(self._due)
                self._look(at, number, now)

    def _look(self, at: float, number: int, now: float) -> None:
        visit = self._visits.get(number)
        if visit is None or self._watched.get(number) != at:
            return  # it is over, or stands in the heap once more
        del self._watched[number]
        if visit.until > now:  # it waits for something else by now
            if visit.until < float("inf"):
                self.watch(visit)
        else:
            visit.until = float("inf")
            try:
                visit.late()
            except Exception:  # noqa: BLE001  a bug met by one visit must not end the others
                _log.exception("unhandled error in connection", visitor=visit.visitor)


def _take_out(table: dict[_Key, dict[int, Visit]], key: _Key, visit: Visit) -> None:
    del table[key][visit.number]
    if not table[key]:
        del table[key]
