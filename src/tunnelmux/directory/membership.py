"""One node as a member of its cluster: keeps its sessions in the directory.

The directory may be slow, lose answers, and lose its data. A node's own list of sessions is
authoritative: where the directory differs, the node corrects it, and tries again until that is
done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, NoReturn, TypeVar

import trio

from tunnelmux.directory.directory import Directory
from tunnelmux.directory.places import BEAT_INTERVAL, LEASE, Beat, Heard, Held, Node, Place
from tunnelmux.errors import DirectoryAway, NodeNameTaken
from tunnelmux.observability import RepeatedLines, get_logger

__all__ = ["Membership"]

_log = get_logger("directory")

S = TypeVar("S")

_AT_ONCE = 16
# Concurrent claims and releases: as many as the directory in Redis has connections.

_RETRY = 0.5
# Seconds until a directory that gave no answer is asked again.

_SWEEP_INTERVAL = 60.0
# Seconds between two sweeps for places of nodes that are gone: a sweep looks at all places, so
# there is one only when a node has gone since the last.

_SWEEP_SOON = 1.0
# Seconds until the sweep for a node that died: those that died with it are found out by then, and
# many of its devices are elsewhere. Then their loss is told.

_SWEEP_PAUSE = 10.0
# Seconds between two sweeps at least, when nodes die one after the other.

_GOODBYE = 1.0
# Seconds that the last call of a node that shuts down may take.

_MOST_KNOWN = 10_000
# Devices on other nodes whose places are cached for when the directory is away.


_MOST_GONE = 1000
# Nodes that are remembered as gone: more than a cluster has.


@dataclass(slots=True, eq=False)
class _Session(Generic[S]):
    """One session of this node."""

    device: str
    instance: str
    session: S
    generation: int = 0
    """0 until the directory has assigned one."""


class Membership(Generic[S]):
    """Keeps the sessions of this node in the directory, and knows the other nodes.

    *on_superseded* is called with a session that is to be closed, because the device has a newer
    one on the node of that name; *on_missed* with one that the others may have been told lost,
    because this node counted as dead for a while. *lost* makes the event for devices of nodes that
    died, as `Directory.sweep` takes it. `run` does the work; of the other methods only `find`,
    `expect` and `wait_change` wait.
    """

    def __init__(
        self,
        directory: Directory,
        me: Node,
        on_superseded: Callable[[S, str], None],
        *,
        on_missed: Callable[[S], None] = lambda _session: None,
        lost: Callable[[], str] = lambda: "",
    ) -> None:
        self.me = me
        self.nodes: dict[str, Node] = {}
        """The live nodes by name, as of the last beat."""
        self.gone: dict[str, datetime] = {}
        """When the nodes went that were live once and have not come back, by name."""
        self.is_away = True
        """Whether the directory gave no answer when it was last asked."""
        self.believes_until = -math.inf
        """Until when (`trio.current_time()`) no other node can consider this one dead."""
        self._directory = directory
        self.on_written: Callable[[str | None], None] = lambda _device: None
        """Called with a device that the directory has been told of, or could not be told of; with
        None when it cannot be told of any, for now or because this node leaves."""
        self._on_superseded = on_superseded
        self._on_missed = on_missed
        self._lost = lost
        self._heard = Heard()
        self._mine: dict[str, _Session[S]] = {}
        self._published: dict[str, int | None] = {}  # None: a call was not answered
        self._newest: dict[str, int] = {}
        self._claiming: dict[str, int] = {}  # the highest generation that was superseded
        self._unsettled: dict[str, None] = {}
        self._work = trio.Event()
        self._claimed = trio.Event()
        self._known: dict[str, list[Place]] = {}
        self._change = trio.Event()
        self._is_complete = False
        self._may_sweep = True  # nodes may have gone before this one came
        self._died = trio.Event()
        self._has_left = False
        self._failures = RepeatedLines("device not written to the directory")

    # -- what this node reports -----------------------------------------------------------------

    def arrived(self, device: str, instance: str, session: S) -> None:
        """The device has a new session here, which replaces the one before."""
        self._mine[device] = _Session(device, instance, session)
        self._unsettle(device)

    async def expect(self, device: str) -> None:
        """The device has a session here in a moment: look-ups from now on may wait for it."""
        if not self.is_away:
            with suppress(DirectoryAway):
                await self._directory.expect(device)

    def left(self, device: str, session: S) -> None:
        """This session is over. Nothing changes if another session has replaced it."""
        held = self._mine.get(device)
        if held is not None and held.session is session:
            del self._mine[device]
            self._unsettle(device)
            self._claimed.set()
            self._claimed = trio.Event()

    # -- what it knows ----------------------------------------------------------------------

    def generation_of(self, device: str) -> int:
        """The generation of the session here; 0 while there is none."""
        held = self._mine.get(device)
        return held.generation if held is not None else 0

    def will_claim(self, device: str) -> bool:
        """Whether a session that begins here now is not found by others before it is claimed."""
        return not (self.is_away or self._has_left or self.generation_of(device))

    async def wait_claimed(self, device: str) -> None:
        """Return when the session here has its generation, or is over. The caller bounds the
        wait."""
        while (held := self._mine.get(device)) is not None and not held.generation:
            await self._claimed.wait()

    @property
    def others(self) -> list[Node]:
        """The live nodes without this one, as of the last beat."""
        return [node for node in self.nodes.values() if node.name != self.me.name]

    def session_of(self, device: str) -> S | None:
        """The device's session on this node."""
        held = self._mine.get(device)
        return held.session if held is not None else None

    def is_settled(self) -> bool:
        """Whether the directory is up to date with this node, as far as this node knows."""
        return not self._unsettled and not self.is_away

    async def find(self, device: str) -> list[Place]:
        """The device's sessions on other nodes, newest first. While the directory is away, the
        answer of the last call that it answered.
        """
        if self.is_away:
            await trio.lowlevel.checkpoint()
            places = self._known.get(device, [])
        else:
            try:
                places = await self._directory.find(device)
            except DirectoryAway:
                places = self._known.get(device, [])
            else:
                self._remember(device, places)
        return [place for place in places if place.node != self.me.name]

    async def wait_change(self, until: float) -> None:
        """Return when the live nodes have changed, at the latest at *until*
        (`trio.current_time()`).
        """
        with trio.move_on_at(until):
            await self._change.wait()

    def _remember(self, device: str, places: list[Place]) -> None:
        self._known.pop(device, None)
        if places:
            self._known[device] = places
            if len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]

    # -- the work -----------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Be a member until cancelled, and leave then. Started once the first beat was answered or
        failed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._settle_all)
                nursery.start_soon(self._sweep)
                await self._beat_once()
                task_status.started()
                while True:  # until it is cancelled
                    is_calm = self._is_complete and not self.is_away
                    await self._directory.wait_news(BEAT_INTERVAL if is_calm else _RETRY)
                    await self._beat_once()
        finally:
            self._has_left = True
            self.on_written(None)
            with trio.move_on_after(_GOODBYE, shield=True):
                try:
                    await self._directory.leave()
                except DirectoryAway as error:
                    _log.info("the cluster could not be told of the end", cause=str(error))
        raise AssertionError  # the loop above does not end

    async def _beat_once(self) -> None:
        asked = trio.current_time()
        try:
            beat = await self._directory.beat(self.me, self._heard)
            await self._hear(beat, asked)
        except DirectoryAway as error:
            if not self.is_away or self.believes_until == -math.inf:
                _log.warning(
                    "directory away",
                    cause=str(error),
                    effect="devices of this node are served, others as last known",
                )
                self.believes_until = max(self.believes_until, 0.0)
            self._note_away()
        except NodeNameTaken as error:
            if not self.is_away:
                _log.error("node name taken", problem=str(error))
            self._note_away()

    def _note_away(self) -> None:
        self.is_away = True
        self.on_written(None)

    async def _hear(self, beat: Beat, asked: float) -> None:
        if self.is_away:
            _log.info("directory reached", node=self.me.name)
        self.is_away = False
        for device, generation in beat.superseded:
            self._supersede(device, generation)
        if beat.resync:
            await self._say_all(was_given_up=beat.was_given_up)
            self._is_complete = False  # the next beat tells the result
        else:
            self._is_complete = True
            self.believes_until = asked + LEASE
        self._heard = beat.heard
        if beat.nodes is not None:
            self._take_nodes(beat.nodes, {(one.node, one.incarnation) for one in beat.died})
        if self._unsettled:
            self._work.set()

    def _take_nodes(self, nodes: dict[str, Node], died: set[tuple[str, str]]) -> None:
        before, self.nodes = self.nodes, nodes
        others = {name: node.incarnation for name, node in nodes.items() if name != self.me.name}
        for name in sorted(set(before) - set(nodes) - {self.me.name}):
            if (name, before[name].incarnation) in died:
                cause = f"it was not heard for {LEASE:g} s: it was killed, hangs, or is cut off"
                _log.warning("node gone", node=name, cause=cause)
            else:
                _log.info("node gone", node=name, cause="it has left the cluster")
            self._note_gone(name)
        for name, known in before.items():
            if name not in nodes or nodes[name].incarnation != known.incarnation:
                self._may_sweep = True
                if (name, known.incarnation) in died:
                    self._died.set()
        for name, incarnation in sorted(others.items()):
            if name not in before or before[name].incarnation != incarnation:
                _log.info("node joined", node=name, address=nodes[name].address)
            self.gone.pop(name, None)
        self._change.set()
        self._change = trio.Event()

    def _note_gone(self, name: str) -> None:
        self.gone.pop(name, None)
        self.gone[name] = datetime.now(UTC)
        if len(self.gone) > _MOST_GONE:
            del self.gone[next(iter(self.gone))]

    async def _say_all(self, *, was_given_up: bool) -> None:
        def missed(devices: Sequence[str]) -> None:
            for device in devices if was_given_up else ():
                if device in self._mine:
                    self._on_missed(self._mine[device].session)

        held = [
            Held(one.device, one.instance, one.generation)
            for one in self._mine.values()
            if one.generation
        ]
        await self._directory.republish(held, missed)

    def _supersede(self, device: str, generation: int) -> None:
        if device in self._claiming:
            # This may concern a claim whose answer is still on its way.
            self._claiming[device] = max(generation, self._claiming[device])
        held = self._mine.get(device)
        if held is None or not 0 < held.generation <= generation:
            return
        del self._mine[device]
        self._published.pop(device, None)  # the newer session has removed it
        places = self._known.get(device, [])
        self._on_superseded(held.session, places[0].node if places else "")

    async def _sweep(self) -> NoReturn:
        while True:  # until the node ends
            with trio.move_on_after(_SWEEP_INTERVAL):
                await self._died.wait()
                await trio.sleep(_SWEEP_SOON)
            if self.is_away or self.me.name != min(self.nodes, default="") or not self._may_sweep:
                self._died = trio.Event()
                continue
            self._may_sweep = False
            self._died = trio.Event()
            try:
                swept = await self._directory.sweep(self._lost())
            except DirectoryAway:
                self._may_sweep = True
                self._died.set()
                await trio.sleep(_RETRY)
                continue  # the beats report that the directory is away
            if not swept.is_done:
                self._may_sweep = True
                self._died.set()
            if swept.places:
                _log.info(
                    "places of dead nodes removed", count=swept.places, devices_lost=swept.lost
                )
            await trio.sleep(_SWEEP_PAUSE)

    # -- putting the directory right ------------------------------------------------------------

    def _unsettle(self, device: str) -> None:
        self._unsettled[device] = None
        self._work.set()

    async def _settle_all(self) -> NoReturn:
        while True:  # until the node ends
            await self._work.wait()
            self._work = trio.Event()
            devices = list(self._unsettled)
            for start in range(0, len(devices), _AT_ONCE):
                async with trio.open_nursery() as nursery:
                    for device in devices[start : start + _AT_ONCE]:
                        nursery.start_soon(self._settle, device)
                if self.is_away:
                    break  # the next beat that is answered goes on

    async def _settle(self, device: str) -> None:
        """Bring the directory's entry for the device up to date with this node."""
        del self._unsettled[device]
        try:
            held = self._mine.get(device)
            if held is None:
                await self._release(device)
            elif not held.generation:
                await self._claim(held)
        except DirectoryAway as error:
            self._unsettled[device] = None  # the next answered beat tries again
            # While all of the directory is away, the beats say so.
            if not self.is_away and self._failures.may_write(device):
                _log.warning(
                    "device not written to the directory",
                    device=device,
                    cause=str(error),
                    effect="other nodes may not find it, or find it where it was",
                )
        self.on_written(device)

    async def _claim(self, held: _Session[S]) -> None:
        device = held.device
        self._published[device] = None
        self._claiming[device] = 0
        try:
            claim = await self._directory.claim(device, held.instance, self._newest.get(device, 0))
        finally:
            superseded_to = self._claiming.pop(device)
            self._claimed.set()
            self._claimed = trio.Event()
        self._newest[device] = self._published[device] = claim.generation
        if self._mine.get(device) is not held:
            self._unsettle(device)  # it ended meanwhile, or another session replaced it
            return
        held.generation = claim.generation
        if superseded_to >= claim.generation:
            self._supersede(device, superseded_to)

    async def _release(self, device: str) -> None:
        if device not in self._published:
            return
        generation = self._published[device]
        if generation is None:
            # A claim that was not answered may have been carried out.
            me = self.me.name, self.me.incarnation
            places = await self._directory.find(device)
            found = [p.generation for p in places if (p.node, p.incarnation) == me]
            generation = found[0] if found else 0
        if generation:
            await self._directory.release(device, generation)
        if device not in self._mine:
            self._published.pop(device, None)
            self._newest.pop(device, None)
