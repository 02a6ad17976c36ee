"""The verdict of a soak, as data and as tables."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from soak.ledger import NOT_RUN, Ledger

if TYPE_CHECKING:
    from soak.stage import Stage

__all__ = ["print_report", "read_audit", "summarize"]

MOST_GAIN = 0.05
"""Of resident memory, over the time it was watched; a leak of 1 KiB a command would be 30 MiB in
half an hour, which is more than half of what a daemon has."""

ENOUGH_SAMPLES = 6
"""Fewer say nothing about memory."""


def read_audit(folder: Path) -> Counter[str]:
    """How many lines the proxy's audit has of each command."""
    files = folder.glob("proxy-audit.jsonl*")
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    return Counter(json.loads(line)["command_id"] for line in lines)


def summarize(
    ledger: Ledger,
    audit: Counter[str],
    processes: Mapping[str, dict[str, object]],
    stage: Stage,
    minutes: float,
    rate: float,
) -> dict[str, Any]:
    """Everything; `passed` is the verdict."""
    ran = ledger.ran()
    told = ledger.told
    lost = sorted(name for name, t in told.items() if t.ran_well and ran[name] == 0)
    doubled = sorted(name for name, count in ran.items() if count > 1)
    denied = sorted(name for name, t in told.items() if t.outcome in NOT_RUN and ran[name])
    # What the proxy answered, it had written down before; also where it was killed right after.
    answered = [name for name, t in told.items() if t.outcome not in {"call lost", "not-sent"}]
    unaudited = sorted(name for name in answered if audit[name] != 1)
    unclear = [name for name, t in told.items() if not t.ran_well and t.outcome not in NOT_RUN]
    times = sorted(t.seconds for t in told.values() if t.ran_well)
    grown = sorted(
        name
        for name, process in processes.items()
        if isinstance(gain := process["gain"], float)
        and gain > MOST_GAIN
        and isinstance(count := process["watched"], int)
        and count >= ENOUGH_SAMPLES
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
        "minutes": minutes,
        "rate": rate,
        "destinations": stage.destinations,
        "passed": not (lost or doubled or denied or unaudited or grown),
        "asked": len(told),
        "well": sum(t.ran_well for t in told.values()),
        "lost": lost,
        "doubled": doubled,
        "denied": denied,
        "unaudited": unaudited,
        "unclear": {"told": len(unclear), "of which ran": sum(bool(ran[name]) for name in unclear)},
        "late": ledger.late,
        "seconds": {
            "median": round(times[len(times) // 2], 4) if times else None,
            "p99": round(times[int(len(times) * 0.99)], 4) if times else None,
            "most": round(times[-1], 4) if times else None,
        },
        "outcomes": {
            name: dict(Counter(t.outcome for t in told.values() if t.destination == name))
            for name in stage.destinations
        },
        "restarts": dict(Counter(restart.what for restart in stage.restarts)),
        "grown": grown,
        "processes": processes,
    }


def print_report(result: Mapping[str, Any]) -> None:
    """The same for people."""
    console = Console(highlight=False, width=100, soft_wrap=False)
    console.print(_outcomes(result))
    console.print(_processes(result))
    restarts = ", ".join(f"{what} {count} times" for what, count in result["restarts"].items())
    console.print(f"Restarts: {restarts}")
    seconds = result["seconds"]
    console.print(
        f"Commands: {result['asked']} asked for, {result['well']} ended well "
        f"(median {seconds['median']} s, 99 % within {seconds['p99']} s, "
        f"longest {seconds['most']} s)"
    )
    unclear = result["unclear"]
    console.print(
        f"Reported as lost or failed: {unclear['told']}, of which {unclear['of which ran']} had run"
    )
    for key, words in {
        "lost": "reported as ended well, and did not run",
        "doubled": "ran more than once",
        "denied": "reported as not run, and ran",
        "unaudited": "answered without one line in the proxy's audit",
    }.items():
        names = result[key]
        style = "bold red" if names else "green"
        console.print(f"[{style}]{len(names)} {words}[/] {' '.join(names[:8])}")
    if result["grown"]:
        console.print(f"[bold red]memory grew: {', '.join(result['grown'])}[/]")
    console.print("[bold green]passed[/]" if result["passed"] else "[bold red]FAILED[/]")


def _outcomes(result: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("What callers were told")
    for name in result["destinations"]:
        table.add_column(name, justify="right")
    every = {outcome for counts in result["outcomes"].values() for outcome in counts}
    for outcome in sorted(every, key=lambda outcome: (outcome != "ok", outcome)):
        counts = [str(result["outcomes"][n].get(outcome, 0)) for n in result["destinations"]]
        table.add_row(outcome, *counts)
    return table


def _processes(result: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in (
        "Resident memory",
        "Starts",
        "Samples",
        "Before",
        "After",
        "Gain",
        "Largest",
        "Files",
    ):
        table.add_column(name, justify="left" if name.startswith("Res") else "right", no_wrap=True)
    for name, process in result["processes"].items():
        files = [sample["fds"] for sample in process["samples"]]
        table.add_row(
            name,
            str(process["generations"]),
            str(process["watched"]),
            *(f"{process[key] / 2**20:.1f} MiB" for key in ("before", "after")),
            f"{process['gain']:+.1%}",
            f"{process['largest'] / 2**20:.1f} MiB",
            f"{min(files)} to {max(files)}",
        )
    return table
