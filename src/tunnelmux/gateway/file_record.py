"""The record of an sftp session: what was done with which files.

All of it goes into the session's recording, a line for each operation. The log and the lease's
record get the first of them, and how many more there were.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from tunnelmux.gateway.file_operations import FileOperation, FileOperations
from tunnelmux.gateway.recording import Recording

__all__ = ["FileRecord"]

_GATHERED = 1.0
# Seconds in which operations become one entry of the lease's record: copying a folder takes many.

_LARGEST = 12_000
# Bytes of one entry, as JSON: the registry takes 16 KiB.


class FileRecord:
    """One session's. `write(lines)` keeps an entry of the record."""

    def __init__(
        self, recording: Recording, most: int, write: Callable[[list[str]], object]
    ) -> None:
        self._recording = recording
        self._left = most
        self._write = write
        self._lines: list[str] = []
        self._size = 0
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None
        self._operations = FileOperations(self._add)

    def from_person(self, data: bytes) -> bool:
        """Take what goes to the device; whether more may come at once. Raises TooManyRequests."""
        self._operations.from_person(data)
        return not self._recording.is_full

    def from_device(self, data: bytes) -> bool:
        """Take what comes from it; whether more may come at once. Raises TooManyRequests."""
        self._operations.from_device(data)
        return not self._recording.is_full

    def end(self) -> None:
        """Write what waits."""
        self._operations.end()
        if self._left_out:
            self._lines.append(f"and {self._left_out} more, which the recording has")
        self._flush()

    def _add(self, operation: FileOperation) -> None:
        line = operation.line
        self._recording.output(f"{line}\r\n".encode())
        if not self._left:
            self._left_out += 1
            return
        self._left -= 1
        size = len(json.dumps(line))
        if self._size + size > _LARGEST:
            self._flush()
        self._lines.append(line)
        self._size += size
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_GATHERED, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines, self._size = self._lines, [], 0
        if lines:
            self._write(lines)
