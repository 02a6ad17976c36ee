"""Addresses from which many log-ins failed get in slowly, and never not at all."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tunnelmux.config.gateway import GatewayLimits
from tunnelmux.gateway.app import Listener
from tunnelmux.gateway.failures import Failures
from tunnelmux.gateway.slow_lane import SlowLane
from tunnelmux.transports.admission import Admission


class Lane:
    """A lane with its places; notes who went on, and when."""

    def __init__(self) -> None:
        self.lane = SlowLane()
        self.admission = Admission("gateway", limit=100, per_address=64)
        self.went_on: list[tuple[float, str]] = []
        self.sockets: list[socket.socket] = []

    def come(self, address: str, name: str = "", program: str = "x") -> socket.socket:
        """One more client, which has sent something."""
        theirs, ours = socket.socketpair()
        self.sockets += theirs, ours
        theirs.send(f"SSH-2.0-{program}\r\n".encode())
        place = self.admission.enter(address)
        assert place is not None

        def go_on() -> None:
            place.leave()
            self.went_on.append((trio.current_time(), name or address))

        self.lane.enter(ours, place, go_on)
        return theirs


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    lane = Lane()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.lane.run)
        yield lane
        nursery.cancel_scope.cancel()
    assert len(lane.lane) == len(lane.admission) == 0
    for one in lane.sockets:
        one.close()


async def test_one_address_gets_ten_in_a_second_the_newest_first(
    lane: Lane, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    for number in range(30):
        lane.come("192.0.2.1", f"{number}")
    await trio.sleep(0.95)
    assert [name for _, name in lane.went_on] == [f"{29 - number}" for number in range(10)]
    # Who comes behind all of them does not wait for them.
    lane.come("192.0.2.1", "bob")
    await trio.sleep(0.1)
    assert lane.went_on[-1] == (pytest.approx(began + 1.0), "bob")
    await trio.sleep(10)
    assert len(lane.went_on) == 31


async def test_addresses_take_turns(lane: Lane, autojump_clock: trio.testing.MockClock) -> None:
    for _ in range(50):
        lane.come("192.0.2.1")
    for number in range(20):
        lane.come(f"198.51.100.{number}")
    await trio.sleep(1.049)
    counted = Counter(name for _, name in lane.went_on)
    assert sum(counted.values()) == 21  # of all, twenty in a second
    assert counted.pop("192.0.2.1") == 1
    assert set(counted.values()) == {1} and len(counted) == 20


async def test_an_address_that_has_none_waiting_does_not_begin_anew(
    lane: Lane, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(30):
        lane.come("192.0.2.1")
        while len(lane.lane):  # noqa: ASYNC110
            await trio.sleep(0.001)
    first, last = lane.went_on[0][0], lane.went_on[-1][0]
    assert last - first >= 29 * 0.1 - 1e-6


async def test_a_client_that_has_gone_takes_no_turn(
    lane: Lane, autojump_clock: trio.testing.MockClock
) -> None:
    lane.come("192.0.2.1", "first")
    for number in range(30):
        theirs = lane.come("192.0.2.1", f"gone {number}")
        theirs.close()
    await trio.sleep(0.15)
    assert [name for _, name in lane.went_on] == ["first"]
    assert len(lane.admission) == 0


async def test_the_oldest_gives_way_and_is_reset(
    lane: Lane, autojump_clock: trio.testing.MockClock
) -> None:
    clients = [lane.come("192.0.2.1", f"{number}") for number in range(70)]
    assert len(lane.lane) == len(lane.admission) == 32
    for client in clients[:38]:
        client.setblocking(False)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    await trio.sleep(10)
    assert {name for _, name in lane.went_on} == {f"{number}" for number in range(38, 70)}


@pytest.mark.parametrize("programs", [1, 3], ids=["one program", "a few"])
async def test_who_has_another_program_than_a_flood_does_not_wait_for_it(
    programs: int, lane: Lane, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    for number in range(300):
        lane.come("192.0.2.1", "flood", f"flood-{number % programs}")
        if number == 100:
            lane.come("192.0.2.1", "bob", "OpenSSH_9.2")
        await trio.sleep(0.001)
    came = [when - began for when, name in lane.went_on if name == "bob"]
    assert came and came[0] < 0.25
    assert len(lane.lane) <= 32


async def test_who_tells_a_new_program_each_time_gains_nothing(
    lane: Lane, autojump_clock: trio.testing.MockClock
) -> None:
    for number in range(200):
        lane.come("192.0.2.1", "flood", f"flood-{number}")
    lane.come("192.0.2.1", "bob", "OpenSSH_9.2")
    await trio.sleep(0.05)
    assert [name for _, name in lane.went_on] == ["bob"]
    await trio.sleep(0.4)
    lane.come("192.0.2.1", "ann", "OpenSSH_9.2")  # as ever: behind those that did not go on yet
    await trio.sleep(10)
    assert len(lane.went_on) == 33


async def test_the_gateway_has_those_wait_whose_log_ins_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures(3, 600.0)
    own: Any = SimpleNamespace(allow=[], trusted_proxies=[])
    gateway: Any = SimpleNamespace(
        config=SimpleNamespace(limits=GatewayLimits(), gateway=own), failures=failures
    )
    listener = Listener(gateway, None)
    begun: list[str] = []
    kept: list[socket.socket] = []

    def begin(sock: socket.socket, host: str, _place: Any) -> None:
        kept.append(sock)
        begun.append(host)

    listener._begin = begin  # type: ignore[method-assign]
    for _ in range(3):
        failures.count("192.0.2.1")

    listening = socket.create_server(("127.0.0.1", 0))
    kept.append(listening)

    def come(host: str) -> None:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        kept.append(theirs)
        theirs.send(b"SSH-2.0-x\r\n")
        ours.setblocking(False)
        listener._take(trio.socket.from_stdlib_socket(ours), host)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener._lobby.run)
        nursery.start_soon(listener._slow_lane.run)
        for _ in range(8):
            come("192.0.2.1")
            come("192.0.2.2")
        await trio.sleep(0.95)
        assert Counter(begun) == {"192.0.2.2": 8, "192.0.2.1": 8}
        nursery.cancel_scope.cancel()
    for one in kept:
        one.close()
