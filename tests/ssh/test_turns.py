"""Peers that cost much take turns, and others wait for none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunnelmux.ssh.turns import Account, Turns


class Flood:
    """A connection that takes its turn whenever it may, and wants another."""

    def __init__(self, stage: Stage, name: str, peer: str) -> None:
        self.name = name
        self.cost = 0.0
        self.account = stage.turns.account(peer)
        self._stage = stage

    def take_turn(self) -> None:
        self._stage.taken.append(self.name)
        self.cost += 0.001
        self._stage.turns.wait(self)


class Stage:
    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], None]] = []
        self.taken: list[str] = []
        self.turns = Turns(self.calls.append, clock=lambda: self.now)

    def turn(self) -> None:
        """One turn of the loop."""
        calls, self.calls[:] = self.calls[:], []
        for call in calls:
            call()


def test_peers_take_turns_however_many_connections_they_have() -> None:
    stage = Stage()
    for name, peer in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
        stage.turns.wait(Flood(stage, name, peer))
    for number in range(1, 13):
        stage.turn()
        assert len(stage.taken) == number  # one in each turn of the loop
    assert stage.taken.count("b1") == 6
    assert [stage.taken.count(name) for name in ("a1", "a2", "a3")] == [2, 2, 2]


def test_a_new_connection_of_a_peer_goes_before_its_flood() -> None:
    stage = Stage()
    for name in ("old", "older"):
        flood = Flood(stage, name, "a")
        flood.cost = 1.0
        stage.turns.wait(flood)
    stage.turn()
    stage.turns.wait(Flood(stage, "new", "a"))
    stage.turn()
    assert stage.taken[1:] == ["new"]


def test_who_is_alone_takes_a_turn_at_once_and_others_wait() -> None:
    stage = Stage()
    assert stage.turns.take_at_once()
    assert not stage.turns.take_at_once()  # not twice in one turn of the loop
    stage.turn()
    assert stage.turns.take_at_once()
    stage.turns.wait(Flood(stage, "a1", "a"))
    stage.turn()
    assert not stage.turns.take_at_once()  # one waits, and goes first


def test_what_a_peer_costs_counts_for_all_its_connections_and_is_forgotten() -> None:
    stage = Stage()
    account = stage.turns.account("a")
    assert stage.turns.account("a") is account
    account.charge(0.09, stage.now)
    assert not stage.turns.cost_much(account, stage.now)
    account.charge(0.02, stage.now)
    assert stage.turns.cost_much(account, stage.now)
    stage.now += 0.2
    assert not stage.turns.cost_much(account, stage.now)


def test_half_of_the_time_is_much_and_a_twentieth_is_not() -> None:
    def costs_much(share: float) -> bool:
        stage, account = Stage(), Account()
        for _ in range(1000):
            stage.now += 0.01
            account.charge(0.01 * share, stage.now)
        return stage.turns.cost_much(account, stage.now)

    assert costs_much(0.5)
    assert not costs_much(0.05)


def test_the_account_of_a_peer_that_has_gone_is_forgotten() -> None:
    stage = Stage()
    stage.turns.account("a").charge(1.0, 0.0)
    assert stage.turns.account("a").cost(0.0) == pytest.approx(0.0)
