"""What becomes of a visitor who was passed to another worker, when that one does not take him."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tunnelmux.config import HttpIngress
from tunnelmux.errors import ConnectError
from tunnelmux.limits import IngressLimits
from tunnelmux.proxy.tunnels.devices import DeviceRegister
from tunnelmux.proxy.visitors.elsewhere import WayThere
from tunnelmux.proxy.visitors.figures import VisitorFigures
from tunnelmux.proxy.visitors.ingress_http import HttpIngressServer
from tunnelmux.proxy.workers.hand_over import MOST_UNTAKEN, HandOver
from tunnelmux.pump.data_pump import DataPump, open_pump
from tunnelmux.pump.epoll import Pump
from tunnelmux.pump.passing import Passage
from tunnelmux.pump.sockets import Acceptor, BareSocket
from tunnelmux.sessions import MemoryStore
from tunnelmux.transports.tcp import python_socket


class Places:
    """Where devices are: dev2 at the other worker, once that was asked."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {"dev1": ""}

    def elsewhere(self, device: str) -> str | None:
        return self.known.get(device)

    async def look_for(self, device: str) -> None:
        await trio.lowlevel.checkpoint()
        if device == "dev2":
            self.known[device] = "worker-2"
        if device == "dev3":
            self.known[device] = "another-machine"


@dataclass
class Told:
    news: int = 0

    def on_news(self) -> None:
        self.news += 1


@dataclass
class Stage:
    """A worker that passes visitors on, and the other end of its way."""

    pump: DataPump
    served: list[tuple[str, BareSocket, str]] = field(default_factory=list)
    figures: VisitorFigures = field(default_factory=VisitorFigures)
    others: list[socket.socket] = field(default_factory=list)
    is_reached: bool = True

    def __post_init__(self) -> None:
        self.hand_over = HandOver(
            Places(),  # type: ignore[arg-type]
            self.pump,
            self.figures,
            others=["worker-2"],
            reach=self._reach,
            serve=lambda slot, local, remote: self.served.append((slot, local, remote)),
            listens=lambda slot: slot == "http",
        )

    async def _reach(self, node: str) -> socket.socket:
        assert node == "worker-2"
        if not self.is_reached:
            raise ConnectError("it does not run")
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.others.append(theirs)
        return ours

    async def way(self) -> socket.socket:
        """Have a way to worker-2; the other end of it."""
        await self.hand_over.find_way("dev2")
        return self.others[-1]

    @property
    def found(self) -> WayThere:
        """The way to worker-2, once `way` has found it."""
        way = self.hand_over.way_to("dev2")
        assert not isinstance(way, str)
        return way

    def passes(self, local: BareSocket, number: int = 1) -> bool:
        return self.found.pass_on("http", local, f"192.0.2.1:{number}")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with open_pump() as pump:
        assert pump is not None
        made = Stage(pump)
        yield made
        for other in made.others:
            other.close()


@pytest.fixture
def visitor() -> Iterator[Callable[[], tuple[socket.socket, BareSocket]]]:
    """Makes visitors, and the connections that were accepted for them."""
    made: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        acceptor = Acceptor(Pump(), listener.fileno(), Told())

        def make() -> tuple[socket.socket, BareSocket]:
            one = socket.create_connection(listener.getsockname())
            one.setblocking(False)
            made.append(one)
            [(local, _)] = acceptor.accept(1)
            return one, local

        yield make
        acceptor.stop()
    for one in made:
        one.close()


Visitors = Callable[[], tuple[socket.socket, BareSocket]]


async def settle() -> None:
    for _ in range(3):
        await wait_all_tasks_blocked(0.01)


async def test_one_that_is_taken_is_closed_here(stage: Stage, visitor: Visitors) -> None:
    other = await stage.way()
    _, local = visitor()
    assert stage.passes(local)
    assert local.fileno() >= 0  # until the other has it
    message, descriptors, _, _ = socket.recv_fds(other, 100, 4)
    assert message == b"http\x00192.0.2.1:1"
    other.send(b"\x01")
    await settle()
    assert local.fileno() == -1
    assert stage.served == []
    for descriptor in descriptors:
        os.close(descriptor)


async def test_one_whose_taker_refuses_or_dies_is_served_here(
    stage: Stage, visitor: Visitors
) -> None:
    other = await stage.way()
    _, refused = visitor()
    taken, left = visitor()[1], visitor()[1]
    for number, local in enumerate((refused, taken, left)):
        assert stage.passes(local, number)
    other.send(b"\x00\x01")  # and then it ends, with what it never read
    other.close()
    await settle()
    assert [(slot, remote) for slot, _, remote in stage.served] == [
        ("http", "192.0.2.1:0"),
        ("http", "192.0.2.1:2"),
    ]
    assert taken.fileno() == -1
    assert refused.fileno() >= 0
    # The next visitor finds a new way.
    assert stage.hand_over.way_to("dev2") == "unknown"
    await stage.way()
    assert stage.passes(visitor()[1])


async def test_one_that_ends_before_it_could_be_passed_is_served_here(
    stage: Stage, visitor: Visitors
) -> None:
    other = await stage.way()
    other.close()
    _, local = visitor()
    assert not stage.passes(local)
    assert local.fileno() >= 0


async def test_those_who_came_together_are_passed_in_one_message(
    stage: Stage, visitor: Visitors
) -> None:
    other = await stage.way()
    way = stage.found
    for number in range(MOST_UNTAKEN):
        assert way.pass_soon("http", visitor()[1], f"192.0.2.1:{number}")
    assert not way.pass_soon("http", visitor()[1], "192.0.2.1:99")
    way.pass_waiting()
    passed = []
    for _ in range(2):
        message, descriptors, _, _ = socket.recv_fds(other, 4096, 100)
        for descriptor in descriptors:
            os.close(descriptor)
        lines = message.decode().split("\n")
        assert len(descriptors) == len(lines) == MOST_UNTAKEN // 2
        passed += lines
    assert passed == [f"http\x00192.0.2.1:{number}" for number in range(MOST_UNTAKEN)]
    assert stage.figures.passed_on == MOST_UNTAKEN
    other.send(b"\x01" * MOST_UNTAKEN)
    await settle()
    assert stage.passes(visitor()[1])


async def test_those_who_wait_to_be_passed_are_served_here_when_the_other_ends(
    stage: Stage, visitor: Visitors
) -> None:
    other = await stage.way()
    way = stage.found
    for number in range(2):
        assert way.pass_soon("http", visitor()[1], f"192.0.2.1:{number}")
    other.close()
    way.pass_waiting()
    assert [remote for _, _, remote in stage.served] == ["192.0.2.1:0", "192.0.2.1:1"]
    assert all(local.fileno() >= 0 for _, local, _ in stage.served)
    assert stage.figures.passed_on == 0
    # A way that was kept from before leads nowhere, and says so.
    assert not way.pass_soon("http", visitor()[1], "192.0.2.1:2")
    assert not way.pass_on("http", visitor()[1], "192.0.2.1:3")


async def test_no_more_are_passed_than_are_taken(stage: Stage, visitor: Visitors) -> None:
    other = await stage.way()
    for number in range(MOST_UNTAKEN):
        assert stage.passes(visitor()[1], number)
    assert not stage.passes(visitor()[1])
    other.send(b"\x01")
    await settle()
    assert stage.passes(visitor()[1])


async def test_a_worker_that_is_full_still_passes_on_what_is_not_its_own(
    stage: Stage, visitor: Visitors
) -> None:
    ingress = HttpIngressServer(MemoryStore(), DeviceRegister())
    ingress.configure(HttpIngress(listen="127.0.0.1:0"), IngressLimits(max_visitors=0))
    ingress.hand_over_by(stage.hand_over)
    other = await stage.way()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingress.run_direct, stage.pump)
        await settle()
        for device, is_passed in (("dev2", True), ("dev1", False)):
            one, local = visitor()
            one.sendall(f"GET / HTTP/1.1\r\nHost: {device}.localhost\r\n\r\n".encode())
            assert ingress.take(nursery, local, "192.0.2.1:1") is is_passed
        ingress.after_batch()
        assert ingress.visitor_count == 0
        nursery.cancel_scope.cancel()
    message, [descriptor], _, _ = socket.recv_fds(other, 100, 4)
    assert message == b"http\x00192.0.2.1:1"
    with socket.socket(fileno=descriptor) as passed:
        assert passed.recv(100).startswith(b"GET / HTTP/1.1\r\nHost: dev2.")


async def test_one_that_is_not_taken_in_time_is_reset(
    stage: Stage, visitor: Visitors, autojump_clock: trio.testing.MockClock
) -> None:
    other = await stage.way()
    one, local = visitor()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.hand_over.run)
        assert stage.passes(local)
        await trio.sleep(9)
        with pytest.raises(BlockingIOError):
            one.recv(1)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert one.recv(1) == b""
    other.send(b"\x00")  # it wakes up
    await settle()
    assert stage.served == []


async def test_one_is_served_here_where_the_other_cannot_be_reached(
    stage: Stage, visitor: Visitors
) -> None:
    stage.is_reached = False
    async with trio.open_nursery() as nursery:
        for device in ("dev2", "unknown"):
            assert stage.hand_over.pass_later(nursery, device, "http", visitor()[1], device)
    assert sorted(remote for _, _, remote in stage.served) == ["dev2", "unknown"]
    assert stage.hand_over.way_to("dev1") == "here"


async def test_a_device_of_another_machine_is_reached_from_here(stage: Stage) -> None:
    await stage.hand_over.find_way("dev3")
    assert stage.hand_over.way_to("dev3") == "here"
    assert stage.others == []


async def test_taking_is_said_before_anybody_is_served(stage: Stage, visitor: Visitors) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    stage.hand_over.take_from(theirs, "worker-2")
    core = Pump()
    sender = Passage(core, ours, Told())
    for slot in ("http", "tcp 127.0.0.1:1", "http"):
        assert sender.send(f"{slot}\x00192.0.2.1:1".encode(), [visitor()[1]])
    # Of two in one message, the second one's descriptor found no room.
    assert sender.send(b"http\x00192.0.2.1:2\nhttp\x00192.0.2.1:3", [visitor()[1]])
    await settle()
    received = sender.receive(10)
    assert received is not None
    assert b"".join(message for message, _ in received) == b"\x01\x00\x01\x01\x00"
    assert [slot for slot, _, _ in stage.served] == ["http", "http", "http"]
    assert stage.figures.taken_over == 3
    for _, local, _ in stage.served:
        python_socket(local).close()
    sender.stop()
    ours.close()
    await settle()
    assert theirs.fileno() == -1
