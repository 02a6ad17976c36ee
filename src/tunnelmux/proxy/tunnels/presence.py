"""A file with the devices that were online, for the next proxy process. With it, visitors of a
device that was online before a restart wait for it, and what is known about offline devices (last
seen, why lost) is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import trio

from tunnelmux.config import Address
from tunnelmux.config.private_file import write_private
from tunnelmux.observability import get_logger
from tunnelmux.sessions import EventLog, MemoryStore, Presence

__all__ = ["PresenceFile", "presence_path"]

_log = get_logger("proxy.tunnel")

_BATCH = 1.0
# Seconds between two writes, at least: changes in between are written together. So a crash loses
# the changes of the last second, or of the last wait where writing takes long.

_REST = 20
# How many times longer than a write took the next one waits: with 10,000 devices, of which some
# come and go all the time, writing must not take more than a twentieth of a processor.

_REFRESH = 60.0
# Seconds after which the file is written even without a change, because the times at which online
# devices were last seen have changed.

_MAX_BYTES = 67_108_864
# Bytes of a file that is read: some 500,000 devices. Protects against reading a log file by
# mistake.


class _Content(msgspec.Struct):
    devices: dict[str, Presence]


def presence_path(state_dir: Path, tunnel: Address, process: str = "") -> Path | None:
    """The file of the proxy that listens at `tunnel`, or of one of its processes. None for a port
    that changes with every start: no device could come back to it.
    """
    if tunnel.port == 0:
        return None
    host = tunnel.host.replace(":", "-").replace("%", "-")
    end = f"-{process}" if process else ""
    return state_dir / f"presence-{host}-{tunnel.port}{end}.json"


def _rank(one: Presence) -> tuple[bool, datetime]:
    """The sort key of two processes' facts: the one that has the device, or had it last, wins."""
    return one.online, one.last_seen


class PresenceFile:
    """Follows a store's events and writes the devices that are online to the file. A failed write
    is logged once, and everything else goes on. `others` are the files of other processes of the
    proxy, whose devices may connect here now."""

    def __init__(
        self, path: Path, store: MemoryStore, events: EventLog, others: Sequence[Path] = ()
    ) -> None:
        self.path = path
        self._others = others
        self._store = store
        self._events = events
        self._finished = False
        self._told = False
        self._written: dict[str, Presence] | None = None
        self._writing = trio.Lock()

    async def load(self, is_known: Callable[[str], bool], wait: float) -> None:
        """Restore the facts of the previous process about devices that are still known. Visitors of
        those that were online wait for them, up to `wait` seconds from now. A damaged file is
        logged and ignored.
        """
        kept: dict[str, Presence] = {}
        for path in (self.path, *self._others):
            for name, one in (await self._load_file(path)).items():
                if is_known(name) and (name not in kept or _rank(kept[name]) < _rank(one)):
                    kept[name] = one
        known = kept
        if not known:
            return
        self._store.restore(known, wait)
        waited_for = sum(one.online for one in known.values())
        _log.info("presence restored", devices=len(known), waited_for=waited_for)

    async def _load_file(self, path: Path) -> dict[str, Presence]:
        try:
            return (await trio.to_thread.run_sync(self._read, path)).devices
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._tell(f"{path} cannot be read ({error.strerror})")
        except (ValueError, RecursionError) as error:
            self._tell(f"{path} is damaged ({error}); it will be overwritten")
        return {}

    async def run(self) -> None:
        """Write now, so that a folder that cannot be used is told of at the start, and after every
        change, at most once a second, until cancelled; not while it is finished."""
        while True:
            seen = self._events.last_seq
            began = trio.current_time()
            await self._write()
            await trio.sleep(max(_BATCH, _REST * (trio.current_time() - began)))
            with trio.move_on_after(_REFRESH):
                await self._events.wait_after(seen)

    async def finish(self) -> None:
        """Write the file for the last time: sessions that end from here on are ended by this
        process.
        """
        await self._write()
        self._finished = True

    def go_on(self) -> None:
        """It was not the last time."""
        self._finished = False

    async def _write(self) -> None:
        async with self._writing:
            if self._finished:
                return
            devices = self._store.presence()
            if devices == self._written:
                return
            self._written = devices
            try:
                await trio.to_thread.run_sync(self._write_file, _Content(devices))
            except OSError as error:
                self._tell(f"{self.path} cannot be written ({error.strerror})")

    @staticmethod
    def _read(path: Path) -> _Content:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        return msgspec.json.decode(content, type=_Content)

    def _write_file(self, content: _Content) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.path, msgspec.json.encode(content))

    def _tell(self, cause: str) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "presence not kept",
                cause=cause,
                effect="after a restart the proxy will not know which devices were online",
                fix="name a directory that this user may write to: state_dir in [tunnel]",
            )
