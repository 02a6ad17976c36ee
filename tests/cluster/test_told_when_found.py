"""When the other nodes are told that a device has connected."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from support.far_directory import FarDirectory, Network
from tunnelmux.directory import LEASE, Claim, LocalDirectory, Node, PlaceBook
from tunnelmux.directory.event_stream import EventStream
from tunnelmux.directory.membership import Membership
from tunnelmux.proxy.cluster.events import ToldWhenFound, lost_event
from tunnelmux.sessions import SessionEvent
from tunnelmux.sessions.handle import utc_now


class Member:
    """A node whose events, like those of a sweep, are noted in `told`: kind, device and node."""

    def __init__(self, book: PlaceBook, network: Network, name: str, told: list[str]) -> None:
        near = LocalDirectory(book, name, "1")
        self.name = name
        self.members = Membership[str](
            FarDirectory(near, network, name),
            Node(name=name, incarnation="1"),
            lambda _session, _node: None,
            lost=lost_event,
        )
        stream = EventStream(10, lambda _epoch, _last: None, lambda _number, _text: None)
        stream.publish = told.append  # type: ignore[method-assign]
        self.told = ToldWhenFound(stream)
        self.told.follow(self.members)

    def event(self, kind: str, device: str = "dev1") -> None:
        event = SessionEvent(
            seq=0,
            type=kind,  # type: ignore[arg-type]
            time=utc_now(),
            token_prefix="abc",
            device_id=device,
            user_id="",
            remote_addr="",
            proxy_node_id=self.name,
        )
        self.told.record(event)

    def connect(self, device: str = "dev1", instance: str = "i1") -> None:
        self.event("connected", device)
        self.members.arrived(device, instance, device)

    def lose(self, device: str = "dev1") -> None:
        self.members.left(device, device)
        self.event("lost", device)


def kinds(told: list[str]) -> list[tuple[str, str, str]]:
    events = [msgspec.json.decode(text, type=SessionEvent) for text in told]
    return [(event.type, event.device_id, event.proxy_node_id) for event in events]


async def test_a_device_is_told_connected_when_it_is_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[str] = []
    book, network = PlaceBook(), Network(slowest=0.4)
    async with trio.open_nursery() as nursery:
        a = Member(book, network, "a", told)
        await nursery.start(a.members.run)
        a.connect()
        while not book.find("dev1"):
            assert told == []
            await trio.sleep(0.01)
        await trio.sleep(1)
        assert kinds(told) == [("connected", "dev1", "a")]
        # What happens on this node meanwhile keeps its order.
        a.connect("dev2")
        a.event("replaced", "dev2")
        a.lose("dev2")
        assert kinds(told)[1:] == [(k, "dev2", "a") for k in ("connected", "replaced", "lost")]
        a.event("replaced")  # it is found already
        assert kinds(told)[4:] == [("replaced", "dev1", "a")]
        nursery.cancel_scope.cancel()


async def test_nothing_waits_for_a_directory_that_is_away_or_was_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[str] = []
    network = Network()
    async with trio.open_nursery() as nursery:
        a = Member(PlaceBook(), network, "a", told)
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await a.members.run(task_status)

        await nursery.start(run)
        await trio.sleep(3)
        network.cut = {"a"}
        a.connect("dev1")
        assert told == []
        await trio.sleep(5)
        assert kinds(told) == [("connected", "dev1", "a")]
        a.connect("dev2")
        assert kinds(told)[1:] == [("connected", "dev2", "a")]
        network.cut = set()
        await trio.sleep(5)
        network.slowest = 1.5
        a.connect("dev3")
        assert len(told) == 2
        scope.cancel()
        await trio.sleep(3)
        a.connect("dev4")
        assert [device for _, device, _ in kinds(told)[2:]] == ["dev3", "dev4"]


async def test_no_device_is_told_lost_after_it_connected_elsewhere(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so while the sweep for its dead node runs, and its claim is slow."""
    told: list[str] = []
    book, network = PlaceBook(on_lost=told.append), Network()
    claim, may_claim = LocalDirectory.claim, trio.Event()

    async def slowly(self: LocalDirectory, device: str, instance: str, least: int = 0) -> Claim:
        if self._node == "b":
            await may_claim.wait()
        return await claim(self, device, instance, least)

    async with trio.open_nursery() as nursery:
        a, b, c = [Member(book, network, name, told) for name in "abc"]
        for member in (a, b, c):
            await nursery.start(member.members.run)
        c.connect()
        await trio.sleep(3)
        monkeypatch.setattr(LocalDirectory, "claim", slowly)
        monkeypatch.setattr("support.far_directory.ANSWER_TIMEOUT", 60)
        network.cut = {"c"}
        with trio.fail_after(LEASE + 5):
            while "c" in a.members.nodes:
                await a.members.wait_change(trio.current_time() + 1)
        b.connect()
        await trio.sleep(5)
        may_claim.set()
        await trio.sleep(1)
        assert [place.node for place in book.find("dev1")] == ["b"]
        assert kinds(told) == [
            ("connected", "dev1", "c"),
            ("lost", "dev1", "c"),
            ("connected", "dev1", "b"),
        ]
        nursery.cancel_scope.cancel()
