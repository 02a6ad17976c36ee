"""The table of docs/conformance.md, from what an interoperability run recorded.

python -m support.conformance build/conformance.json docs/conformance.md
"""

from __future__ import annotations

import datetime
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.peers import IMPLEMENTATIONS, versions
from support.tree import ROOT

__all__ = ["RESULTS", "Result", "render", "save"]

RESULTS = ROOT / "build" / "conformance.json"


@dataclass(frozen=True)
class Result:
    """One case with one implementation, in one role of ours, over one transport."""

    case: float
    title: str
    implementation: str
    role: str
    transport: str
    outcome: str
    """passed, deviation (passed, and the peer did what `note` says), skipped or failed."""
    note: str = ""


def save(results: list[Result], path: Path) -> None:
    """Keep a run's results, with its date and the versions that took part.

    A run of some cases completes the record of the same day and versions; it never mixes two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    run: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
    }
    kept: list[Result] = []
    if path.exists():
        earlier = json.loads(path.read_text("utf-8"))
        if {name: earlier[name] for name in run} == run:
            again = {(result.case, result.implementation) for result in results}
            kept = [Result(**entry) for entry in earlier["results"]]
            kept = [old for old in kept if (old.case, old.implementation) not in again]
    run["results"] = [asdict(result) for result in [*kept, *results]]
    path.write_text(json.dumps(run, indent=1) + "\n", "utf-8")


INTRODUCTION = """\
# Conformance

Made by `make conformance` from a run of `tests/interop`; do not edit. A case that is run again on
the same day, with the same peers, replaces its earlier result. Each cell sums up the runs of one
case with one peer, a live process: tunnelmux as yamux client and as server, over TCP and over
WebSocket. The numbers count those that passed. A letter points to what the peer itself does
differently and the test allows for, or to why a case was left out. (1): in full as the yamux server
over WebSocket, the way of a tunnel; the other three ways with a tenth of it.
"""


OTHER_ENDS = """\
## The tunnel protocol, with other programs at the other end

A relay and an agent in Go (hashicorp/yamux on a gorilla WebSocket, one HTTP/1.1 request on each
stream) that know nothing of tunnelmux, with our agent and our proxy.
"""


def render(path: Path) -> str:
    """The page, in Markdown."""
    run = json.loads(path.read_text("utf-8"))
    results = [Result(**entry) for entry in run["results"]]
    notes: dict[str, str] = {}
    names = [implementation.name for implementation in IMPLEMENTATIONS]
    lines = [INTRODUCTION, f"Run on {run['date']} with:\n"]
    for implementation in IMPLEMENTATIONS:
        version = run["versions"][implementation.name].removeprefix("v")
        lines.append(f"- **{implementation.name}**: {implementation.package} {version}")
    lines += ["", f"| case | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    rows: dict[tuple[float, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        rows[result.case, result.title][result.implementation].append(result)
    others: list[str] = []
    for (case, title), row in sorted(rows.items()):
        if row.keys().isdisjoint(names):
            others += [f"| {peer} | {title} | {cell(row[peer], {})} |" for peer in row]
            continue
        cells = [cell(row.get(name, []), notes) for name in names]
        lines.append(f"| {case:g} {title} | {' | '.join(cells)} |")
    lines += ["", *(f"- **{letter}**: {note}" for note, letter in notes.items())]
    if others:
        lines += ["", OTHER_ENDS, "| program | case | result |", "|---|---|---|", *others]
    return "\n".join(lines) + "\n"


def cell(results: list[Result], notes: dict[str, str]) -> str:
    """One cell; *notes* maps each text to its letter and grows."""
    if not results:
        return "not run"
    passed = sum(result.outcome in {"passed", "deviation"} for result in results)
    skipped = sum(result.outcome == "skipped" for result in results)
    word = "skip" if skipped == len(results) else "pass" if passed + skipped else "FAIL"
    if passed + skipped < len(results):
        word = "FAIL"
    text = word if word == "skip" else f"{word} {passed}/{len(results) - skipped}"
    letters = [
        notes.setdefault(f"{result.implementation}: {result.note}", letter_after(len(notes)))
        for result in results
        if result.note and result.outcome != "failed"
    ]
    return " ".join([text, *sorted(set(letters))])


def letter_after(count: int) -> str:
    """a, b … z, then aa, ab …"""
    first = chr(ord("a") + count // 26 - 1) if count >= 26 else ""
    return first + chr(ord("a") + count % 26)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(render(source), "utf-8")
