"""Which worker gets the agents that connect."""

from __future__ import annotations

import socket

import pytest
import trio

from tunnelmux.proxy.workers.link import Link, Reply
from tunnelmux.proxy.workers.parent import WorkersParent
from tunnelmux.proxy.workers.seats import AgentDesk, Bound, Seat, SocketIODesk
from tunnelmux.proxy.workers.worker import Worker


class Unheard:
    async def answer(self, what: str, body: bytes) -> Reply:
        raise AssertionError(what, body)

    def hear(self, what: str, body: bytes, descriptors: object) -> None:
        raise AssertionError(what, body, descriptors)


class Bench:
    """Two workers that take agents, and a listener."""

    def __init__(self, kind: type[AgentDesk]) -> None:
        self.seats = [Seat("worker-1"), Seat("worker-2")]
        self._ends = []
        for seat in self.seats:
            ours, theirs = socket.socketpair()
            self._ends.append(theirs)
            seat.link, seat.takes_agents = Link(ours, Unheard()), True
        self.desk = kind(self.seats)

    async def listen(self, nursery: trio.Nursery) -> None:
        [self._listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(self.desk.accept_from, Bound([self._listener]), self._listener)

    async def connect(self) -> None:
        """Connect an agent, and wait until a worker got it."""
        before = self.given
        agent = socket.create_connection(self._listener.socket.getsockname())
        with agent, trio.fail_after(30):
            while self.given == before:  # noqa: ASYNC110
                await trio.sleep(0.001)

    @property
    def given(self) -> list[int]:
        return [seat.unseated for seat in self.seats]

    def close(self) -> None:
        self._listener.socket.close()
        for end in self._ends:
            end.close()
        for seat in self.seats:
            if seat.link is not None:
                seat.link._lose()


@pytest.mark.parametrize(
    ("kind", "shares"), [(AgentDesk, [2, 2]), (SocketIODesk, [4, 0])], ids=["tunnel", "socketio"]
)
async def test_who_gets_four_agents(kind: type[AgentDesk], shares: list[int]) -> None:
    bench = Bench(kind)
    async with trio.open_nursery() as nursery:
        await bench.listen(nursery)
        for _ in range(4):
            await bench.connect()
        assert bench.given == shares
        nursery.cancel_scope.cancel()
    bench.close()


async def test_one_worker_has_socketio_agents_until_it_ends() -> None:
    bench = Bench(SocketIODesk)
    first, second = bench.seats
    desk = bench.desk
    assert isinstance(desk, SocketIODesk)
    async with trio.open_nursery() as nursery:
        await bench.listen(nursery)
        await bench.connect()
        assert (desk.holder, bench.given) == ("worker-1", [1, 0])
        first.is_silent = True  # it may go on: its agents stay there
        assert (desk.holder, desk._choose()) == ("worker-1", None)
        assert first.link is not None
        first.link._lose()
        first.is_over()
        desk.note_change()
        await bench.connect()
        assert desk.holder == "worker-2"
        assert second.unseated == 1
        first.takes_agents = True  # it was started again
        assert desk.holder == "worker-2"
        nursery.cancel_scope.cancel()
    bench.close()


async def test_a_connection_that_ended_without_a_session_is_no_load() -> None:
    """Such as a load balancer's, which connects and closes."""
    parent = WorkersParent(2, ["unused"], history=1)
    bench = Bench(AgentDesk)
    ours, theirs = socket.socketpair()
    worker = Worker(theirs, "worker-1", "1")
    first, second = bench.seats
    told = trio.Event()

    class Heard(Unheard):
        def hear(self, what: str, body: bytes, descriptors: object) -> None:
            parent.hear(first, what, body)
            told.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Link(ours, Heard()).run)
        nursery.start_soon(worker.run)
        await bench.listen(nursery)
        await bench.connect()
        assert (first.load, second.load) == (1, 0)
        worker.tell_left()
        with trio.fail_after(30):
            await told.wait()
        assert (first.load, second.load) == (0, 0)
        nursery.cancel_scope.cancel()
    bench.close()
    theirs.close()


def test_none_has_them_while_none_runs() -> None:
    assert SocketIODesk([Seat("worker-1")]).holder == ""
