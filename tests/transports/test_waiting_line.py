"""Connections that find no place wait for one: who is next, and who waits in vain."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tunnelmux.http.fields import TrustedProxies
from tunnelmux.transports.admission import Admission, Place


class Door:
    """A listener with four places, two for an address; four can wait."""

    def __init__(
        self, stack: ExitStack, *, balancers: tuple[str, ...] = (), silence: float = 0.0
    ) -> None:
        self._stack = stack
        self.admission = Admission("tunnel")
        self.admission.configure(
            limit=4,
            per_address=2,
            exempt=TrustedProxies.parse(balancers),
            max_waiting=4,
            patience=5.0,
            silence=silence,
        )
        self.places: dict[str, Place] = {}
        """Of those that have got one, by peer, in the order in which they got it."""
        self.peers: dict[str, socket.socket] = {}

    def come(self, remote: str, *, speaks: bool = True) -> bool:
        """Whether the connection was taken."""
        theirs, ours = socket.socketpair()
        self.peers[remote] = self._stack.enter_context(theirs)
        self._stack.enter_context(ours)
        theirs.setblocking(False)
        return self.admission.enter_or_wait(ours, remote, partial(self._seated, remote, speaks))

    def _seated(self, remote: str, speaks: bool, place: Place) -> None:
        self.places[remote] = place
        if speaks:
            place.has_spoken()

    def fill(self) -> None:
        """Four of four addresses get the places."""
        for number in range(4):
            assert self.come(f"198.51.100.{number}:1")

    def was_reset(self, remote: str) -> bool:
        try:
            return self.peers[remote].recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def door() -> Iterator[Door]:
    with ExitStack() as stack:
        yield Door(stack)


async def test_what_finds_no_place_waits_and_gets_the_next_one(door: Door) -> None:
    door.fill()
    assert door.come("192.0.2.1:1")
    assert len(door.places) == 4
    assert door.admission.waiting == 1
    door.places["198.51.100.2:1"].leave()
    assert door.places["192.0.2.1:1"].is_held
    assert door.admission.waiting == 0


async def test_addresses_take_turns_and_of_each_the_oldest_is_first(door: Door) -> None:
    door.fill()
    for remote in ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1"):
        assert door.come(remote)
    for number in range(3):
        door.places[f"198.51.100.{number}:1"].leave()
    assert list(door.places)[4:] == ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2"]


async def test_one_address_has_half_of_the_line_and_one_too_many_is_not_taken(door: Door) -> None:
    door.fill()
    assert door.come("192.0.2.1:1") and door.come("192.0.2.1:2")
    assert not door.come("192.0.2.1:3")
    assert door.come("192.0.2.2:1") and door.come("192.0.2.3:1")
    assert not door.come("192.0.2.4:1")
    assert door.admission.refused == 2


async def test_an_address_with_its_full_share_waits_while_others_are_let_in(door: Door) -> None:
    assert door.come("192.0.2.1:1") and door.come("192.0.2.1:2")
    assert door.come("192.0.2.1:3")
    assert door.come("192.0.2.2:1")
    assert "192.0.2.1:3" not in door.places
    assert door.places["192.0.2.2:1"].is_held
    door.places["192.0.2.1:1"].leave()
    assert door.places["192.0.2.1:3"].is_held


async def test_the_first_of_an_address_need_not_wait_behind_one_that_has_most(door: Door) -> None:
    for remote in ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.3:1"):
        assert door.come(remote)
    assert door.come("192.0.2.4:1")
    assert not door.places["192.0.2.1:1"].is_held
    assert door.places["192.0.2.4:1"].is_held
    # Nor do those that wait get the place that it was given.
    assert len(door.admission) == 4


async def test_the_silent_give_way_to_those_that_wait(door: Door) -> None:
    door.fill()
    assert door.come("192.0.2.1:1")
    door.places["198.51.100.0:1"].leave()
    silent = door.places["192.0.2.1:1"]
    assert door.come("192.0.2.2:1", speaks=False)
    assert door.come("192.0.2.3:1")
    door.places["198.51.100.1:1"].leave()
    assert door.places["192.0.2.3:1"].is_held
    assert silent.is_held
    assert not door.places["192.0.2.2:1"].is_held


async def test_silence_is_granted_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    with ExitStack() as stack:
        door = Door(stack, silence=2.0)
        for number in range(4):
            assert door.come(f"198.51.100.{number}:1", speaks=False)
        await trio.sleep(1.9)
        assert door.come("192.0.2.1:1")
        assert (len(door.places), door.admission.waiting) == (4, 1)
        await trio.sleep(0.1)
        assert door.come("192.0.2.2:1")
        assert door.places["192.0.2.1:1"].is_held and door.places["192.0.2.2:1"].is_held
        assert door.admission.gave_way == 2


async def test_what_has_waited_too_long_is_reset(
    door: Door, autojump_clock: trio.testing.MockClock
) -> None:
    door.fill()
    assert door.come("192.0.2.1:1")
    await trio.sleep(3)
    assert door.come("192.0.2.2:1")
    await trio.sleep(2.1)
    with capture_logs() as logs:
        door.places["198.51.100.0:1"].leave()
    assert door.was_reset("192.0.2.1:1")
    assert door.places["192.0.2.2:1"].is_held
    assert [(line["reason"], line["address"]) for line in logs] == [
        ("waited-too-long", "192.0.2.1")
    ]


async def test_a_peer_that_has_left_gets_no_place(door: Door) -> None:
    door.fill()
    assert door.come("192.0.2.1:1") and door.come("192.0.2.2:1")
    door.peers["192.0.2.1:1"].close()
    door.places["198.51.100.0:1"].leave()
    assert "192.0.2.1:1" not in door.places
    assert door.places["192.0.2.2:1"].is_held
    assert len(door.admission) == 4


async def test_a_closed_listener_resets_those_that_wait(door: Door) -> None:
    door.fill()
    assert door.come("192.0.2.1:1")
    door.admission.turn_out_waiting()
    assert door.was_reset("192.0.2.1:1")
    door.places["198.51.100.0:1"].leave()
    assert len(door.admission) == 3


async def test_behind_a_load_balancer_each_connection_is_an_address_of_its_own() -> None:
    with ExitStack() as stack:
        door = Door(stack, balancers=("10.0.0.0/8",))
        for port in range(8):
            assert door.come(f"10.0.0.1:{port}")
        assert not door.come("10.0.0.1:8")
        assert (len(door.admission), door.admission.waiting) == (4, 4)


async def test_waiting_is_said_once_in_a_while(
    door: Door, autojump_clock: trio.testing.MockClock
) -> None:
    door.fill()
    with capture_logs() as logs:
        assert door.come("192.0.2.1:1") and door.come("192.0.2.2:1")
    assert [line["event"] for line in logs] == ["connections wait"]
    assert logs[0]["reason"] == "no-place" and logs[0]["limit"] == 4
