"""Those who wait, in rounds: of each block of addresses one, then of each block the next."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NoReturn

import trio

from tunnelmux.config.networks import block_of, network_of

__all__ = ["Pace", "Rounds"]

_MOST_KNOWN = 10_000
# Addresses from which a caller has proven who they are; the one seen longest ago makes room.

_KNOWN_AT_ONCE = 4
# Connections of known addresses that go on between two turns of the scheduler, to one of others.


class Rounds:
    """Waiting calls, grouped by their addresses.

    Of all blocks (/24, IPv6: /48) in which one waits, each gets a turn, then each the next; so do
    the addresses of a block (IPv6: /64). So a call waits for one of each other block at most,
    however many wait there. What waits is bounded by the connections that the listener accepts.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, dict[str, deque[trio.Event]]] = {}
        self._count = 0

    def add(self, address: str) -> trio.Event:
        """One more that waits; the event tells that its turn has come."""
        called = trio.Event()
        networks = self._blocks.setdefault(block_of(address), {})
        networks.setdefault(network_of(address), deque()).append(called)
        self._count += 1
        return called

    def call_next(self) -> bool:
        """Tell the next one that its turn has come. False where none waits."""
        if not self._blocks:
            return False
        # Taken out, and put behind all others if more of it wait.
        block = next(iter(self._blocks))
        networks = self._blocks.pop(block)
        network = next(iter(networks))
        waiting = networks.pop(network)
        called = waiting.popleft()
        if waiting:
            networks[network] = waiting
        if networks:
            self._blocks[block] = networks
        self._count -= 1
        called.set()
        return True

    def remove(self, address: str, called: trio.Event) -> None:
        """One that `add` has returned waits no more, and was not called."""
        block, network = block_of(address), network_of(address)
        networks = self._blocks[block]
        networks[network].remove(called)
        if not networks[network]:
            del networks[network]
        if not networks:
            del self._blocks[block]
        self._count -= 1

    def __len__(self) -> int:
        return self._count


class Pace:
    """Lets strangers' connections go on one by one: one between two turns of the scheduler.

    All that is runnable gets a turn there before anything gets the next one. If what each of 2,000
    connections has sent could be handled at once, each step of any other would wait for all of
    them. Addresses from which a caller has proven who they are have their own rounds.
    """

    def __init__(self) -> None:
        self._strangers = Rounds()
        self._known = Rounds()
        self._addresses: OrderedDict[str, None] = OrderedDict()
        self._wanted = trio.Event()

    def note_known(self, address: str) -> None:
        """A caller at this address has proven who they are."""
        network = network_of(address)
        self._addresses[network] = None
        self._addresses.move_to_end(network)
        if len(self._addresses) > _MOST_KNOWN:
            self._addresses.popitem(last=False)

    async def wait(self, address: str) -> None:
        """Wait for the turn of one from this address. It is bounded: turns come as fast as the
        processor gives them."""
        rounds = self._known if network_of(address) in self._addresses else self._strangers
        called = rounds.add(address)
        self._wanted.set()
        try:
            await called.wait()
        finally:
            if not called.is_set():
                rounds.remove(address, called)

    async def run(self) -> NoReturn:
        """Call those that wait, for ever."""
        while True:
            await self._wanted.wait()
            for _ in range(_KNOWN_AT_ONCE):
                self._known.call_next()
            self._strangers.call_next()
            if not self._known and not self._strangers:
                self._wanted = trio.Event()
            await trio.lowlevel.checkpoint()

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)
