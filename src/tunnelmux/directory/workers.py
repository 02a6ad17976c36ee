"""A directory in the parent of a proxy's workers, asked over what connects parent and worker.

The parent holds one `PlaceBook`. Each worker asks by a message and gets one back; which worker asks
the parent knows by the connection, so that no message says it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from tunnelmux.directory.directory import Directory
from tunnelmux.directory.local import PlaceBook
from tunnelmux.directory.places import Beat, Claim, Heard, Held, Node, Place, Swept
from tunnelmux.errors import DirectoryAway, NodeNameTaken

__all__ = ["DirectoryDesk", "ExpectedDevices", "WorkersDirectory"]

ANSWER_TIMEOUT = 1.0
"""Seconds that the parent gets for an answer: visitors wait."""

_ARRIVAL = 0.5
# Seconds that a look-up waits for a device whose session is about to begin: less than the time for
# an answer. An agent whose handshake was answered needs a round trip more.

_BATCH = 500
# Sessions that are said again by one message: some 30 KB.


class _Claim(msgspec.Struct, frozen=True, tag="claim"):
    device: str
    instance: str
    least: int


class _Expect(msgspec.Struct, frozen=True, tag="expect"):
    device: str


class _Release(msgspec.Struct, frozen=True, tag="release"):
    device: str
    generation: int


class _Find(msgspec.Struct, frozen=True, tag="find"):
    device: str


class _Beat(msgspec.Struct, frozen=True, tag="beat"):
    me: Node
    heard: Heard


class _Republish(msgspec.Struct, frozen=True, tag="republish"):
    held: list[Held]
    is_all: bool


class _Sweep(msgspec.Struct, frozen=True, tag="sweep"):
    lost: str


class _Leave(msgspec.Struct, frozen=True, tag="leave"):
    pass


_Call = _Claim | _Expect | _Release | _Find | _Beat | _Republish | _Sweep | _Leave
_read_call = msgspec.msgpack.Decoder(_Call)
_NAME_TAKEN = b"\xc1"  # no MessagePack begins with this byte


class WorkersDirectory(Directory):
    """What one worker sees of its parent's book. *ask* carries a message to the parent and answers
    what that said; *news* waits until the parent said that there is something new to hear."""

    def __init__(
        self,
        ask: Callable[[bytes], Awaitable[bytes]],
        news: Callable[[], Awaitable[None]],
        *,
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self._ask_parent = ask
        self._news = news
        self._timeout = timeout

    async def claim(self, device: str, instance: str, least: int = 0) -> Claim:
        answer = await self._ask(_Claim(device, instance, least))
        return msgspec.msgpack.decode(answer, type=Claim)

    async def expect(self, device: str) -> None:
        await self._ask(_Expect(device))

    async def release(self, device: str, generation: int) -> bool:
        return msgspec.msgpack.decode(await self._ask(_Release(device, generation)), type=bool)

    async def find(self, device: str) -> list[Place]:
        return msgspec.msgpack.decode(await self._ask(_Find(device)), type=list[Place])

    async def beat(self, me: Node, heard: Heard) -> Beat:
        answer = await self._ask(_Beat(me, heard))
        if answer == _NAME_TAKEN:
            raise NodeNameTaken(me.name)
        return msgspec.msgpack.decode(answer, type=Beat)

    async def wait_news(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._news()

    async def republish(
        self, held: Sequence[Held], missed: Callable[[Sequence[str]], None] = lambda _devices: None
    ) -> None:
        for start in range(0, len(held), _BATCH):
            batch = list(held[start : start + _BATCH])
            try:
                answer = await self._ask(_Republish(batch, is_all=False))
            except DirectoryAway:
                missed([one.device for one in batch])
                raise
            missed(msgspec.msgpack.decode(answer, type=list[str]))
        await self._ask(_Republish([], is_all=True))

    async def sweep(self, lost: str = "") -> Swept:
        return msgspec.msgpack.decode(await self._ask(_Sweep(lost)), type=Swept)

    async def leave(self) -> None:
        await self._ask(_Leave())

    async def _ask(self, call: _Call) -> bytes:
        with trio.move_on_after(self._timeout):
            return await self._ask_parent(msgspec.msgpack.encode(call))
        raise DirectoryAway(f"the parent process gave no answer within {self._timeout:g} s")


class ExpectedDevices:
    """Devices whose sessions are about to begin at one of the workers."""

    def __init__(self) -> None:
        self._arrivals: dict[str, tuple[float, trio.Event]] = {}  # the oldest first

    def expect(self, device: str) -> None:
        """Its session begins within a moment, or it does not come to that."""
        now = trio.current_time()
        while self._arrivals:
            oldest, (until, _) = next(iter(self._arrivals.items()))
            if until > now and oldest != device:
                break
            self.arrived(oldest)
        self.arrived(device)
        self._arrivals[device] = now + _ARRIVAL, trio.Event()

    def arrived(self, device: str) -> None:
        """It is found from now on."""
        _, arrived = self._arrivals.pop(device, (0.0, None))
        if arrived is not None:
            arrived.set()

    async def wait(self, device: str) -> None:
        """Return when the device has come, or is not expected any more."""
        until, arrived = self._arrivals.get(device, (0.0, None))
        if arrived is not None:
            with trio.move_on_at(until):
                await arrived.wait()


class DirectoryDesk:
    """The parent's end of one worker's `WorkersDirectory`."""

    def __init__(
        self,
        book: PlaceBook,
        node: str,
        incarnation: str,
        expected: ExpectedDevices,
        find_elsewhere: Callable[[str], Awaitable[list[Place]]] | None = None,
    ) -> None:
        """All desks of one book share *expected*. *find_elsewhere* finds places of devices on nodes
        that do not use the book."""
        self._book = book
        self._node = node
        self._incarnation = incarnation
        self._expected = expected
        self._find_elsewhere = find_elsewhere

    async def answer(self, message: bytes) -> bytes:
        """What the worker is answered. Raises msgspec.DecodeError where it asks nonsense."""
        call = _read_call.decode(message)
        try:
            if isinstance(call, _Find):
                return msgspec.msgpack.encode(await self._find(call.device))
            return msgspec.msgpack.encode(self._do(call))
        except NodeNameTaken:
            return _NAME_TAKEN

    async def _find(self, device: str) -> list[Place]:
        found = self._book.find(device)
        if any(place.node != self._node for place in found):
            return found  # at once, also while other machines cannot be asked
        await self._expected.wait(device)
        found = self._book.find(device)
        if self._find_elsewhere is not None and not any(p.node != self._node for p in found):
            found += await self._find_elsewhere(device)
        return found

    def close(self) -> None:
        """The worker has ended: nothing of it is found from now on."""
        self._book.leave(self._node, self._incarnation)

    def _do(self, call: _Call) -> object:
        book, node, start = self._book, self._node, self._incarnation
        match call:
            case _Expect(device):
                self._expected.expect(device)
                return None
            case _Claim(device, instance, least):
                claim = book.claim(node, start, Held(device, instance, 0), least=least)
                self._expected.arrived(device)
                return claim
            case _Release(device, generation):
                return book.release(node, device, generation)
            case _Find():
                raise AssertionError  # it may have to wait: `_find`
            case _Beat(me, heard):
                return book.beat(me, heard)
            case _Republish(held, is_all):
                missed = book.republish(node, start, held)
                if is_all:
                    book.complete(node, start)
                return missed
            case _Sweep(lost):
                return book.sweep(lost)
            case _Leave():
                book.leave(node, start)
                return None
