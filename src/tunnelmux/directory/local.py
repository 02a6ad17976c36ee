"""A directory in this process, and the rules that every directory follows."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from tunnelmux.directory.directory import Directory
from tunnelmux.directory.places import (
    LEASE,
    MOST_PLACES,
    Beat,
    Claim,
    Heard,
    Held,
    Node,
    Place,
)
from tunnelmux.errors import NodeNameTaken

__all__ = ["LocalDirectory", "PlaceBook"]

_MOST_MESSAGES = 10_000
# Superseded sessions kept for one node. A node with more publishes all it has when it is back.


@dataclass(slots=True)
class _Live:
    """What the directory knows of a live node."""

    record: Node
    until: float
    inbox: deque[tuple[int, str, int]] = field(default_factory=lambda: deque(maxlen=_MOST_MESSAGES))
    is_complete: bool = False
    """Whether it has published all its sessions."""
    is_hidden: bool = False


class PlaceBook:
    """The places of all devices and the nodes they are on; shared by all nodes.

    *clock* gives seconds since a fixed moment. A node is dead after *lease* seconds without a beat;
    with `math.inf`, when it leaves, and not before. A device has at most *most_places*. *on_news*
    is called with the name of a node whose next beat has something new to tell, *on_change* with a
    device whose places may have changed. Nothing here waits.
    """

    def __init__(
        self,
        clock: Callable[[], float] = trio.current_time,
        *,
        lease: float = LEASE,
        most_places: int = MOST_PLACES,
        on_news: Callable[[str], None] = lambda _node: None,
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        self._clock = clock
        self._lease = lease
        self._most_places = most_places
        self._on_news = on_news
        self._on_change = on_change
        self._others: dict[str, Node] = {}
        self._places: dict[str, list[Place]] = {}
        self._live: dict[str, _Live] = {}
        self._numbers = itertools.count(1)
        self._nodes_changed = 0

    def claim(
        self, node: str, incarnation: str, held: Held, *, least: int = 0, is_new: bool = True
    ) -> Claim | None:
        """Enter a session, with a new generation or with the one it has. None when there is a newer
        session of another instance.
        """
        old = self._places.get(held.device, [])
        generation = held.generation
        if is_new:
            newest = max((place.generation for place in old), default=0)
            generation = max(int(self._clock() * 1000), newest + 1, least + 1)
        elif any(p.generation > generation and p.instance != held.instance for p in old):
            if node in self._live:
                self._tell(node, held.device, generation)
            return None
        kept: list[Place] = []
        gone: list[Place] = []
        for place in old:
            stays = place.node != node and place.instance == held.instance
            (kept if stays else gone).append(place)
        kept.append(Place(node, incarnation, generation, held.instance))
        kept.sort(key=lambda place: -place.generation)
        gone += kept[self._most_places :]
        self._places[held.device] = kept[: self._most_places]
        for place in gone:
            if place.node != node and self._is_live(place):
                self._tell(place.node, held.device, place.generation)
        self._note_change(held.device)
        return Claim(generation, gone)

    def release(self, node: str, device: str, generation: int) -> bool:
        """Remove the node's session, if it has that generation."""
        old = self._places.get(device, [])
        kept = [p for p in old if (p.node, p.generation) != (node, generation)]
        self._put(device, kept)
        self._note_change(device)
        return len(kept) < len(old)

    def supersede(self, device: str) -> None:
        """The device has a newer session on a node that does not use this book."""
        for place in filter(self._is_live, self._places.get(device, ())):
            self._tell(place.node, device, place.generation)
        self._put(device, [])

    def take_others(self, nodes: Mapping[str, Node]) -> None:
        """Have beats tell of these nodes as well. They do not use this book."""
        if self._others != nodes:
            self._others = dict(nodes)
            self._tell_of_nodes()

    @property
    def nodes(self) -> list[Node]:
        """The live nodes that use this book."""
        return [node.record for node in self._live.values()]

    @property
    def devices(self) -> list[str]:
        """The devices with a place."""
        return list(self._places)

    def find(self, device: str) -> list[Place]:
        """The places on live nodes that are not hidden, newest first."""
        places = self._places.get(device, ())
        return [p for p in places if self._is_live(p) and not self._live[p.node].is_hidden]

    def beat(self, me: Node, heard: Heard) -> Beat:
        """Record that the node lives; raises NodeNameTaken."""
        now = self._clock()
        known = self._live.get(me.name)
        if known is not None and known.record.incarnation > me.incarnation:
            raise NodeNameTaken(me.name)
        if known is None or known.record.incarnation != me.incarnation:
            known = self._live[me.name] = _Live(me, now)
            self._tell_of_nodes()
        elif known.record != me:
            known.record = me
            self._tell_of_nodes()
        known.until = now + self._lease
        for node in self._live.values():  # of a clock that was set back
            node.until = min(node.until, known.until)
        for name in [name for name, node in self._live.items() if node.until <= now]:
            self._forget(name)
        seen = int(heard.message or 0)
        while known.inbox and known.inbox[0][0] <= seen:
            known.inbox.popleft()
        version = str(self._nodes_changed)
        shown = {name: node.record for name, node in self._live.items() if not node.is_hidden}
        nodes = self._others | shown
        return Beat(
            heard=Heard(str(known.inbox[-1][0]) if known.inbox else heard.message, version),
            superseded=[(device, generation) for _, device, generation in known.inbox],
            nodes=nodes if version != heard.nodes else None,
            resync=not known.is_complete,
        )

    def complete(self, node: str, incarnation: str) -> None:
        """Record that the node has published all its sessions."""
        known = self._live.get(node)
        if known is not None and known.record.incarnation == incarnation:
            known.is_complete = True

    def sweep(self) -> int:
        """Remove the places on dead nodes; returns how many."""
        count = 0
        for device, places in list(self._places.items()):
            kept = [place for place in places if self._is_live(place)]
            count += len(places) - len(kept)
            self._put(device, kept)
        return count

    def leave(self, node: str, incarnation: str) -> None:
        """The node has ended."""
        known = self._live.get(node)
        if known is not None and known.record.incarnation == incarnation:
            self._forget(node)

    def hide(self, node: str, *, is_hidden: bool) -> None:
        """Whether others are to do without this node and its places, which it keeps."""
        known = self._live.get(node)
        if known is not None and known.is_hidden != is_hidden:
            known.is_hidden = is_hidden
            self._tell_of_change(node)

    def _is_live(self, place: Place) -> bool:
        # A node is dead once a beat of another node has found it so; a reader's clock does not
        # count.
        node = self._live.get(place.node)
        return node is not None and node.record.incarnation == place.incarnation

    def _tell(self, node: str, device: str, generation: int) -> None:
        self._live[node].inbox.append((next(self._numbers), device, generation))
        self._on_news(node)

    def _tell_of_nodes(self) -> None:
        self._nodes_changed += 1
        for name in self._live:
            self._on_news(name)

    def _put(self, device: str, places: list[Place]) -> None:
        if places:
            self._places[device] = places
        else:
            self._places.pop(device, None)

    def _forget(self, name: str) -> None:
        del self._live[name]
        self._tell_of_change(name)

    def _tell_of_change(self, name: str) -> None:
        self._tell_of_nodes()
        if self._on_change is not None:
            for device, places in list(self._places.items()):
                if any(place.node == name for place in places):
                    self._on_change(device)

    def _note_change(self, device: str) -> None:
        if self._on_change is not None:
            self._on_change(device)


class LocalDirectory(Directory):
    """One node's view of a `PlaceBook` in its own process. It never raises DirectoryAway."""

    def __init__(self, book: PlaceBook, node: str, incarnation: str) -> None:
        self._book = book
        self._node = node
        self._incarnation = incarnation

    async def claim(self, device: str, instance: str, least: int = 0) -> Claim:
        await trio.lowlevel.checkpoint()
        held = Held(device, instance, 0)
        claim = self._book.claim(self._node, self._incarnation, held, least=least)
        assert claim is not None  # a new one is the newest
        return claim

    async def release(self, device: str, generation: int) -> bool:
        await trio.lowlevel.checkpoint()
        return self._book.release(self._node, device, generation)

    async def find(self, device: str) -> list[Place]:
        await trio.lowlevel.checkpoint()
        return self._book.find(device)

    async def beat(self, me: Node, heard: Heard) -> Beat:
        await trio.lowlevel.checkpoint()
        return self._book.beat(me, heard)

    async def republish(self, held: Sequence[Held]) -> None:
        await trio.lowlevel.checkpoint()
        for one in held:
            self._book.claim(self._node, self._incarnation, one, is_new=False)
        self._book.complete(self._node, self._incarnation)

    async def sweep(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._book.sweep()

    async def leave(self) -> None:
        await trio.lowlevel.checkpoint()
        self._book.leave(self._node, self._incarnation)
