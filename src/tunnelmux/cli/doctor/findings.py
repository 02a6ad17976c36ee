"""The result of a check: good or bad, what was seen, and what to do about it."""

from __future__ import annotations

import sys
import textwrap
from typing import Literal

import msgspec

from tunnelmux.cli.output import styled, width_of_terminal
from tunnelmux.printable import printable

__all__ = ["Finding", "print_finding", "worst_status"]

Outcome = Literal["good", "warning", "bad", "unknown"]

_SIGNS = {"good": ("✓", "+"), "warning": ("!", "!"), "bad": ("✗", "x"), "unknown": ("?", "?")}
_STYLES = {"good": "good", "warning": "warn", "bad": "bad", "unknown": "dim"}

_INDENT = 15
# Columns before what a check says.


class Finding(msgspec.Struct, kw_only=True):
    """One check. `fix` is empty where nothing is wrong."""

    check: str
    outcome: Outcome
    said: str
    fix: str = ""


def print_finding(finding: Finding) -> None:
    """Write it to standard output: one line, and one more with the fix."""
    is_utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    sign = _SIGNS[finding.outcome][0 if is_utf8 else 1]
    first, *more = _lines(finding.said)
    look = styled(f"{sign} {finding.check.ljust(12)}", _STYLES[finding.outcome])
    lines = [f"{look} {first}", *(" " * _INDENT + line for line in more)]
    arrow = "→ " if is_utf8 else "> "
    for line in _lines(finding.fix) if finding.fix else ():
        lines.append(" " * (_INDENT - 2) + styled(arrow, "dim") + line)
        arrow = "  "
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _lines(text: str) -> list[str]:
    """The text in lines that fit beside the names of the checks."""
    limit = width_of_terminal()
    if limit is None:
        return [printable(text)]
    return textwrap.wrap(printable(text), max(limit - _INDENT, 20)) or [""]


def worst_status(findings: list[Finding]) -> int:
    """The exit status: 1 when something is bad."""
    return 1 if any(finding.outcome == "bad" for finding in findings) else 0
