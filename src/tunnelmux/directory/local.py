"""A directory in this process, and the rules that every directory follows."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from tunnelmux.directory.directory import Directory
from tunnelmux.directory.places import (
    DIED_JUST_NOW,
    LEASE,
    MOST_DIED,
    MOST_PLACES,
    Beat,
    Claim,
    Died,
    Heard,
    Held,
    Node,
    Place,
    Swept,
)
from tunnelmux.errors import NodeNameTaken

__all__ = ["LocalDirectory", "PlaceBook"]

_MOST_MESSAGES = 10_000
# Superseded sessions kept for one node. A node with more publishes all it has when it is back.


@dataclass(slots=True)
class _Live:
    """What the directory knows of a live node."""

    record: Node
    heard: float
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
    device whose places may have changed, *on_lost* with the event of a device that a sweep found
    lost. Nothing here waits.
    """

    def __init__(
        self,
        clock: Callable[[], float] = trio.current_time,
        *,
        lease: float = LEASE,
        most_places: int = MOST_PLACES,
        on_news: Callable[[str], None] = lambda _node: None,
        on_change: Callable[[str], None] | None = None,
        on_lost: Callable[[str], None] = lambda _event: None,
    ) -> None:
        self._clock = clock
        self._lease = lease
        self._most_places = most_places
        self._on_news = on_news
        self._on_change = on_change
        self._on_lost = on_lost
        self._others: dict[str, Node] = {}
        self._places: dict[str, list[Place]] = {}
        self._live: dict[str, _Live] = {}
        self._died: dict[tuple[str, str], Died] = {}
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
            stays = place.node != node and place.instance == held.instance and self._is_live(place)
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

    def republish(self, node: str, incarnation: str, held: Iterable[Held]) -> list[str]:
        """Enter sessions with the generations that they have. Returns the devices that had no place
        any more."""
        missed = []
        for one in held:
            was_there = any(self._is_live(place) for place in self._places.get(one.device, ()))
            entered = self.claim(node, incarnation, one, is_new=False)
            if entered is not None and not was_there:
                missed.append(one.device)
        return missed

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
            self._died.pop((me.name, me.incarnation), None)  # it tells of its sessions itself
            raise NodeNameTaken(me.name)
        if known is None or known.record.incarnation != me.incarnation:
            if known is not None:
                self._note_died(known)
            known = self._live[me.name] = _Live(me, now, now)
            self._tell_of_nodes()
        elif known.record != me:
            known.record = me
            self._tell_of_nodes()
        known.heard, known.until = now, now + self._lease
        for node in self._live.values():  # of a clock that was set back
            node.heard, node.until = min(node.heard, now), min(node.until, known.until)
        for name in [name for name, node in self._live.items() if node.until <= now]:
            self._note_died(self._live[name])
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
            died=self._died_just_now(now) if version != heard.nodes else [],
            was_given_up=(me.name, me.incarnation) in self._died,
        )

    def complete(self, node: str, incarnation: str) -> None:
        """Record that the node has published all its sessions."""
        known = self._live.get(node)
        if known is not None and known.record.incarnation == incarnation:
            known.is_complete = True
            self._died.pop((node, incarnation), None)

    def sweep(self, lost: str = "") -> Swept:
        """Remove the places on dead nodes, as `Directory.sweep` says."""
        now = self._clock()
        just_now = now - (self._lease if self._lease < math.inf else 0.0)
        count, told, is_done = 0, 0, True
        for device, places in list(self._places.items()):
            kept, lost_with = [], None
            for place in places:
                died = self._died.get((place.node, place.incarnation))
                if self._is_live(place):
                    kept.append(place)
                elif died is not None and just_now < died.last_beat <= now:
                    kept.append(place)  # its process may live, under a name that another took
                    is_done = False
                else:
                    lost_with = lost_with or died
            count += len(places) - len(kept)
            self._put(device, kept)
            if lost and lost_with is not None and not kept:
                told += 1
                self._on_lost(_filled_in(lost, device, lost_with.node, now - lost_with.last_beat))
        return Swept(count, told, is_done)

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

    def _died_just_now(self, now: float) -> list[Died]:
        return [one for one in self._died.values() if one.last_beat > now - DIED_JUST_NOW]

    def _note_died(self, node: _Live) -> None:
        key = node.record.name, node.record.incarnation
        self._died.pop(key, None)  # the latest are kept
        self._died[key] = Died(*key, node.heard)
        if len(self._died) > MOST_DIED:
            del self._died[next(iter(self._died))]

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


def _filled_in(event: str, device: str, node: str, seconds: float) -> str:
    words = {"{device}": device, "{node}": node, "{seconds}": f"{seconds:.0f}"}
    for word, value in words.items():
        event = event.replace(word, msgspec.json.encode(value).decode()[1:-1])
    return event


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

    async def republish(
        self, held: Sequence[Held], missed: Callable[[Sequence[str]], None] = lambda _devices: None
    ) -> None:
        await trio.lowlevel.checkpoint()
        missed(self._book.republish(self._node, self._incarnation, held))
        self._book.complete(self._node, self._incarnation)

    async def sweep(self, lost: str = "") -> Swept:
        await trio.lowlevel.checkpoint()
        return self._book.sweep(lost)

    async def leave(self) -> None:
        await trio.lowlevel.checkpoint()
        self._book.leave(self._node, self._incarnation)
