"""Turns of callers, so that one who makes many calls at once keeps no other waiting.

Calls are short, but most ask the registry, which does a few at a time, in order. Without turns, a
hundred calls of one caller would stand before each call of another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tunnelmux.api.problems import Refused
from tunnelmux.api.rounds import Rounds

__all__ = ["Changes", "KnownCallers", "StrangersTurn", "StrangersTurns", "Turn", "Turns"]

_PATIENCE = 30.0
# Seconds that a call waits for its turn: as long as browsers and programs wait for an answer.

_PERIOD = 60.0

_MOST_COUNTED = 10_000
# People whose changes are counted; the one counted first makes room.

_MOST_KNOWN = 10_000
# Credentials that were proven, as their digests; the one shown longest ago makes room.


class Turn:
    """One call's place. `give_back` it early where the call does nothing more but wait."""

    def __init__(self, turns: Turns, caller: str, places: trio.CapacityLimiter) -> None:
        self._turns = turns
        self._caller = caller
        self._places: trio.CapacityLimiter | None = places

    def give_back(self) -> None:
        """Have the next call of this caller go on. Harmless twice."""
        if self._places is not None:
            places, self._places = self._places, None
            places.release_on_behalf_of(self)
            self._turns.forget(self._caller, places)


class Turns:
    """Lets `limit` calls of each caller go on at once; others of the same caller wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._places: dict[str, trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, caller: str, most: int | None = None) -> AsyncIterator[Turn]:
        """A turn of this caller for the length of the block, unless it is given back before. `most`
        is another limit than that of all. Raises Refused where none comes in time.
        """
        limit = self._limit if most is None else most
        places = self._places.setdefault(caller, trio.CapacityLimiter(limit))
        turn = Turn(self, caller, places)
        try:
            with trio.fail_after(_PATIENCE):
                await places.acquire_on_behalf_of(turn)
        except trio.TooSlowError:
            message = (
                f"You make more than {limit} calls at once, and the server is slow: make fewer "
                "(limits.max_calls_per_person)."
            )
            headers = {"retry-after": "5"}
            raise Refused(429, "too_many_calls", message, headers=headers) from None
        finally:
            self.forget(caller, places)
        try:
            yield turn
        finally:
            turn.give_back()

    def forget(self, caller: str, places: trio.CapacityLimiter) -> None:
        """Drop what is kept of a caller that has no call any more."""
        now = places.statistics()
        if not now.borrowed_tokens and not now.tasks_waiting:
            self._places.pop(caller, None)

    def __len__(self) -> int:
        return len(self._places)


class KnownCallers:
    """Whose the credentials are that were proven here, by their digests: they need not wait behind
    strangers to be proven again."""

    def __init__(self) -> None:
        self._people: OrderedDict[bytes, str] = OrderedDict()

    def whose(self, digest: bytes) -> str | None:
        """The person whose it was when it was last shown; None where it was not known."""
        person = self._people.get(digest)
        if person is not None:
            self._people.move_to_end(digest)
        return person

    def note(self, digest: bytes, person: str | None) -> None:
        """Note whose a credential was now; None: it proved nothing."""
        if person is None:
            self._people.pop(digest, None)
            return
        self._people[digest] = person
        self._people.move_to_end(digest)
        if len(self._people) > _MOST_KNOWN:
            self._people.popitem(last=False)

    def __len__(self) -> int:
        return len(self._people)


class StrangersTurn:
    """The turn of one stranger. `give_back` it as soon as the next one may go on."""

    def __init__(self, turns: StrangersTurns) -> None:
        self._turns: StrangersTurns | None = turns

    def give_back(self) -> None:
        """Have the next one go on. Harmless twice."""
        if self._turns is not None:
            turns, self._turns = self._turns, None
            turns.give_back()


class StrangersTurns:
    """Lets `limit` callers who are not known go on at once; others wait in rounds. `message` is for
    one who has waited too long."""

    def __init__(self, limit: int, message: str) -> None:
        self._free = limit
        self._message = message
        self._rounds = Rounds()

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[StrangersTurn]:
        """A turn for the length of the block, unless it is given back before. Raises Refused where
        none comes in time."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(address)
        turn = StrangersTurn(self)
        try:
            yield turn
        finally:
            turn.give_back()

    async def _wait(self, address: str) -> None:
        called = self._rounds.add(address)
        try:
            with trio.fail_after(_PATIENCE):
                await called.wait()
        except BaseException as problem:
            if called.is_set():  # in the very moment in which it was cancelled
                self.give_back()
            else:
                self._rounds.remove(address, called)
            if not isinstance(problem, trio.TooSlowError):
                raise
            headers = {"retry-after": "5"}
            raise Refused(429, "too_many_calls", self._message, headers=headers) from None

    def give_back(self) -> None:
        """Call the next one; called by a turn that is over."""
        if not self._rounds.call_next():
            self._free += 1

    def __len__(self) -> int:
        return len(self._rounds)


class Changes:
    """Counts the changes of each person in a minute: each is written down for good."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counted: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, person: str) -> None:
        """One more change. Raises Refused for one too many."""
        now = trio.current_time()
        since, number = self._counted.get(person, (now, 0))
        if now - since >= _PERIOD:
            since, number = now, 0
        if number >= self._limit:
            message = (
                f"You made {self._limit} changes within a minute: wait a moment "
                "(limits.max_changes_per_minute)."
            )
            wait = {"retry-after": str(max(1, round(since + _PERIOD - now)))}
            raise Refused(429, "too_many_changes", message, headers=wait)
        self._counted[person] = since, number + 1
        self._counted.move_to_end(person)
        if len(self._counted) > _MOST_COUNTED:
            self._counted.popitem(last=False)
