"""Turns of connections at one loop: those of peers that cost much wait for each other, and for no
others.

One loop serves all connections. A turn that is bounded bounds how long others wait for it, but they
wait again in each turn of the loop: for every connection of a flood, some hundred times in one
log-in. So peers that cost much get one turn of the loop between them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

__all__ = ["Account", "Turns", "turns_of"]

_MUCH = 0.1
# Seconds of processor time that a peer has for nothing, as a log-in with a key exchange takes.

_FORGOTTEN = 1.0
# Seconds of this thread's processor time after which most of a cost is forgotten. A peer that takes
# more than a tenth of it for long costs much. By the clock on the wall, none would on a machine
# that has little time for this process.


class Account:
    """What one peer has cost lately: a person, a device, or an address before the log-in."""

    __slots__ = ("__weakref__", "_cost", "_when")

    def __init__(self) -> None:
        self._cost = 0.0
        self._when = 0.0

    def charge(self, seconds: float, now: float) -> None:
        """Add so much, and forget what is long ago."""
        self._cost = self.cost(now) + seconds
        self._when = now

    def cost(self, now: float) -> float:
        """Seconds of processor time that count now."""
        return self._cost * math.exp((self._when - now) / _FORGOTTEN)


class Member(Protocol):
    """A connection that waits for a turn."""

    @property
    def account(self) -> Account: ...

    @property
    def cost(self) -> float:
        """Seconds of processor time that it has taken."""

    def take_turn(self) -> None: ...


class Turns:
    """One for each loop. `clock` returns seconds of the thread's processor time."""

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.clock = clock
        self._call_soon = call_soon
        self._is_taken = False
        self._accounts: WeakValueDictionary[object, Account] = WeakValueDictionary()
        self._waiting: OrderedDict[Account, list[Member]] = OrderedDict()

    def account(self, peer: object) -> Account:
        """The account of this peer, which all its connections share while it has any."""
        account = self._accounts.get(peer)
        if account is None:
            account = self._accounts[peer] = Account()
        return account

    def cost_much(self, account: Account, now: float) -> bool:
        """Whether the connections of this account wait for turns."""
        return account.cost(now) > _MUCH

    def take_at_once(self) -> bool:
        """Whether there is a turn without waiting, which it is then: the first in a turn of the
        loop, where none waits. Who is alone is read without a pause by this."""
        if self._waiting or self._is_taken:
            return False
        self._is_taken = True
        self._call_soon(self._give_back)  # which is called before anything is read again
        return True

    def _give_back(self) -> None:
        self._is_taken = False

    def wait(self, member: Member) -> None:
        """Have `take_turn` called once, in a later turn of the loop."""
        if not self._waiting:
            self._call_soon(self._next)
        self._waiting.setdefault(member.account, []).append(member)

    def _next(self) -> None:
        account, members = self._waiting.popitem(last=False)
        # The one that took least first, so that a person's log-in gets past that person's flood.
        member = min(members, key=lambda one: one.cost)
        members.remove(member)
        if members:
            self._waiting[account] = members
        if self._waiting:
            self._call_soon(self._next)
        member.take_turn()


_all: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Those of this loop."""
    turns = _all.get(loop)
    if turns is None:
        turns = _all[loop] = Turns(partial(_call_soon, ref(loop)))
    return turns


def _call_soon(loop: ref[asyncio.AbstractEventLoop], call: Callable[[], None]) -> None:
    running = loop()
    assert running is not None  # it runs the caller
    running.call_soon(call)
