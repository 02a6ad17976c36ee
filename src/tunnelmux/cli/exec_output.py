"""What `tunnelmux exec` writes: output as it comes, a progress line, and a table at the end.

Standard output is only what the commands wrote; everything else goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import trio

from tunnelmux.commands import (
    Event,
    Exited,
    LineSplitter,
    Output,
    Started,
    Truncated,
    encode_event,
)
from tunnelmux.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JsonLines", "ManyDevices", "OneDevice", "OutputClosed", "Report", "print_table"]

_FILES = {"stdout": 1, "stderr": 2}

_LONGEST_LINE = 65_536
# Bytes without a line feed that are kept waiting for one.

_WIDEST_NAME = 24
# Columns of a device's name in front of its lines; a longer one is not cut, and stands out.

_REDRAW = 0.1
# Seconds between two looks at the progress line: fast enough to seem live.

_MOST_ROWS = 60
# Rows of the table; of a larger fleet only what failed is listed.

_COLORS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
# SGR codes for the names of devices, one after the other (ECMA-48 section 8.3.117).

_UNSAFE = re.compile(rb"\x1b(?!\[[0-9;]*m)[\[\]PX^_]?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]")
# Sequences that would move the cursor; colours are kept.


class OutputClosed(Exception):
    """The reader of our output is gone: `tunnelmux exec … | head`."""


class Report(Protocol):
    """Shows a run."""

    async def see(self, device: str, event: Event) -> None:
        """Show an event."""

    async def show_progress(self) -> None:
        """Keep the progress line up to date, until cancelled."""

    def finish(self, ends: Mapping[str, Exited], *, interrupted: bool) -> None:
        """Show how it ended."""


class OneDevice:
    """Passes on what the command writes, byte for byte."""

    async def see(self, device: str, event: Event) -> None:
        match event:
            case Output(stream, data):
                await _write(_FILES[stream], data)
            case Truncated(stream, limit):
                _tell(f"{device}: {stream} was over {limit} bytes; the rest is missing")
            case Exited() if event.reason is not None:
                _tell(f"{device}: {event.message or event.reason}")

    async def show_progress(self) -> None:
        await trio.sleep_forever()  # no progress line: the command may draw on the screen itself

    def finish(self, ends: Mapping[str, Exited], *, interrupted: bool) -> None:
        if interrupted and not ends:
            _tell("interrupted; the command is being ended")


class JsonLines:
    """One JSON object a line: the events of POST /internal/exec (docs/internal-api.md)."""

    async def see(self, device: str, event: Event) -> None:
        content = {"device": device, **json.loads(encode_event(event))}
        await _write(1, json.dumps(content, separators=(",", ":")).encode() + b"\n")

    async def show_progress(self) -> None:
        await trio.sleep_forever()

    def finish(self, ends: Mapping[str, Exited], *, interrupted: bool) -> None:
        """The events have said all of it."""


class ManyDevices:
    """Writes the name of the device in front of each line."""

    def __init__(self, devices: list[str]) -> None:
        self._devices = devices
        width = min(max(map(len, devices)), _WIDEST_NAME)
        self._is_terminal = {file: os.isatty(file) for file in _FILES.values()}
        self._prefixes = {
            file: {
                device: _prefix(device.ljust(width), index, file, colored=_may_color(file))
                for index, device in enumerate(devices)
            }
            for file in _FILES.values()
        }
        self._open_lines: dict[tuple[str, str], LineSplitter] = {}
        self._running: dict[str, None] = {}
        self._failed = 0
        self._done = 0
        self._started = time.monotonic()
        self._is_drawn = False
        self._is_writing = False

    async def see(self, device: str, event: Event) -> None:
        match event:
            case Started():
                self._running[device] = None
            case Output(stream, data):
                await self._show(device, stream, data)
            case Truncated(stream, limit):
                text = f"[{stream} was over {limit} bytes; the rest is missing]\n"
                await self._show(device, "stderr", text.encode())
            case Exited():
                await self._end(device, event)

    async def _end(self, device: str, end: Exited) -> None:
        for stream in _FILES:
            if (device, stream) in self._open_lines:
                await self._show(device, stream, b"\n")
        if end.reason is not None:
            await self._show(device, "stderr", f"[{end.reason}]\n".encode())  # the table says more
        self._running.pop(device, None)
        self._done += 1
        self._failed += end.exit_code != 0

    async def _show(self, device: str, stream: str, data: bytes) -> None:
        """Write the lines that are complete."""
        splitter = self._open_lines.setdefault((device, stream), LineSplitter())
        lines = splitter.feed(data)
        if splitter.waiting > _LONGEST_LINE:
            lines.append(splitter.take())
        if not splitter.waiting:
            del self._open_lines[device, stream]
        if not lines:
            return
        file = _FILES[stream]
        prefix = self._prefixes[file][device]
        self._clear()
        self._is_writing = True
        try:
            await _write(file, b"".join(self._line(prefix, line, file) for line in lines))
        finally:
            self._is_writing = False

    def _line(self, prefix: bytes, line: bytes, file: int) -> bytes:
        line = line.removesuffix(b"\r")
        if not self._is_terminal[file]:
            return prefix + line + b"\n"
        safe = _UNSAFE.sub(b"", line)
        return prefix + safe + (b"\x1b[m\n" if b"\x1b" in safe else b"\n")

    # -- the progress line --------------------------------------------------------------------

    async def show_progress(self) -> None:
        if not self._is_terminal[2]:
            await trio.sleep_forever()
        shown = ""
        while True:
            text = self._progress()
            if not self._is_writing and (text != shown or not self._is_drawn):
                self._clear()
                os.write(2, f"\r{text}".encode())
                self._is_drawn, shown = True, text
            await trio.sleep(_REDRAW)

    def _progress(self) -> str:
        seconds = int(time.monotonic() - self._started)
        text = f"{self._done}/{len(self._devices)} done"
        if self._failed:
            text += f", {self._failed} failed"
        text += f", {seconds // 60}:{seconds % 60:02}"
        if self._running:
            text += f", running on {' '.join(self._running)}"
        columns = shutil.get_terminal_size().columns
        return text if len(text) < columns else text[: columns - 2] + "…"

    def _clear(self) -> None:
        if self._is_drawn:
            os.write(2, b"\r\x1b[K")
            self._is_drawn = False

    # -- the end ------------------------------------------------------------------------------

    def finish(self, ends: Mapping[str, Exited], *, interrupted: bool) -> None:
        # rich takes a twentieth of a second to import; until here it was not needed.
        from rich.console import Console

        self._clear()
        if interrupted:
            _tell("interrupted; commands that were still running are being ended")
        if ends:
            print_table(Console(stderr=True, highlight=False), self._devices, ends)


def print_table(console: Console, devices: list[str], ends: Mapping[str, Exited]) -> None:
    """One row for each device in its order, or for those that failed when there are too many."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    failed = [device for device in devices if device not in ends or ends[device].exit_code]
    rows = devices if len(devices) <= _MOST_ROWS else failed[:_MOST_ROWS]
    signs = ("✓", "✗") if console.encoding.lower().startswith("utf") else ("+", "x")
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        border_style="dim",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("Device", overflow="fold")
    table.add_column("Exit", justify="right", no_wrap=True)
    table.add_column("Time", justify="right", no_wrap=True)
    table.add_column("Output", justify="right", no_wrap=True)
    table.add_column("Why", overflow="fold")
    for device in rows:
        end = ends.get(device)
        if end is None:
            table.add_row(Text(f"{signs[1]} {device}", "yellow"), "", "", "", "not known")
            continue
        good = end.exit_code == 0
        table.add_row(
            Text(f"{signs[not good]} {device}", "green" if good else "bold red"),
            Text(str(end.exit_code), "" if good else "bold red"),
            _seconds(end.duration),
            _size(end.stdout_bytes + end.stderr_bytes),
            Text(printable(_why(end))),
        )
    if rows:
        console.print()
        console.print(table)
    count = len(devices) - len(failed)
    words = f"{count} of {len(devices)} succeeded" if failed else f"All {count} succeeded"
    if hidden := len(failed) - len([device for device in rows if device in failed]):
        words += f"; {hidden} more failed than are shown"
    console.print(Text(f"{words}.", "bold red" if failed else "bold green"))


def _why(end: Exited) -> str:
    if end.reason is None:
        return ""
    return f"{end.reason}: {end.message}" if end.message else end.reason


def _seconds(duration: float) -> str:
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    return f"{duration:.1f} s" if duration < 60 else f"{duration / 60:.1f} min"


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _prefix(name: str, index: int, file: int, *, colored: bool) -> bytes:
    mark = "|" if file == 1 else "!"
    if colored:
        return f"\x1b[{_COLORS[index % len(_COLORS)]}m{name} {mark}\x1b[m ".encode()
    return f"{name} {mark} ".encode()


def _may_color(file: int) -> bool:
    return os.isatty(file) and not os.environ.get("NO_COLOR")


def _tell(sentence: str) -> None:
    sys.stderr.write(f"tunnelmux exec: {printable(sentence)}\n")
    sys.stderr.flush()


async def _write(file: int, data: bytes) -> None:
    """Write all of it. A slow reader delays this program, and so the devices."""
    try:
        # In a thread, so that Ctrl-C works while a pager reads nothing.
        await trio.to_thread.run_sync(_write_all, file, data, abandon_on_cancel=True)
    except BrokenPipeError:
        raise OutputClosed from None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
