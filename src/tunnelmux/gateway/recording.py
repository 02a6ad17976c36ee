"""Recordings of sessions as asciicast version 2, which any player of asciicast shows.

Each line is a piece of output with the seconds since the beginning. The `.json` file of the same
name says who had the session, where and when, and how it ended. The `.index` file has the places
from which a player can begin, so that it needs only a part of a large recording.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tunnelmux.gateway.recording_space import RecordingSpace, keep_open, on_disk
from tunnelmux.observability import get_logger
from tunnelmux.registry import IndexPoint

__all__ = ["INDEX_EVERY", "Recording", "RecordingStopped"]

_log = get_logger("gateway")

_UNWRITTEN = 1024 * 1024
# Bytes that may wait for the disk. With more, the gateway stops reading from the device.

_GATHERED = 0.02
_PIECE = 256 * 1024
# Seconds, and bytes, of events that are written together: each write takes a switch of threads.

INDEX_EVERY = 1024 * 1024
"""Bytes of a recording from one point of its index to the next."""

_LONGEST_PAUSE = 2.0
# Seconds: what players make of a longer pause.

_LARGEST_SIDE = 1000
# Columns or rows of a terminal: more than any screen has. Players make a table of them, and a
# person's ssh may say 4 billion.

_END = 1024
# Bytes that the `.json` file grows by at the end, and more.


class RecordingStopped(Exception):
    """A recording cannot go on; the message says why."""


@dataclass(slots=True)
class Recording:
    """One session's recording. Called in asyncio; it writes in a thread.

    `about` is the content of its `.json` file, with the tenant's id, whose share of `space` it
    takes. `on_room` is called when the disk has caught up after `output` returned False, and
    `on_stop` once, when the recording cannot go on.
    """

    path: Path
    about: dict[str, Any]
    max_bytes: int
    space: RecordingSpace
    on_room: Callable[[], object]
    on_stop: Callable[[str], object]
    _file: Any = None
    _index: Any = None
    _points: list[IndexPoint] = field(default_factory=list)
    _next_point: int = 0
    _window: tuple[int, int] = (80, 24)
    _seconds: float = 0.0
    _played: float = 0.0
    _mode: int = 0o600
    _began: float = 0.0
    _lines: list[bytes] = field(default_factory=list)
    _unwritten: int = 0
    _size: int = 0
    _taken: int = 0
    _digest: Any = None
    _decoder: Any = None
    _typed: Any = None
    _writer: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _is_full: bool = False
    _problem: str = ""
    _is_closed: bool = False

    def begin(self, columns: int, rows: int, term: str) -> None:
        """Make the file. Raises RecordingStopped."""
        self._window = _possible(columns or 80), _possible(rows or 24)
        header = {
            "version": 2,
            "width": self._window[0],
            "height": self._window[1],
            "timestamp": int(time.time()),
            "env": {"TERM": term or "dumb"},
        }
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._typed = codecs.getincrementaldecoder("utf-8")("replace")
        self._digest = hashlib.sha256()
        self._began = time.monotonic()
        try:
            self._mode = _make_folder(self.path)
            problem = self.space.begin(self._tenant, self._least())
            if problem:
                raise RecordingStopped(f"no recording can be made: {problem}")
            try:
                self._make_files(json.dumps(header).encode("utf-8") + b"\n")
            except OSError:
                self._remove()
                raise
        except OSError as exc:
            raise RecordingStopped(f"no recording can be made ({exc.strerror})") from exc

    def _make_files(self, header: bytes) -> None:
        self._file = self._new_file(self.path)
        keep_open(self._file.fileno())
        self._index = self._new_file(self.path.with_suffix(".index"))
        self._write(header, [])
        self._taken = self._size
        self._write_about({})

    def _remove(self) -> None:
        """Undo what `begin` did."""
        for file in (self._file, self._index):
            if file is not None:
                file.close()
        self._file = self._index = None
        for suffix in (".cast", ".index", ".json"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        self.space.give_back(self._tenant, self._least())

    async def discard(self) -> None:
        """End it without a trace: its session never began."""
        self._is_closed = True
        self._write_now()
        if self._writer is not None:
            await self._writer
        await asyncio.to_thread(self._remove)

    def output(self, data: bytes) -> bool:
        """Record output that the person is about to see. False: wait for `on_room` with more."""
        return self._event("o", self._decoder.decode(data))

    def input(self, data: bytes) -> bool:
        """Record what the person typed. False: wait for `on_room` with more."""
        return self._event("i", self._typed.decode(data))

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    @property
    def sha256(self) -> str:
        """Of the file, in hexadecimal."""
        digest: str = self._digest.hexdigest()
        return digest

    @property
    def problem(self) -> str:
        """Why it cannot go on; empty while it does."""
        return self._problem

    @property
    def is_full(self) -> bool:
        """Whether too much waits for the disk."""
        return self._is_full

    def resized(self, columns: int, rows: int) -> None:
        """Record a new size of the person's window."""
        self._window = _possible(columns), _possible(rows)
        self._event("r", "{}x{}".format(*self._window))

    def mark(self, text: str) -> None:
        """A marker, which players show on their time line."""
        self._event("m", text)

    def when_written(self, done: Callable[[], object]) -> None:
        """Call `done` once everything so far is written, or cannot be written."""
        self._write_now()
        if self._writer is None or self._writer.done():
            done()
        else:
            self._writer.add_done_callback(lambda _: done())

    async def close(self, end: dict[str, Any]) -> None:
        """Write what waits, and then `end` into the `.json` file."""
        if self._is_closed:
            return
        self._is_closed = True
        self._write_now()
        if self._writer is not None:
            await self._writer
        if self._file is not None:
            await asyncio.to_thread(self._finish, end)

    @property
    def _tenant(self) -> str:
        return str(self.about["tenant"])

    def _least(self) -> int:
        """Bytes that its three files take before the first event."""
        return 2 * on_disk(1) + on_disk(len(json.dumps(self.about, indent=1)) + _END)

    def _event(self, kind: str, text: str) -> bool:
        if not text or self._is_closed or self._problem:
            return True
        seconds = time.monotonic() - self._began
        line = b'[%.6f, "%s", %s]\n' % (seconds, kind.encode("ascii"), msgspec.json.encode(text))
        if self._taken + len(line) > self.max_bytes:
            # Now, and not when the disk gets there: by then the person would have seen more.
            self._stop("it has reached recording.max_bytes")
            return True
        problem = self.space.take(self._tenant, len(line))
        if problem:
            self._stop(problem)
            return True
        self._played += min(seconds - self._seconds, _LONGEST_PAUSE)
        self._seconds = seconds
        if self._taken >= self._next_point:
            self._points.append(self._point(self._taken))
            self._next_point = self._taken + INDEX_EVERY
        self._taken += len(line)
        self._lines.append(line)
        self._unwritten += len(line)
        if self._unwritten >= _PIECE:
            self._write_now()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHERED, self._write_now)
        self._is_full = self._unwritten >= _UNWRITTEN
        return not self._is_full

    def _write_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._write_waiting())

    async def _write_waiting(self) -> None:
        while self._lines:
            lines, self._lines, self._unwritten = self._lines, [], 0
            points, self._points = self._points, []
            try:
                await asyncio.to_thread(self._write, b"".join(lines), points)
            except OSError as exc:
                self._lines.clear()
                self._unwritten = 0
                if not self._problem:
                    self._stop(f"its disk cannot take it ({exc.strerror})")
            if self._is_full:
                self._is_full = False
                self.on_room()

    def _new_file(self, path: Path) -> Any:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        os.fchmod(file.fileno(), self._mode)
        return file

    def _point(self, offset: int) -> IndexPoint:
        return IndexPoint(self._seconds, self._played, offset, *self._window)

    def _write(self, data: bytes, points: list[IndexPoint]) -> None:
        try:
            _write_all(self._file, data)
        except OSError:
            # A part may be there: the file is what is counted, and ends with a whole event.
            os.ftruncate(self._file.fileno(), self._size)
            self._file.seek(self._size)
            raise
        self._digest.update(data)
        self._size += len(data)
        # Behind the events, so that a reader finds all that a point promises.
        _write_all(self._index, b"".join(point.line for point in points))

    def _stop(self, problem: str) -> None:
        """Record nothing more. What was taken before is still written."""
        self._problem = problem
        _log.error("recording stopped", file=str(self.path), problem=problem)
        if self._is_full:
            self._is_full = False
            self.on_room()
        self.on_stop(problem)

    def _finish(self, end: dict[str, Any]) -> None:
        file, index, self._file, self._index = self._file, self._index, None, None
        try:
            with file, index:
                _write_all(index, self._point(self._size).line)
            self._write_about(end)
        except OSError as exc:
            _log.error("recording stopped", file=str(self.path), problem=str(exc.strerror))

    def _write_about(self, end: dict[str, Any]) -> None:
        about = self.about | end
        if end:
            seconds = round(time.monotonic() - self._began, 3)
            about |= {"seconds": seconds, "bytes": self._size, "sha256": self.sha256}
        if self._problem:
            about["incomplete"] = self._problem
        path = self.path.with_suffix(".json")
        draft = path.with_suffix(".json.new")
        try:
            draft.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
            draft.chmod(self._mode)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def _possible(side: int) -> int:
    return max(1, min(side, _LARGEST_SIDE))


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _make_folder(file: Path) -> int:
    """Make the folders of a recording, and answer the mode of its files. Those of the group may
    read where they may read the folder of all recordings: tunnelmux-api shows them from there."""
    day, tenant, root = file.parents[:3]
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_shared = bool(root.stat().st_mode & 0o040)
    for folder in (tenant, day):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            if is_shared:
                folder.chmod(folder.stat().st_mode | 0o050)  # the bit that hands on the group stays
    return 0o640 if is_shared else 0o600
