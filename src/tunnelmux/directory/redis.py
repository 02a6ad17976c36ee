"""A directory in Redis (7 or newer, or Valkey), for nodes on many machines."""

from __future__ import annotations

import re
import secrets
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from tunnelmux.directory.directory import Directory
from tunnelmux.directory.places import (
    LEASE,
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
from tunnelmux.directory.resp import Redis, RedisFailed, Script
from tunnelmux.directory.scripts import PREFIX, SCRIPTS, whole
from tunnelmux.errors import DirectoryAway, NodeNameTaken
from tunnelmux.json_text import BadJson, read_json
from tunnelmux.observability import RepeatedLines, get_logger

__all__ = ["RedisDirectory"]

_log = get_logger("directory")

ANSWER_TIMEOUT = 1.0
"""Seconds that Redis gets for an answer: beats come every two, and visitors wait."""

_SHARDS = 16
# Hashes that the devices are spread over, so that one sweep never blocks Redis for long.

_NAME = re.compile(r"[!-{}~]{1,255}")
# A printable ASCII name, without the character between the parts of an entry.

_BATCH = 500
# Sessions that one call publishes again: about 10 ms of Redis' time.

_LOST_SHARE = 0.5
# Of the events that are kept (`limits.event_history`), as many devices are told lost in a second:
# who reads them has two seconds.


class RedisDirectory(Directory):
    """One node's view of the directory in a Redis. Each call is one script, which is atomic. Of a
    device that this node claims, *most_places* stay; of all events, *event_history*."""

    def __init__(
        self,
        redis: Redis,
        node: str,
        incarnation: str,
        *,
        timeout: float = ANSWER_TIMEOUT,
        most_places: int = MOST_PLACES,
        event_history: int = 1024,
    ) -> None:
        self._node = node
        self._incarnation = incarnation
        self._timeout = timeout
        self._event_history = max(1, event_history)
        self._writes = 0
        self._redis = redis
        self._removed = RepeatedLines("odd value in Redis removed")
        self._scripts = {
            name: Script(whole(name, lease=LEASE, most_places=most_places, shards=_SHARDS))
            for name in SCRIPTS
        }

    async def claim(self, device: str, instance: str, least: int = 0) -> Claim:
        arguments = (device, self._node, self._incarnation, instance, least)
        answer = await self._run("claim", [_shard(device)], arguments)
        with _understood():
            generation, gone, writes = answer
            self._writes = max(self._writes, writes)
            return Claim(int(generation), _places_in(gone))

    async def release(self, device: str, generation: int) -> bool:
        arguments = (device, self._node, self._incarnation, generation)
        answer = await self._run("release", [_shard(device)], arguments)
        with _understood():
            removed, writes = answer
            self._writes = max(self._writes, writes)
            return bool(removed == 1)

    async def find(self, device: str) -> list[Place]:
        answer = await self._run("find", [_shard(device)], [device])
        with _understood():
            return _places_in(answer)

    async def beat(self, me: Node, heard: Heard) -> Beat:
        written = self._writes  # read before the call: the answer to a claim may come while it runs
        record = msgspec.json.encode(me).decode()
        arguments = [me.name, me.incarnation, record, heard.message, heard.nodes]
        answer = await self._run("beat", [], arguments)
        with _understood():
            if answer[0] == "taken":
                raise NodeNameTaken(me.name)
            _, complete, writes, messages, version, records, odd, died, was_given_up = answer
            self._tell_of(odd)
            superseded, last = [], ""  # of an empty inbox nothing is left to remove
            for number, fields in messages:
                superseded += _superseded_by(fields)
                last = _after(number)
            nodes = _nodes_in(records) if version != heard.nodes else None
            # Fewer writes than before: a replica that lacked some of them took over.
            lost = writes < written
            if lost:
                self._writes = writes
            return Beat(
                Heard(last, version),
                superseded,
                nodes,
                resync=lost or not complete,
                died=_died_in(died),
                was_given_up=was_given_up == 1,
            )

    def _tell_of(self, keys: list[str]) -> None:
        for key in keys:
            if self._removed.may_write(key):
                _log.error(
                    "odd value in Redis removed",
                    key=key,
                    effect="all nodes write again what they hold",
                    fix="find out what else writes to this Redis; give it another one",
                )

    async def republish(
        self, held: Sequence[Held], missed: Callable[[Sequence[str]], None] = lambda _devices: None
    ) -> None:
        by_shard = defaultdict(list)
        for one in held:
            by_shard[_shard(one.device)].append(one)
        for key, sessions in by_shard.items():
            for start in range(0, len(sessions), _BATCH):
                batch = sessions[start : start + _BATCH]
                try:
                    missed(await self._republish(key, batch))
                except DirectoryAway:
                    missed([one.device for one in batch])
                    raise
        await self._run("complete", [], [f"{self._node}|{self._incarnation}"])

    async def _republish(self, key: str, batch: Sequence[Held]) -> list[str]:
        arguments: list[str | int] = [self._node, self._incarnation]
        for one in batch:
            arguments += [one.device, one.instance, one.generation]
        answer = await self._run("republish", [key], arguments)
        with _understood():
            writes, missed = answer
            self._writes = max(self._writes, writes)
            return [str(device) for device in missed]

    async def sweep(self, lost: str = "") -> Swept:
        count, told, is_done = 0, 0, True
        more = lost, secrets.token_hex(4), self._event_history
        per_second = max(1.0, self._event_history * _LOST_SHARE)
        for number in range(_SHARDS):
            cursor = "0"
            while True:  # until Redis has gone through all of the hash
                key = f"{PREFIX}places:{number}"
                answer = await self._run("sweep", [key], [cursor, *more])
                with _understood():
                    cursor, removed, told_now, waiting = answer
                    count += removed
                    told += told_now
                    is_done &= not waiting
                    pause = told_now / per_second
                await trio.sleep(pause)
                if cursor == "0":
                    break
        return Swept(count, told, is_done)

    async def leave(self) -> None:
        await self._run("leave", [], [f"{self._node}|{self._incarnation}"])

    async def _run(
        self, name: str, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> Any:  # each caller documents what its script answers
        words = [str(argument) for argument in arguments]
        try:
            with trio.fail_after(self._timeout):
                return await self._redis.run(self._scripts[name], keys, words)
        except trio.TooSlowError:
            raise DirectoryAway(f"Redis gave no answer within {self._timeout:g} s") from None
        except RedisFailed as error:
            raise DirectoryAway(f"Redis: {error}") from error


@contextmanager
def _understood() -> Iterator[None]:
    """Raises DirectoryAway where the block finds something else than what the script answers."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as error:
        raise DirectoryAway("Redis answered something that none of our scripts does") from error


def _shard(device: str) -> str:
    return f"{PREFIX}places:{zlib.crc32(device.encode()) % _SHARDS}"


def _places_in(text: str) -> list[Place]:
    found = []
    for item in filter(None, text.split(";")):
        generation, node, incarnation, instance = item.split("|")
        found.append(Place(node, incarnation, int(generation), instance))
    return found


def _superseded_by(fields: list[str]) -> list[tuple[str, int]]:
    """The device and generation of one message; none where it is not one of ours."""
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    try:
        return [(pairs["device"], int(pairs["generation"]))]
    except (KeyError, ValueError):
        return []


def _nodes_in(records: list[str]) -> dict[str, Node]:
    """The nodes by name. A record that is not one of ours is left out: it must not cost the others
    their cluster."""
    nodes = {}
    for record in records:
        try:
            one = read_json(record, Node)
        except BadJson as error:
            _log.warning("record of a node not read", cause=str(error))
            continue
        if _NAME.fullmatch(one.name):  # it goes into fields of requests
            nodes[one.name] = one
        else:
            _log.warning("record of a node not read", cause="its name cannot be a node's")
    return nodes


def _died_in(pairs: list[str]) -> list[Died]:
    """Nodes and the times of their last beats, as Redis lists them."""
    found = []
    for one, at in zip(pairs[::2], pairs[1::2], strict=False):
        node, _, incarnation = one.rpartition("|")
        if _NAME.fullmatch(node):
            found.append(Died(node, incarnation, float(at) / 1000))
    return found


def _after(number: str) -> str:
    """The id of a stream's entry that comes right after that one."""
    milliseconds, _, sequence = number.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
