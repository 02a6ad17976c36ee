"""A directory behind a network that is slow, loses messages, and is cut now and then; and a server
that does one thing at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import trio

from tunnelmux.directory import Beat, Claim, Directory, Heard, Held, Node, Place, Swept
from tunnelmux.errors import DirectoryAway

__all__ = ["ANSWER_TIMEOUT", "FarDirectory", "Network"]

ANSWER_TIMEOUT = 1.0
"""Seconds for an answer, as RedisDirectory has it."""

CONNECTIONS = 16
"""Calls of one node at once, as the client of Redis has it."""


class Network:
    """What lies between the nodes and their directory. A message takes `slowest` seconds at most;
    of all, the share `loss` is lost, and so is each of a node in `cut`."""

    def __init__(self, seed: int = 1, *, loss: float = 0.0, slowest: float = 0.0) -> None:
        self._random = random.Random(seed)
        self.loss = loss
        self.slowest = slowest
        self.cut: set[str] = set()

    async def pass_one(self, node: str) -> None:
        """One message goes through, or is lost."""
        await trio.sleep(self._random.uniform(0, self.slowest))
        if node in self.cut or self._random.random() < self.loss:
            await trio.sleep_forever()

    async def serve(self, call: str, answer: object) -> None:
        """The directory's own time for this call, of this answer: none."""


class FarDirectory(Directory):
    """The directory as the node of that name reaches it: what is asked may be done, and not be
    answered."""

    def __init__(self, near: Directory, network: Network, node: str) -> None:
        self._near = near
        self._network = network
        self._node = node
        self._room = trio.Semaphore(CONNECTIONS)

    async def _ask(self, name: str, *arguments: Any) -> Any:
        with trio.move_on_after(ANSWER_TIMEOUT):
            async with self._room:
                await self._network.pass_one(self._node)
                answer = await getattr(self._near, name)(*arguments)
                await self._network.serve(name, answer)
                await self._network.pass_one(self._node)
                return answer
        raise DirectoryAway("no answer came")

    async def claim(self, device: str, instance: str, least: int = 0) -> Claim:
        return await self._ask("claim", device, instance, least)  # type: ignore[no-any-return]

    async def release(self, device: str, generation: int) -> bool:
        return await self._ask("release", device, generation)  # type: ignore[no-any-return]

    async def find(self, device: str) -> list[Place]:
        return await self._ask("find", device)  # type: ignore[no-any-return]

    async def beat(self, me: Node, heard: Heard) -> Beat:
        return await self._ask("beat", me, heard)  # type: ignore[no-any-return]

    async def republish(
        self, held: Sequence[Held], missed: Callable[[Sequence[str]], None] = lambda _devices: None
    ) -> None:
        await self._ask("republish", held, missed)

    async def sweep(self, lost: str = "") -> Swept:
        return await self._ask("sweep", lost)  # type: ignore[no-any-return]

    async def leave(self) -> None:
        await self._ask("leave")
