"""How commands write for people: tables that fit the terminal, times as they are said, colour where
there is a terminal that shows it (and no NO_COLOR, https://no-color.org)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

import click
import msgspec

from tunnelmux.printable import printable

__all__ = [
    "Cell",
    "Column",
    "ago",
    "duration",
    "may_color",
    "print_fields",
    "print_json",
    "print_table",
    "size",
    "styled",
    "width_of_terminal",
]

_STYLES = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1", "": ""}
# SGR codes (ECMA-48 section 8.3.117).

_GAP = 2
_LEAST = 8
# Characters: the least that a column is shortened to.


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and how it looks on a terminal: good, bad, warn, dim, bold or plain."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table."""

    title: str
    is_number: bool = False
    """Whether it stands to the right."""
    is_spare: bool = False
    """Whether it is left out first where there is no room."""


def may_color(out: TextIO | None = None) -> bool:
    """Whether the output goes to a terminal that shows colours."""
    stream = out or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, out: TextIO | None = None) -> str:
    """The text, coloured where the terminal shows colours."""
    code = _STYLES[style]
    return f"\x1b[{code}m{text}\x1b[m" if code and text and may_color(out) else text


def width_of_terminal() -> int | None:
    """Columns of the terminal; None where output goes to a file or a program."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return max(shutil.get_terminal_size().columns, 20)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> None:
    """Write a table to standard output, no wider than the terminal."""
    cells = [[_cell(value) for value in row] for row in rows]
    shown = [index for index in range(len(columns)) if _is_used(cells, index)]
    widths = {
        index: max([len(columns[index].title), *(len(row[index].text) for row in cells)])
        for index in shown
    }
    shown = _fit(columns, widths, shown)
    titles = [Cell(columns[index].title, "dim") for index in shown]
    lines = [titles, *([row[index] for index in shown] for row in cells)]
    for line in lines:
        pieces = []
        for index, cell in zip(shown, line, strict=True):
            text = _cut(cell.text, widths[index])
            padding = " " * (widths[index] - len(text))
            look = styled(text, cell.style)
            pieces.append(padding + look if columns[index].is_number else look + padding)
        sys.stdout.write((" " * _GAP).join(pieces).rstrip() + "\n")


def _cell(value: str | Cell) -> Cell:
    return (
        Cell(printable(value))
        if isinstance(value, str)
        else Cell(printable(value.text), value.style)
    )


def _is_used(cells: list[list[Cell]], index: int) -> bool:
    """Whether any row has a text in this column; an empty column is left out."""
    return not cells or any(row[index].text for row in cells)


def _fit(columns: Sequence[Column], widths: dict[int, int], shown: list[int]) -> list[int]:
    limit = width_of_terminal()
    if limit is None:
        return shown

    def too_much() -> int:
        return sum(widths[index] for index in shown) + _GAP * (len(shown) - 1) - limit

    # From the last on, spare columns are shortened or left out; then the widest are shortened.
    for index in [index for index in reversed(shown) if columns[index].is_spare]:
        if too_much() <= 0:
            return shown
        widths[index] = max(_LEAST, widths[index] - too_much())
        if too_much() > 0:
            shown = [other for other in shown if other != index]
    while too_much() > 0:
        widest = max(shown, key=lambda index: widths[index])
        if widths[widest] <= _LEAST:
            break
        widths[widest] = max(_LEAST, widths[widest] - too_much())
    return shown


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def print_fields(fields: Sequence[tuple[str, str | Cell]]) -> None:
    """Write names and values, one to a line; empty values are left out."""
    kept = [(name, _cell(value)) for name, value in fields]
    kept = [(name, cell) for name, cell in kept if cell.text]
    width = max((len(name) for name, _ in kept), default=0)
    for name, cell in kept:
        sys.stdout.write(f"{styled(name.ljust(width), 'dim')}  {styled(cell.text, cell.style)}\n")


def print_json(content: msgspec.Struct | Sequence[msgspec.Struct]) -> None:
    """Write to standard output for a program, as every `--json` does."""
    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())


def duration(seconds: float) -> str:
    """A short text for people: `12 s`, `3 min`, `2 h`, `5 d`."""
    seconds = max(seconds, 0)
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86_400)} d"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago: `12 s ago`; `now` for the last second; empty for None."""
    if moment is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return "now" if seconds < 1 else f"{duration(seconds)} ago"


def size(count: float) -> str:
    """Bytes as a short text for people: `3.4 MiB`."""
    if count < 1024:
        return f"{int(count)} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
