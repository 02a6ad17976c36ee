"""Receive windows grow when they are what holds a peer back, within budgets, and shrink again."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tunnelmux.limits import INITIAL_WINDOW, Limits
from tunnelmux.yamux.engine import Engine
from tunnelmux.yamux.streams import EngineStream, WindowBudget

MIB = 1 << 20
STEP = 0.001


@dataclass
class Path:
    """Two engines, a link of *rtt* seconds and *rate* bytes per second between them, a clock."""

    rtt: float = 0.1
    rate: float = 1e9
    limits: Limits = field(default_factory=Limits)
    budget: WindowBudget | None = None
    now: float = 0.0

    def __post_init__(self) -> None:
        self.sender = Engine(is_client=True, limits=Limits(keepalive_interval=1e9), now=0.0)
        self.receiver = Engine(
            is_client=False, limits=self.limits, now=0.0, process_budget=self.budget
        )
        self.flights: list[tuple[float, Engine, bytes]] = []
        self.ready_at = 0.0

    def open(self) -> tuple[EngineStream, EngineStream]:
        ours = self.sender.open_stream(self.now)
        while (theirs := self.receiver.accept_stream()) is None:
            self.advance(STEP)
        return ours, theirs

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += STEP
            self.carry(self.sender, self.receiver, limited=True)
            self.carry(self.receiver, self.sender, limited=False)
            due = [flight for flight in self.flights if flight[0] <= self.now]
            self.flights = [flight for flight in self.flights if flight[0] > self.now]
            for _, engine, data in due:
                engine.receive_data(data, self.now)
            for engine in (self.sender, self.receiver):
                deadline = engine.next_deadline()
                if deadline is not None and deadline <= self.now:
                    engine.handle_deadline(self.now)

    def carry(self, source: Engine, target: Engine, *, limited: bool) -> None:
        while not limited or self.ready_at <= self.now:
            data = source.data_to_send(self.now)
            if not data:
                return
            if limited:
                self.ready_at = max(self.ready_at, self.now - STEP) + len(data) / self.rate
            self.flights.append((self.now + self.rtt / 2, target, data))

    def bulk(self, pairs: list[tuple[EngineStream, EngineStream]], seconds: float) -> int:
        """Send as much as will go for *seconds*, read at once; how many bytes arrived."""
        payload, received, end = bytes(65_536), 0, self.now + seconds
        while self.now < end:
            for ours, theirs in pairs:
                while ours.send(payload):
                    pass
                while data := theirs.receive(1 << 20):
                    received += len(data)
            self.advance(STEP)
        return received


def test_a_window_that_holds_the_peer_back_grows_until_it_does_not() -> None:
    path = Path(rtt=0.1, rate=20e6)
    ours, theirs = path.open()
    path.bulk([(ours, theirs)], 3)
    # 2 MB are in flight at 20 MB/s and 100 ms; a fixed window would carry 2.6 MB/s.
    assert path.bulk([(ours, theirs)], 2) / 2 >= 0.9 * path.rate
    assert 2 * 2e6 <= theirs.window <= 16 * MIB


def test_a_window_that_does_not_hold_the_peer_back_stays() -> None:
    path = Path(rtt=0.01, rate=1e6)
    ours, theirs = path.open()
    path.bulk([(ours, theirs)], 5)
    assert theirs.window == INITIAL_WINDOW


def test_a_slow_reader_gets_no_larger_window() -> None:
    """It would only hold more of what it does not read."""
    path = Path(rtt=0.2)
    ours, theirs = path.open()
    payload = bytes(65_536)
    for _ in range(300):
        while ours.send(payload):
            pass
        # Half a window at a time, and never to the end: an update each time, much left unread.
        if theirs.unread_bytes > 200_000:
            theirs.receive(140_000)
        path.advance(0.01)
    assert theirs.window == INITIAL_WINDOW


def test_growing_stops_at_the_limit_of_a_stream() -> None:
    path = Path(rtt=0.2, limits=Limits(max_stream_window=MIB))
    ours, theirs = path.open()
    path.bulk([(ours, theirs)], 5)
    assert theirs.window == MIB


def test_growing_can_be_switched_off() -> None:
    path = Path(rtt=0.2, limits=Limits(max_stream_window=INITIAL_WINDOW))
    ours, theirs = path.open()
    path.bulk([(ours, theirs)], 2)
    assert theirs.window == INITIAL_WINDOW
    assert path.receiver.rtt is None, "no ping is sent when nothing depends on it"


def test_all_streams_of_a_session_share_its_budget() -> None:
    path = Path(rtt=0.2, limits=Limits(session_window_budget=2 * MIB))
    pairs = [path.open() for _ in range(4)]
    path.bulk(pairs, 4)
    grown = sum(theirs.window - INITIAL_WINDOW for _, theirs in pairs)
    assert 0 < grown <= 2 * MIB


def test_all_sessions_of_a_process_share_its_budget() -> None:
    budget = WindowBudget(3 * MIB)
    paths = [Path(rtt=0.2, budget=budget) for _ in range(3)]
    windows = []
    for path in paths:
        ours, theirs = path.open()
        path.bulk([(ours, theirs)], 3)
        windows.append(theirs.window)
    assert budget.spent <= budget.capacity
    assert sum(windows) - 3 * INITIAL_WINDOW == budget.spent


def test_the_budget_comes_back_when_a_stream_ends() -> None:
    budget = WindowBudget(16 * MIB)
    path = Path(rtt=0.2, budget=budget)
    ours, theirs = path.open()
    path.bulk([(ours, theirs)], 3)
    assert budget.spent > 0
    theirs.reset()
    path.advance(1)
    assert budget.spent == 0


def test_an_idle_window_shrinks_and_its_budget_comes_back_as_the_credit_is_used() -> None:
    budget = WindowBudget(16 * MIB)
    path = Path(rtt=0.1, rate=20e6, budget=budget)
    ours, theirs = path.open()
    path.bulk([(ours, theirs)], 3)
    while data := theirs.receive(1 << 20):
        assert data
    grown = theirs.window
    # The sender has bytes queued: let them pass, then be idle.
    path.bulk([(ours, theirs)], 0.01)
    for _ in range(200):
        path.advance(0.1)
        while theirs.receive(1 << 20):
            pass
    assert theirs.window == INITIAL_WINDOW < grown
    outstanding = theirs.receive_credit
    assert budget.spent == max(0, outstanding - INITIAL_WINDOW), "given credit stays accounted for"
    path.rtt = 0.002  # a path on which the window is no hindrance
    path.receiver.ping(path.now)
    path.advance(0.1)
    path.bulk([(ours, theirs)], 3)
    assert theirs.receive_credit <= INITIAL_WINDOW
    assert budget.spent == 0


def test_credit_given_is_what_was_consumed_and_what_was_grown() -> None:
    path = Path(rtt=0.1)
    ours, theirs = path.open()
    received = path.bulk([(ours, theirs)], 2)
    path.advance(1)  # updates on the way arrive, unread data stays
    unread = theirs.unread_bytes
    assert ours.send_credit <= theirs.receive_credit
    assert received > INITIAL_WINDOW
    assert theirs.receive_credit + unread <= theirs.window


@pytest.mark.parametrize("capacity", [-1])
def test_a_budget_is_not_negative(capacity: int) -> None:
    with pytest.raises(ValueError, match="budget"):
        WindowBudget(capacity)
