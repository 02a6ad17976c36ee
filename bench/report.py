"""A run as files: every sample in JSON, the medians as tables in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.medians import summarize
from bench.ratios import TARGETS, take_ratios
from bench.ssh import LEVELS

Result = dict[str, Any]


def make_result(
    *,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    peers: Mapping[str, Mapping[str, Any]],
    samples: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
    micro: Mapping[str, Mapping[str, Any]],
    skipped: Mapping[str, str],
    failures: Sequence[str],
) -> Result:
    """What is written to the JSON file."""
    taken, absent = take_ratios(samples, peers)
    return {
        "machine": dict(machine),
        "settings": dict(settings),
        "peers": {name: dict(traits) for name, traits in peers.items()},
        "skipped": dict(skipped),
        "failures": list(failures),
        "ratios": taken,
        "ratios_not_taken": absent,
        "medians": {
            peer: {
                column: summarize([dict(sample) for sample in taken_here])
                for column, taken_here in columns.items()
            }
            for peer, columns in samples.items()
        },
        "micro": {name: dict(figure) for name, figure in micro.items()},
        "samples": {peer: dict(columns) for peer, columns in samples.items()},
    }


def write(result: Result, folder: Path, *, whole: bool) -> Path:
    """Both files, named for date and commit; the path of the JSON one.

    The name of a run that is not *whole* has the time too: there are many of them.
    """
    machine = result["machine"]
    date = machine["date"]
    when = date[:10] if whole else re.sub(r"[^0-9T-]", "", date)
    stem = f"{when}-{machine['commit']}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    path.with_suffix(".md").write_text(markdown(result), "utf-8")
    return path


# -- Markdown -----------------------------------------------------------------------------------


TABLES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Requests on kept connections: 50 of them, bodies of 100 bytes",
        "keepalive",
        (
            ("req/s", "rps", ",.0f"),
            ("of direct", "rps/direct", ".3f"),
            ("CPU-s per 10k", "cpu_s_per_10k", ".2f"),
            ("p50 ms", "p50_ms", ".2f"),
            ("p99 ms", "p99_ms", ".2f"),
        ),
    ),
    (
        "A new connection for each request",
        "connect",
        (
            ("req/s", "rps", ",.0f"),
            ("of direct", "rps/direct", ".3f"),
            ("CPU-s per 10k", "cpu_s_per_10k", ".2f"),
            ("p50 ms", "p50_ms", ".2f"),
            ("p99 ms", "p99_ms", ".2f"),
        ),
    ),
    (
        "Bodies of 100 KiB on 50 kept connections",
        "large",
        (
            ("req/s", "rps", ",.0f"),
            ("of direct", "rps/direct", ".3f"),
            ("CPU-s per 10k", "cpu_s_per_10k", ".2f"),
            ("p99 ms", "p99_ms", ".2f"),
        ),
    ),
    (
        "One download",
        "bulk",
        (
            ("GB/s", "gb_per_s", ".2f"),
            ("of direct", "gb_per_s/direct", ".3f"),
            ("CPU-s per GB", "cpu_s_per_gb", ".2f"),
        ),
    ),
    (
        "Round trips of 64 bytes beside a download in the same session",
        "echo",
        (("p50 ms", "p50_ms", ".2f"), ("p99 ms", "p99_ms", ".2f"), ("trips", "trips", ",.0f")),
    ),
    (
        "Echoes of 64 bytes on 100 WebSockets",
        "websocket",
        (("echoes/s", "echoes_per_s", ",.0f"), ("CPU-s per 10k", "cpu_s_per_10k", ".2f")),
    ),
    (
        "Requests that the pump declines, so that h11 reads them (`TE: trailers`)",
        "h11",
        (
            ("req/s", "rps", ",.0f"),
            ("CPU-s per 10k", "cpu_s_per_10k", ".2f"),
            ("p99 ms", "p99_ms", ".2f"),
        ),
    ),
    (
        "Resident memory",
        "memory",
        (
            ("server idle MiB", "server_idle_mib", ".1f"),
            ("client idle MiB", "client_idle_mib", ".1f"),
            ("server KiB per open connection", "server_kib_per_connection", ".1f"),
            ("client KiB per open connection", "client_kib_per_connection", ".1f"),
        ),
    ),
)


def markdown(result: Result) -> str:
    columns = {column for columns in result["samples"].values() for column in columns}
    parts = [heading(result), ratio_table(result) if columns - {*LEVELS} else ""]
    for title, column, metrics in TABLES:
        if column in columns:
            parts.append(f"## {title}\n\n{column_table(result, column, metrics)}")
    parts += [
        agents_part(result),
        fleet_part(result),
        once_part(result, "workers", "Two workers beside one process"),
        once_part(result, "hop", "A hop beside none"),
        ssh_part(result),
        micro_part(result),
        problems(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(result: Result) -> str:
    machine, settings = result["machine"], result["settings"]
    load = ", ".join(str(figure) for figure in machine["load_average"])
    return (
        f"# {machine['date'][:10]}, commit {machine['commit']}\n\n"
        f"Made by `{settings['command']}`, begun {machine['date']}: {settings['rounds']} rounds "
        f"over all of them, a base of {settings['seconds']:g} s for each column. Medians; in "
        "parentheses half the distance from the least to the most. CPU-seconds are those of both "
        "ends of a tunnel.\n\n"
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB; "
        f"{machine['kernel']}; Python {machine['python']}; load average at the start {load}.\n\n"
        + table(
            ("name", "what", "version"),
            ((name, traits["what"], traits["version"]) for name, traits in result["peers"].items()),
        )
    )


def ratio_rows(result: Result) -> Iterable[tuple[str, ...]]:
    for target in TARGETS:
        ratio = result["ratios"].get(target.name)
        if ratio is None:
            why = result["ratios_not_taken"].get(target.name, "not measured")
            yield target.name, "-", target.text, "-", f"not taken: {why}"
        else:
            low, high = ratio["range"]
            yield (
                target.name,
                f"{ratio['value']:.3g} ({low:.3g} to {high:.3g})",
                target.text,
                ratio["peer"] or "-",
                {True: "met", False: "missed", None: "watched"}[ratio["met"]],
            )


def ratio_table(result: Result) -> str:
    return "## Ratios\n\n" + table(("ratio", "value", "target", "against", ""), ratio_rows(result))


def column_table(result: Result, column: str, metrics: Sequence[tuple[str, str, str]]) -> str:
    rows = []
    for peer, columns in result["medians"].items():
        if column in columns:
            cells = [cell(result, peer, column, metric, form) for _, metric, form in metrics]
            rows.append((peer, *cells))
    return table(("tunnel", *(title for title, _, _ in metrics)), rows)


def cell(result: Result, peer: str, column: str, metric: str, form: str) -> str:
    metric, _, divisor = metric.partition("/")
    figure = result["medians"][peer][column].get(metric)
    if figure is None:
        return "-"
    if divisor:
        base = result["medians"].get(divisor, {}).get(column, {}).get(metric)
        return format(figure["median"] / base["median"], form) if base else "-"
    return f"{figure['median']:{form}} (±{figure['spread']:.0%})"


def agents_part(result: Result) -> str:
    agents = result["medians"].get("tunnelmux-ws", {}).get("agents")
    if not agents:
        return ""
    rows = [(metric, f"{figure['median']:.1f}") for metric, figure in agents.items()]
    return f"## Idle agents on one proxy, plain WebSocket\n\n{table(('what', 'figure'), rows)}"


def fleet_part(result: Result) -> str:
    fleet = result["medians"].get("tunnelmux-ws", {}).get("fleet")
    if not fleet:
        return ""
    rows = [(metric, f"{figure['median']:.2f}") for metric, figure in fleet.items()]
    return f"## A fleet that comes back at once\n\n{table(('what', 'figure'), rows)}"


def once_part(result: Result, column: str, title: str) -> str:
    """A column that is measured once, of our tunnel only."""
    found = result["medians"].get("tunnelmux-ws", {}).get(column)
    if not found:
        return ""
    rows = [(metric, f"{figure['median']:.3f}") for metric, figure in found.items()]
    return f"## {title}\n\n{table(('what', 'figure'), rows)}"


def ssh_part(result: Result) -> str:
    """Every client in a row, with all numbers of commands at once side by side."""
    measured = result["medians"].values()
    levels = [level for level in LEVELS if any(level in columns for columns in measured)]
    if not levels:
        return ""
    rows = [
        (client, *(figure for level in levels for figure in ssh_cells(result, client, level)))
        for client, columns in result["medians"].items()
        if any(level in columns for level in levels)
    ]
    titles = [title for level in levels for title in (f"{LEVELS[level]} at once", "p50 ms")]
    return f"## Commands per second over SSH\n\n{table(('client', *titles), rows)}"


def ssh_cells(result: Result, client: str, level: str) -> tuple[str, str]:
    if level not in result["medians"][client]:
        return "-", "-"
    return (
        cell(result, client, level, "commands_per_s", ",.1f"),
        cell(result, client, level, "p50_ms", ",.1f"),
    )


def micro_part(result: Result) -> str:
    if not result["micro"]:
        return ""
    rows = [
        (name, f"{figure['median']:,.1f} (±{figure['spread']:.0%})", figure["unit"])
        for name, figure in result["micro"].items()
    ]
    return f"## Micro-benchmarks\n\n{table(('what', 'figure', 'unit'), rows)}"


def problems(result: Result) -> str:
    lines = [f"- without {name}: {why}" for name, why in result["skipped"].items()]
    lines += [f"- failed: {failure}" for failure in result["failures"]]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join(lines)


def print_ratios(result: Result) -> None:
    print("\nratios (value, its range over the rounds, target, against whom)")
    for name, value, target, peer, met in ratio_rows(result):
        print(f"  {name:38} {value:28} {target:8} {peer:16} {met}")
