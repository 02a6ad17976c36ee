"""Connections that have said nothing yet cost no task, and go on with their first byte."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tunnelmux.transports.admission import Admission
from tunnelmux.transports.lobby import Lobby


class Door:
    """A lobby with its places; notes who went on, by number."""

    def __init__(self, lobby: Lobby) -> None:
        self.lobby = lobby
        self.admission = Admission("tunnel", limit=100, per_address=50)
        self.went_on: list[int] = []
        self.news = trio.Event()
        self.ours: list[socket.socket] = []

    def come(self, number: int) -> socket.socket:
        theirs, ours = socket.socketpair()
        self.ours.append(ours)
        place = self.admission.enter(f"192.0.2.1:{number}")
        assert place is not None
        theirs.setblocking(False)

        def go_on() -> None:
            self.went_on.append(number)
            self.news.set()
            self.news = trio.Event()

        self.lobby.enter(ours, place, go_on)
        return theirs


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with trio.open_nursery() as nursery:
        lobby = Lobby()
        nursery.start_soon(lobby.run)
        door = Door(lobby)
        yield door
        lobby.close()
    for ours in door.ours:
        ours.close()


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_who_speaks_goes_on_and_nothing_of_it_is_read(
    door: Door, mock_clock: trio.testing.MockClock
) -> None:
    peers = [door.come(number) for number in range(3)]
    peers[1].send(b"hello")
    while door.went_on != [1]:
        await door.news.wait()
    assert door.ours[1].recv(100) == b"hello"
    peers[2].close()  # an end is heard as well
    while door.went_on != [1, 2]:
        await door.news.wait()
    assert len(door.lobby) == 1
    for peer in peers:
        peer.close()


async def test_silence_costs_no_task_and_goes_on_after_half_a_second(
    door: Door, autojump_clock: trio.testing.MockClock
) -> None:
    await trio.testing.wait_all_tasks_blocked()
    before, began = tasks(), trio.current_time()
    peers = [door.come(number) for number in range(40)]
    await trio.testing.wait_all_tasks_blocked()
    assert tasks() == before
    while len(door.went_on) < 40:
        await door.news.wait()
    assert trio.current_time() - began == pytest.approx(0.5)
    assert door.went_on == list(range(40))
    for peer in peers:
        peer.close()


async def test_who_gives_way_is_cut_and_never_goes_on(
    door: Door, mock_clock: trio.testing.MockClock
) -> None:
    peers = [door.come(number) for number in range(60)]
    assert len(door.lobby) == 50
    assert [peer.recv(1) for peer in peers[:10]] == [b""] * 10
    peers[59].send(b"x")
    while door.went_on != [59]:
        await door.news.wait()
    for peer in peers:
        peer.close()


async def test_who_has_spoken_keeps_its_place_though_the_program_is_late(
    door: Door, mock_clock: trio.testing.MockClock
) -> None:
    """A fleet that dials at once comes faster than its first bytes are looked at."""
    peers = []
    for number in range(50):
        peers.append(door.come(number))
        if number % 2:
            peers[-1].send(b"hello")
    peers += [door.come(number) for number in range(50, 75)]
    assert [peer.recv(1) for peer in peers[:50:2]] == [b""] * 25  # who was silent gave way
    while len(door.went_on) < 25:
        await door.news.wait()
    assert door.went_on == list(range(1, 50, 2))
    assert door.admission.silent == 25
    for peer in peers:
        peer.close()


async def test_who_comes_and_gives_way_in_one_turn_ends_nothing(
    door: Door, mock_clock: trio.testing.MockClock
) -> None:
    await trio.testing.wait_all_tasks_blocked()
    peer = door.come(1)
    assert door.admission.make_room()
    await trio.testing.wait_all_tasks_blocked()
    assert peer.recv(1) == b""
    other = door.come(2)
    other.send(b"x")
    while door.went_on != [2]:
        await door.news.wait()
    for sock in (peer, other):
        sock.close()


async def test_at_its_end_it_cuts_who_is_there() -> None:
    async with trio.open_nursery() as nursery:
        door = Door(Lobby())
        nursery.start_soon(door.lobby.run)
        await trio.testing.wait_all_tasks_blocked()
        peer = door.come(1)
        door.lobby.close()
    assert (peer.recv(1), door.went_on, len(door.admission)) == (b"", [], 0)
    peer.close()
