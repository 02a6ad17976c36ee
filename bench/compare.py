"""Two results side by side: `python bench/compare.py OLD NEW`.

Only tunnelmux is judged. Rates are taken as shares of the direct origin in the same round, those of
commands over SSH as shares of ssh with a ControlMaster, for a machine is not equally fast on two
days; processor time and memory are taken as they are. A figure
is worse when its median moved, to the bad side, further than the noise: the spreads of both files
added up, and never less than 5 %, or 15 % where a file has one sample only. Exit status 1 when any
figure is worse, 2 when the files cannot be compared.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST_NOISE = 0.05
"""Three rounds may lie closer together by luck than any two runs do."""

LEAST_NOISE_OF_ONE = 0.15
"""The same where one of the files has one sample, which tells nothing about noise."""

HIGHER_IS_BETTER = {"rps", "gb_per_s", "commands_per_s", "MiB/s", "GB/s"}
LOWER_IS_BETTER = {
    *("cpu_s_per_10k", "cpu_s_per_gb", "p50_ms", "p99_ms"),
    *("server_idle_mib", "client_idle_mib", "most_kib_per_connection"),
    *("kib_per_agent_at_1000", "kib_per_agent_at_10000", "ns", "µs"),
}
RELATIVE = {"rps": "direct", "gb_per_s": "direct", "commands_per_s": "ssh-master"}
"""What a rate is a share of."""


@dataclass(frozen=True)
class Change:
    what: str
    old: float
    new: float
    worse: float
    """By which share it got worse; negative: better."""
    noise: float

    @property
    def is_regression(self) -> bool:
        return self.worse > self.noise


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every figure of tunnelmux that both results have."""
    return [*tunnel_changes(old, new), *micro_changes(old, new)]


def tunnel_changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for name, columns in new["samples"].items():
        if not new["peers"][name]["ours"]:
            continue
        for column, samples in columns.items():
            for metric in dict.fromkeys(metric for sample in samples for metric in sample):
                one, other = values_of_both(old, new, name, column, metric)
                if one and other and metric in HIGHER_IS_BETTER | LOWER_IS_BETTER:
                    yield judge(f"{name} {column} {metric}", metric, one, other)


def micro_changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for name, figure in new["micro"].items():
        before = old["micro"].get(name)
        if before is not None and figure["unit"] in HIGHER_IS_BETTER | LOWER_IS_BETTER:
            yield judge(name, figure["unit"], before["samples"], figure["samples"])


def values_of_both(
    old: dict[str, Any], new: dict[str, Any], name: str, column: str, metric: str
) -> tuple[list[float], list[float]]:
    """The metric in each round of each file, as shares where that is the rule and both can."""
    one, other = (values(result, name, column, metric) for result in (old, new))
    if metric in RELATIVE:
        base = RELATIVE[metric]
        their = [values(result, base, column, metric) for result in (old, new)]
        if len(their[0]) == len(one) and len(their[1]) == len(other):
            return shares(one, their[0]), shares(other, their[1])
    return one, other


def values(result: dict[str, Any], name: str, column: str, metric: str) -> list[float]:
    """The metric in each round that has it."""
    samples = result["samples"].get(name, {}).get(column, [])
    return [sample[metric] for sample in samples if metric in sample]


def shares(found: Sequence[float], base: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(found, base, strict=True)]


def judge(what: str, metric: str, old: Sequence[float], new: Sequence[float]) -> Change:
    before, after = statistics.median(old), statistics.median(new)
    change = after / before - 1 if before else 0.0
    worse = -change if metric in HIGHER_IS_BETTER else change
    least = LEAST_NOISE_OF_ONE if min(len(old), len(new)) == 1 else LEAST_NOISE
    return Change(what, before, after, worse, max(least, spread(old) + spread(new)))


def spread(figures: Sequence[float]) -> float:
    middle = statistics.median(figures)
    return (max(figures) - min(figures)) / 2 / abs(middle) if middle else 0.0


def show(changes: Sequence[Change]) -> str:
    lines = [f"{'figure':58} {'old':>11} {'new':>11} {'change':>8} {'noise':>7}"]
    for change in changes:
        verdict = "  WORSE" if change.is_regression else ""
        if -change.worse > change.noise:
            verdict = "  better"
        lines.append(
            f"{change.what:58} {change.old:11.4g} {change.new:11.4g} "
            f"{change.new / change.old - 1 if change.old else 0:+8.1%} {change.noise:7.1%}{verdict}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print(f"usage: python bench/compare.py OLD.json NEW.json\n\n{__doc__}", file=sys.stderr)
        return 2
    try:
        old, new = (json.loads(Path(name).read_text("utf-8")) for name in arguments)
        changes = compare(old, new)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        print(f"these are not two results of make bench: {exc!r}", file=sys.stderr)
        return 2
    if not changes:
        print("the two results have no figure of tunnelmux in common", file=sys.stderr)
        return 2
    print(show(changes))
    worse = sum(change.is_regression for change in changes)
    print(f"\n{worse} of {len(changes)} figures got worse by more than the noise")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
